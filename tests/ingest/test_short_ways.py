"""What most records are is read by a shorter way, and read as by the longer one: the same exchanges, the same refusals.

A record is sent down the longer way by what says nothing: null where a key may be absent, and gzip around it.
"""

from __future__ import annotations

import copy
import gzip
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from monitor.ingest.dialects import api
from monitor.ingest.fields import Unreadable
from monitor.ingest.formats import parse
from monitor.settings import IngestSettings
from monitor.values.prompts import Half, Parsed, Prompt, RawRecord
from tests.ingest.conftest import APPENDED
from tests.ingest.hostile import VALID
from tests.ingest.hostile_flood import hostile
from tests.scenes.examples import examples

SETTINGS = IngestSettings(segment_keys=("route",))
SHALLOW = IngestSettings(max_nesting=6)

TEXTS = st.sampled_from(
    [
        *("", " ", "\n\ttext", "text", "\ufefftext", "null", '"quoted"', "é\u202e", "a\x00b"),
        *("<think>why</think>so", "why</think>\nso", "why</think> so", "so <think>why"),
        *('{"a": 1}', " [1]", '{"id": "x", "choices": []}', '{"choices": [{"messa', '{"error": 1}'),
        '{"choices": [{"message": {"role": "assistant", "content": "x"}}]}',
        '{"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"}',
        '[{"type": "message", "content": [{"type": "output_text", "text": "x"}]}]',
        *('data: {"choices": []}\n\n', "data: [DONE]", "event: x\ndata: {}\n\n", "data", "either"),
        *("{'a': 1}", "<Stream object at 0x7f12ab>", "Message(id='x'", "Response(id='", "Maybe"),
        *("cut (truncated by litellm skipped 9 chars)", "y" * 300 + " litellm_truncated z"),
    ]
) | st.text(max_size=12)
ROLES = st.sampled_from(
    ["user", "user", "assistant", "system", "developer", "tool", "function", "model", "x", 3, None]
)
SCALARS = st.none() | st.booleans() | st.integers(-2, 2**40) | TEXTS
MESSAGES = st.fixed_dictionaries({"role": ROLES, "content": TEXTS | TEXTS | SCALARS}) | SCALARS
SERVED = TEXTS | st.fixed_dictionaries(
    {"choices": st.lists(st.fixed_dictionaries({"message": MESSAGES}), max_size=2)}
)
RECORDS = st.fixed_dictionaries(
    {"messages": st.lists(MESSAGES, max_size=3), "response": SERVED},
    optional={
        "id": SCALARS,
        "model": SCALARS,
        "segment": SCALARS | st.dictionaries(st.sampled_from(["route", "a b", ""]), SCALARS),
        "timestamp": SCALARS,
        "sampling_probability": st.none() | st.floats(-0.5, 1.5),
    },
)
PARAMETERS = (
    *("tools", "functions", "tool_choice", "function_call", "toolConfig", "system"),
    *("instructions", "continue_final_message", "echo", "chat_template", "think", "text"),
    *("chat_template_kwargs", "reasoning", "reasoning_effort", "enable_thinking", "options"),
    *("documents", "add_generation_prompt", "thinking_budget", "parameters", "logit_bias"),
    *("inferenceConfig", "generationConfig", "generation_config", "temperature", "top_p"),
    *("stop", "stop_sequences", "seed", "max_tokens", "response_format", "guided_json"),
    *("format", "min_tokens", "user", "stream", "unknown"),
)
"""Of a request."""
BESIDE = (
    *("name", "tool_calls", "tool_call_id", "function_call", "reasoning", "reasoning_content"),
    *("thinking", "prefix", "partial", "refusal", "parts", "audio", "images", "unknown"),
)
"""Of a message."""
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, 0.5, "", "none", "auto", "said", ["a"], {}),
    *({"temperature": 0.3, "topP": 0.2}, {"effort": "low"}, {"format": {"type": "json_schema"}}),
    *({"17": -2}, {"name": "f", "arguments": "{}"}, {"transcript": "said"}),
    *([{"type": "function", "function": {"name": "f"}}], [{"name": "f"}], [{"text": "said"}]),
)
CHAT = {
    "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
    "response": "c",
}


