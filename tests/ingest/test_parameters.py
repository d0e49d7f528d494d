"""What a request says beside its messages, in the words of each API, and what a server counted."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from monitor.ingest.formats import parse
from monitor.settings import IngestSettings
from monitor.values.prompts import (
    DeadLetter,
    DeadReason,
    Prompt,
    RawRecord,
    Sampling,
    ServedCounts,
)

SETTINGS = IngestSettings()
Build = Callable[..., RawRecord]
ASKED = [{"role": "user", "content": "How do I boil an egg?"}]
ANSWER = {"choices": [{"index": 0, "message": {"content": "Ten minutes."}}]}
LARGEST = 2**53 - 1


def read(record: Build, request: dict[str, Any], response: Any = ANSWER) -> Prompt:
    (parsed,) = parse(record({"request": request, "response": response}), SETTINGS)
    assert isinstance(parsed, Prompt), parsed
    return parsed


def refused(record: Build, request: dict[str, Any]) -> DeadLetter:
    (parsed,) = parse(record({"request": request, "response": ANSWER}), SETTINGS)
    assert isinstance(parsed, DeadLetter), parsed
    return parsed


@pytest.mark.parametrize(
    ("usage", "prompt", "completion"),
    [
        ({"prompt_tokens": 12, "completion_tokens": 3}, 12, 3),
        ({"input_tokens": 12, "output_tokens": 3}, 12, 3),
        ({"inputTokens": 12, "outputTokens": 3}, 12, 3),
        ({"promptTokenCount": 12, "candidatesTokenCount": 3}, 12, 3),
        ({"promptTokens": 12, "completionTokens": 3}, 12, 3),
        ({"prompt_tokens": 12, "generated_tokens": 3}, 12, 3),
        ({"promptTokenCount": 12, "candidatesTokenCount": 3, "thoughtsTokenCount": 4}, 12, 7),
        (
            {
                "input_tokens": 12,
                "cache_creation_input_tokens": 100,
                "cache_read_input_tokens": 20,
                "output_tokens": 3,
            },
            132,
            3,
        ),
        # OpenAI's counts hold what was cached already.
        ({"prompt_tokens": 12, "cache_read_input_tokens": 20, "completion_tokens": 3}, 12, 3),
        ({"prompt_tokens": 12}, 12, None),
        ({"prompt_tokens": 12, "completion_tokens": 0}, 12, 0),
        ({"prompt_tokens": "12", "completion_tokens": 3.0}, 12, 3),
        ({"prompt_tokens": LARGEST, "completion_tokens": str(LARGEST)}, LARGEST, LARGEST),
        ({"prompt_tokens": 12, "completion_tokens": LARGEST + 1}, 12, None),
        ({"prompt_tokens": 12, "completion_tokens": "9" * 5_000}, 12, None),
        ({"prompt_tokens": 12, "completion_tokens": 2.5}, 12, None),
        ({"prompt_tokens": 12, "completion_tokens": True}, 12, None),
        ({"prompt_tokens": 12, "completion_tokens": "three"}, 12, None),
        ({"prompt_tokens": 12, "completion_tokens": "³"}, 12, None),
        ({"prompt_tokens": 12, "completion_tokens": -2}, 12, None),
    ],
)
def test_token_counts_of_every_api(
    record: Build, usage: dict[str, Any], prompt: int, completion: int | None
) -> None:
    parsed = read(record, {"messages": ASKED}, {**ANSWER, "usage": usage})
    assert parsed.served == ServedCounts(prompt_tokens=prompt, completion_tokens=completion)


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {},
        [],
        "12",
        {"completion_tokens": 3},
        {"prompt_tokens": 0, "completion_tokens": 3},
        {"prompt_tokens": True, "completion_tokens": 3},
        {"prompt_tokens": LARGEST + 1, "completion_tokens": 3},
        {"prompt_tokens": "9" * 5_000, "completion_tokens": 3},
    ],
)
def test_counts_without_a_prompt_are_no_counts(record: Build, usage: Any) -> None:
    assert read(record, {"messages": ASKED}, {**ANSWER, "usage": usage}).served is None


SPELLINGS: dict[str, tuple[str, ...]] = {
    "temperature": ("temperature",),
    "top_p": ("top_p", "topP"),
    "min_p": ("min_p", "minP"),
    "presence_penalty": ("presence_penalty", "presencePenalty"),
    "frequency_penalty": ("frequency_penalty", "frequencyPenalty"),
    "repetition_penalty": ("repetition_penalty", "repetitionPenalty"),
    "top_k": ("top_k", "topK"),
    "seed": ("seed",),
    "max_tokens": (
        "max_tokens",
        "max_completion_tokens",
        "max_output_tokens",
        "max_new_tokens",
        "max_gen_len",
        "maxTokens",
        "maxOutputTokens",
        "maxTokenCount",
        "num_predict",
    ),
}
WHOLE = frozenset({"top_k", "seed", "max_tokens"})


@pytest.mark.parametrize(
    ("name", "spelling"), [(name, one) for name, all in SPELLINGS.items() for one in all]
)
def test_every_spelling_of_how_the_answer_was_drawn(
    record: Build, name: str, spelling: str
) -> None:
    given, wrong = (7, 2.5) if name in WHOLE else (0.25, "0.25")
    assert read(record, {"messages": ASKED, spelling: given}).sampling == Sampling(**{name: given})
    for nothing in (None, wrong, True, [], {}):
        assert read(record, {"messages": ASKED, spelling: nothing}).sampling is None


@pytest.mark.parametrize("name", [name for name, all in SPELLINGS.items() if len(all) > 1])
def test_of_two_spellings_the_same_one_counts_in_every_process(record: Build, name: str) -> None:
    """A redelivered record gives the same values: the order of a set would not."""
    for first, second in itertools.combinations(SPELLINGS[name], 2):
        for keys in ({first: 1, second: 2}, {second: 2, first: 1}):
            sampling = read(record, {"messages": ASKED, **keys}).sampling
            assert sampling == Sampling(**{name: 1}), (first, second)


@pytest.mark.parametrize(
    ("given", "stop"),
    [
        ({"stop": "\n"}, ("\n",)),
        ({"stop": ["a", "b"]}, ("a", "b")),
        ({"stop_sequences": ["a"]}, ("a",)),
        ({"stopSequences": ["a", 3]}, ("a",)),
        ({"stop": ["x"] * 65}, ("x",) * 64),
    ],
)
def test_stop_texts(record: Build, given: dict[str, Any], stop: tuple[str, ...]) -> None:
    assert read(record, {"messages": ASKED, **given}).sampling == Sampling(stop=stop)


@pytest.mark.parametrize(
    "inner",
    ["inferenceConfig", "options", "parameters", "generationConfig", "generation_config"],
)
def test_parameters_in_an_object_of_their_own(record: Build, inner: str) -> None:
    given = {"messages": ASKED, inner: {"temperature": 0.5}}
    assert read(record, given).sampling == Sampling(temperature=0.5)


def test_why_the_answer_ended(record: Build) -> None:
    choice = {"message": {"content": "Ten"}, "finish_reason": "length"}
    parsed = read(record, {"messages": ASKED, "temperature": 0}, {"choices": [choice]})
    assert parsed.sampling == Sampling(temperature=0.0, finish_reason="length")


@pytest.mark.parametrize(
    ("given", "options"),
    [
        (
            {"chat_template_kwargs": {"a": 1, "enable_thinking": True}},
            {"a": 1, "enable_thinking": True},
        ),
        ({"documents": [{"text": "x"}]}, {"documents": [{"text": "x"}]}),
        ({"reasoning_effort": "low"}, {"reasoning_effort": "low"}),
        ({"enable_thinking": False}, {"enable_thinking": False}),
        ({"add_generation_prompt": True}, {"add_generation_prompt": True}),
        ({"thinking_budget": 100}, {"thinking_budget": 100}),
        ({"reasoning": {"effort": "high"}}, {"reasoning_effort": "high"}),
        ({"reasoning": {"effort": "high"}, "reasoning_effort": "low"}, {"reasoning_effort": "low"}),
        ({"reasoning": {"effort": 3}}, {}),
        ({"think": True}, {"enable_thinking": True}),
        ({"think": "yes"}, {}),
        ({"think": True, "enable_thinking": False}, {"enable_thinking": False}),
        (
            {"chat_template_kwargs": {"enable_thinking": True}, "enable_thinking": False},
            {"enable_thinking": False},
        ),
        ({"chat_template_kwargs": None, "documents": None}, {}),
        ({"temperature": 1}, {}),
    ],
)
def test_what_else_reaches_the_chat_template(
    record: Build, given: dict[str, Any], options: dict[str, Any]
) -> None:
    assert dict(read(record, {"messages": ASKED, **given}).template_options) == options


@pytest.mark.parametrize(
    ("given", "reason", "named"),
    [
        ({"chat_template": "{{ x }}"}, DeadReason.DIALECT_NOT_READ, "request.chat_template"),
        (
            {"chat_template_kwargs": []},
            DeadReason.INVALID_FIELD,
            "request.chat_template_kwargs: expected an object",
        ),
        ({"tools": {}}, DeadReason.INVALID_FIELD, "request.tools: expected an array"),
        ({"tools": [3]}, DeadReason.INVALID_FIELD, "request.tools[0]"),
        (
            {"tools": [{"type": "web_search"}]},
            DeadReason.DIALECT_NOT_READ,
            "request.tools[0]: a tool that the provider runs",
        ),
    ],
)
def test_options_that_change_the_prompt_and_are_not_read(
    record: Build, given: dict[str, Any], reason: DeadReason, named: str
) -> None:
    letter = refused(record, {"messages": ASKED, **given})
    assert letter.reason is reason
    assert named in letter.detail


SCHEMA = {"type": "object", "properties": {"size": {"type": "integer"}}}
TOOL = {
    "type": "function",
    "function": {"name": "get_pan", "description": "A pan.", "parameters": SCHEMA},
}
SIDE_BY_SIDE = {"name": "get_pan", "description": "A pan."}


@pytest.mark.parametrize(
    "given",
    [
        {"tools": [TOOL]},
        {"tools": [{"function": TOOL["function"]}]},
        {"tools": [{"type": "function", **SIDE_BY_SIDE, "parameters": SCHEMA}]},
        {"tools": [{**SIDE_BY_SIDE, "input_schema": SCHEMA}]},
        {"tools": [{"type": "custom", **SIDE_BY_SIDE, "input_schema": SCHEMA}]},
        {"functions": [{**SIDE_BY_SIDE, "parameters": SCHEMA}]},
        {"tools": [{"functionDeclarations": [{**SIDE_BY_SIDE, "parameters": SCHEMA}]}]},
        {"tools": [{"function_declarations": [{**SIDE_BY_SIDE, "parametersJsonSchema": SCHEMA}]}]},
        {
            "toolConfig": {
                "tools": [
                    {"toolSpec": {**SIDE_BY_SIDE, "inputSchema": {"json": SCHEMA}}},
                    {"cachePoint": {"type": "default"}},
                ]
            }
        },
    ],
)
def test_tools_of_every_api_are_the_same_tool(record: Build, given: dict[str, Any]) -> None:
    assert read(record, {"messages": ASKED, **given}).tools == (TOOL,)


@pytest.mark.parametrize(
    ("given", "forbidden"),
    [
        ({"tool_choice": "none"}, True),
        ({"function_call": "none"}, True),
        ({"tool_choice": "auto"}, False),
        ({"tool_choice": {"type": "function"}}, False),
        ({}, False),
    ],
)
def test_forbidden_calls(record: Build, given: dict[str, Any], forbidden: bool) -> None:
    assert read(record, {"messages": ASKED, "tools": [TOOL], **given}).tools_forbidden is forbidden


@pytest.mark.parametrize(
    ("given", "rendered"),
    [
        ({}, False),
        ({"add_special_tokens": False}, True),
        ({"add_special_tokens": True}, False),
        ({"add_special_tokens": None}, False),
        ({"raw": True}, True),
        ({"raw": False}, False),
        ({"raw": 1}, False),
        ({"add_special_tokens": True, "raw": True}, True),
    ],
)
def test_whether_a_raw_prompt_is_a_rendered_template(
    record: Build, given: dict[str, Any], rendered: bool
) -> None:
    answer = {"choices": [{"text": " a clean one."}]}
    assert read(record, {"prompt": "The best pan is", **given}, answer).special_tokens is rendered


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ({"response_format": {"type": "json_object"}}, ("response_format",)),
        ({"response_format": {"type": "text"}}, ()),
        ({"guided_json": {"type": ["object", "null"]}}, ("guided_json",)),
        ({"logit_bias": {"50256": -100}}, ()),
        ({"logit_bias": {"a word": -100}}, ("logit_bias",)),
        ({"logit_bias": {"50256": "much"}}, ("logit_bias",)),
        ({"logit_bias": {str(n): 1 for n in range(1_025)}}, ("logit_bias",)),
        ({"min_tokens": 8, "ignore_eos": True}, ("min_tokens", "ignore_eos")),
        ({"min_tokens": 0, "ignore_eos": False}, ()),
        ({"repeat_penalty": 1.1, "typical_p": 0.9}, ("repeat_penalty", "typical_p")),
        ({"repeat_penalty": 1.0, "typical_p": 1}, ()),
        ({"logit_bias": {}}, ()),
        ({"tool_choice": "auto"}, ()),
        ({"tool_choice": "none"}, ()),
        ({"tool_choice": "required"}, ("tool_choice",)),
        ({"tool_choice": {"type": "auto"}}, ()),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, ("tool_choice",)),
        ({"use_beam_search": False, "typical_p": 0}, ()),
        ({"use_beam_search": True}, ("use_beam_search",)),
        ({"text": {"format": {"type": "text"}}}, ()),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, ("format",)),
    ],
)
def test_what_steers_the_draw_is_named(
    record: Build, request_: dict[str, Any], expected: tuple[str, ...]
) -> None:
    asked = {"messages": ASKED, "temperature": 0.5, **request_}
    found = read(record, asked).sampling
    assert found is not None
    assert found.steered_by == expected


def test_a_bias_by_token_is_part_of_the_law(record: Build) -> None:
    asked = {"messages": ASKED, "logit_bias": {"50256": -100, "7": 2.5}}
    found = read(record, asked).sampling
    assert found is not None
    assert found.logit_bias == ((7, 2.5), (50256, -100.0))