def read(value: bytes, ingest: IngestSettings = SETTINGS) -> tuple[Parsed | Half, ...]:
    return parse(
        RawRecord(topic="t", partition=0, offset=7, timestamp=APPENDED, value=value), ingest
    )


def logged(request: dict[str, Any], response: Any) -> bytes:
    return orjson.dumps({"request": request, "response": response})


def longer(document: dict[str, Any]) -> dict[str, Any]:
    """The same record with keys that say nothing: none of the shorter ways is for it."""
    made = copy.deepcopy(document)
    made |= {"contents": None, "instructions": None, "stop": None}
    for said in (*made["messages"], *_served_messages(made["response"])):
        if isinstance(said, dict):
            said["refusal"] = None
    return made


def _served_messages(response: Any) -> list[Any]:
    choices = response["choices"] if isinstance(response, dict) else []
    return [choice["message"] for choice in choices]


@settings(max_examples=examples(400), suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(document=RECORDS)
def test_a_record_with_keys_that_say_nothing_is_read_as_without(document: dict[str, Any]) -> None:
    assert read(orjson.dumps(document)) == read(orjson.dumps(longer(document)))


@pytest.mark.parametrize("key", PARAMETERS)
def test_whatever_a_request_says_beside_its_messages_is_read(key: str) -> None:
    for value in VALUES:
        asked = {"messages": CHAT["messages"], key: value}
        nothing = {"instructions": None, "stop": None}
        assert read(logged(asked, "c")) == read(logged(nothing | asked, "c")), value


@pytest.mark.parametrize("key", BESIDE)
def test_whatever_a_message_says_beside_its_text_is_read(key: str) -> None:
    for value in VALUES:
        for place in range(2):
            short = copy.deepcopy(CHAT)
            short["messages"][place][key] = value
            long = longer(CHAT)
            long["messages"][place][key] = value
            assert read(orjson.dumps(short)) == read(orjson.dumps(long)), value


@pytest.mark.parametrize("ingest", [SETTINGS, SHALLOW], ids=["usual", "shallow"])
def test_a_record_in_gzip_is_read_as_without(ingest: IngestSettings) -> None:
    records = [orjson.dumps(one) for one in VALID]
    records += [value for kind, value in hostile(5, 600) if kind == "mutated" and value[:1] == b"{"]
    prompts = 0
    for value in records:
        found = read(value, ingest)
        assert found == read(gzip.compress(value, 1), ingest)
        prompts += any(isinstance(one, Prompt) for one in found)
    assert prompts > len(records) / 10


class _Everything:
    def __contains__(self, _: object) -> bool:
        return True


@settings(max_examples=examples(400), deadline=None)
@given(text=TEXTS, spoken=st.booleans())
def test_a_response_that_is_taken_for_text_at_its_first_letter_is_text(
    text: str, spoken: bool
) -> None:
    def opened() -> Any:
        try:
            return api.opened_response(text, "response", 64, spoken=spoken)
        except Unreadable as refusal:
            return refusal.reason, refusal.detail

    short = opened()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "_NO_TEXT", _Everything())
        assert opened() == short


@pytest.mark.parametrize("depth", [3, 4, 5, 6, 7, 70])
@pytest.mark.parametrize("inside", [lambda x: [x], lambda x: {"a": x}], ids=["arrays", "objects"])
def test_nesting_is_refused_at_the_same_level_either_way(
    depth: int, inside: Callable[[Any], Any]
) -> None:
    deep: Any = 0
    for _ in range(depth):
        deep = inside(deep)
    value = orjson.dumps(
        {"messages": [{"role": "user", "content": "x"}], "response": "y", "z": deep}
    )
    assert read(value, SHALLOW) == read(gzip.compress(value), SHALLOW)
    assert isinstance(read(value, SHALLOW)[0], Prompt) == (depth < 6)
