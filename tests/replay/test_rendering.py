"""What is replayed is what the server ran: each family's template with each kind of request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from monitor.replay.regions import Tokens
from monitor.replay.tokens import Tokeniser
from monitor.values.prompts import DeadReason, Prompt
from monitor.values.scores import Unreplayable
from tests.replay.families import (
    FAMILIES,
    REQUESTS,
    ROUND,
    TOOL,
    as_prompt,
    as_served,
    call,
    family_tokenizer,
    finished,
    raw_prompt,
    say,
    tool_call,
)
from tests.scenes.examples import examples

Family = Callable[[str], tuple[Tokeniser, PreTrainedTokenizerFast]]


@pytest.fixture(scope="session")
def family(words: list[str]) -> Family:
    """Tokeniser and tokenizer of a family."""
    known: dict[str, tuple[Tokeniser, PreTrainedTokenizerFast]] = {}

    def build(name: str) -> tuple[Tokeniser, PreTrainedTokenizerFast]:
        if name not in known:
            tokenizer = family_tokenizer(name, words)
            known[name] = Tokeniser(tokenizer, 10_000), tokenizer
        return known[name]

    return build


def tokens_of(tokeniser: Tokeniser, prompt: Prompt) -> Tokens:
    [tokens] = tokeniser.tokenise([prompt])
    assert isinstance(tokens, Tokens), tokens
    return tokens


def text_of(tokenizer: Any, tokens: Tokens) -> str:
    """What stands behind the prompt."""
    text: str = tokenizer.decode(tokens.ids[tokens.prompt_tokens :])
    return text


def read(tokenizer: Any, tokens: Tokens, region: Any) -> str:
    text: str = tokenizer.decode([tokens.ids[i] for i in tokens.positions(region, 1)])
    return text


REFUSED = {
    "mistral": {"two questions", "assistant first"},
    "gemma2": {
        *("system", "system and turns", "tools and system", "two questions", "assistant first"),
        *("tool round", "tool round and on", "arguments not JSON"),
    },
    "gemma3": {"two questions", "assistant first"}
    | {"tool round", "tool round and on", "arguments not JSON"},
}
SENTENCES = {
    "There is no system role.",
    "Roles must take turns: user, assistant, user and so on.",
}


@pytest.mark.parametrize("kind", REQUESTS)
@pytest.mark.parametrize("name", FAMILIES)
def test_prompt_is_the_servers(name: str, kind: str, family: Family) -> None:
    tokeniser, tokenizer = family(name)
    request = REQUESTS[kind]
    [outcome] = tokeniser.tokenise([as_prompt(request)])
    if kind in REFUSED.get(name, ()):
        with pytest.raises(TemplateError) as refusal:
            as_served(tokenizer, request)
        assert isinstance(outcome, Unreplayable)
        assert outcome.reason is DeadReason.TEMPLATE_REFUSED
        assert str(refusal.value) in SENTENCES
        assert outcome.detail == f"the chat template says: {refusal.value}"
        return
    served = as_served(tokenizer, request, text_arguments=name == "deepseek_r1")
    assert isinstance(outcome, Tokens), outcome
    assert list(outcome.ids) == served
    assert outcome.prompt_tokens == outcome.whole_prompt == len(served)
    assert outcome.rendering == "chat"


ARGUMENTS = '{"river": "old", "deep": 2}'
CALL = tool_call(call())
"""The answer as each family's model writes it, without the end of the turn."""
CALLED = {
    "llama3": f'{{"name": "find_fish", "parameters": {ARGUMENTS}}}',
    "qwen2_5": f'<tool_call>\n{{"name": "find_fish", "arguments": {ARGUMENTS}}}\n</tool_call>',
    "qwen3": "<think>\n\n</think>\n\n"
    f'<tool_call>\n{{"name": "find_fish", "arguments": {ARGUMENTS}}}\n</tool_call>',
    "mistral": f'[TOOL_CALLS] [{{"name": "find_fish", "arguments": {ARGUMENTS}, "id": "abcdefghi"}}]',
    "gpt_oss": f" to=functions.find_fish<|channel|>commentary json<|message|>{ARGUMENTS}",
    "deepseek_r1": "\n</think>\n\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>"
    f"find_fish\n```json\n{ARGUMENTS}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    "granite": f'<|tool_call|>{{"name": "find_fish", "arguments": {ARGUMENTS}}}',
}


@pytest.mark.parametrize("name", CALLED)
def test_tool_call_is_rendered_as_the_model_writes_it(name: str, family: Family) -> None:
    tokeniser, tokenizer = family(name)
    prompt = as_prompt(REQUESTS["tools"], tool_calls=(CALL,))
    tokens = tokens_of(tokeniser, prompt)
    asked = tokens_of(tokeniser, as_prompt(REQUESTS["tools"]))
    assert tokens.ids[: tokens.prompt_tokens] == asked.ids
    assert text_of(tokenizer, tokens) == CALLED[name]
    assert "find_fish" in read(tokenizer, tokens, "response")
    assert tokens.reasoning_tokens == 0
    assert tokens.stand_ins == ()


def test_call_with_an_id_that_the_template_refuses(family: Family) -> None:
    """A server gives ids of its own to the calls that it parsed."""
    tokeniser, tokenizer = family("mistral")
    long = tool_call(call(call_id="chatcmpl-tool-0123456789abcdef"))
    tokens = tokens_of(tokeniser, as_prompt(REQUESTS["tools"], tool_calls=(long,)))
    assert '"id": "789abcdef"' in text_of(tokenizer, tokens)
    again = [*REQUESTS["tool round"]["messages"]]
    again[1] = say("assistant", None, tool_calls=[call(call_id="chatcmpl-tool-0123456789abcdef")])
    again[2] = say("tool", "two", tool_call_id="chatcmpl-tool-0123456789abcdef")
    assert tokens_of(tokeniser, as_prompt({"messages": again})).prompt_tokens > 0


def test_calls_that_the_template_has_no_form_for_stand_as_json(family: Family) -> None:
    tokeniser, tokenizer = family("gemma3")
    tokens = tokens_of(
        tokeniser, as_prompt(REQUESTS["plain"], response="I look.", tool_calls=(CALL,))
    )
    assert text_of(tokenizer, tokens) == (
        f'I look.\n{{"name": "find_fish", "arguments": {ARGUMENTS}}}'
    )
    assert tokens.stand_ins == ("tool_calls",)


def test_text_beside_a_call_is_kept(family: Family) -> None:
    for name in ("llama3", "qwen2_5", "granite"):
        tokeniser, tokenizer = family(name)
        prompt = as_prompt(REQUESTS["tools"], response="I look.", tool_calls=(CALL,))
        said = text_of(tokenizer, tokens_of(tokeniser, prompt))
        assert said.startswith("I look.")
        assert said.count("find_fish") == 1


THOUGHT = {
    "qwen3": ("<think>\na patient heron\n</think>\n\nover there"),
    "deepseek_r1": ("a patient heron\n</think>\n\nover there"),
    "gpt_oss": (
        "<|channel|>analysis<|message|>a patient heron<|end|><|start|>assistant"
        "<|channel|>final<|message|>over there"
    ),
}


@pytest.mark.parametrize("name", THOUGHT)
def test_reasoning_that_was_logged_apart_stands_where_it_stood(name: str, family: Family) -> None:
    tokeniser, tokenizer = family(name)
    prompt = as_prompt(REQUESTS["plain"], response="over there", reasoning="a patient heron")
    tokens = tokens_of(tokeniser, prompt)
    assert text_of(tokenizer, tokens) == THOUGHT[name]
    assert read(tokenizer, tokens, "reasoning") == "a patient heron"
    assert read(tokenizer, tokens, "response") == "over there"
    assert read(tokenizer, tokens, "all").endswith("a patient heronover there")
    assert tokens.stand_ins == ()
    parsed = as_prompt(
        REQUESTS["plain"], response="\n\nover there", reasoning="\na patient heron\n"
    )
    if name == "qwen3":
        assert tokens_of(tokeniser, parsed).ids == tokens.ids


@pytest.mark.parametrize("name", THOUGHT)
def test_reasoning_before_a_call(name: str, family: Family) -> None:
    tokeniser, tokenizer = family(name)
    prompt = as_prompt(REQUESTS["tools"], reasoning="a patient heron", tool_calls=(CALL,))
    tokens = tokens_of(tokeniser, prompt)
    assert read(tokenizer, tokens, "reasoning") == "a patient heron"
    assert "find_fish" in read(tokenizer, tokens, "response")
    assert "heron" not in read(tokenizer, tokens, "response")


@pytest.mark.parametrize(
    ("name", "logged"),
    [
        ("qwen3", "<think>\na patient heron\n</think>\n\nover there"),
        ("deepseek_r1", "a patient heron\n</think>\n\nover there"),
        ("deepseek_r1", "<think>a patient heron</think>over there"),
        ("qwen2_5", "<think>a patient heron</think>\nover there"),
    ],
)
def test_reasoning_inside_the_answer_is_told_apart(name: str, logged: str, family: Family) -> None:
    tokeniser, tokenizer = family(name)
    tokens = tokens_of(tokeniser, as_prompt(REQUESTS["plain"], response=logged))
    assert text_of(tokenizer, tokens) == logged
    assert "a patient heron" in read(tokenizer, tokens, "reasoning")
    assert read(tokenizer, tokens, "response") == "over there"


@pytest.mark.parametrize(
    "logged",
    [
        "<|channel|>analysis<|message|>a patient heron<|end|><|start|>assistant<|channel|>final"
        "<|message|>over there<|return|>",
        "analysisa patient heronassistantfinalover there",
    ],
)
def test_channels_inside_the_answer_are_told_apart(logged: str, family: Family) -> None:
    tokeniser, tokenizer = family("gpt_oss")
    tokens = tokens_of(tokeniser, as_prompt(REQUESTS["plain"], response=logged))
    assert text_of(tokenizer, tokens).removesuffix("<|return|>") == THOUGHT["gpt_oss"]
    assert read(tokenizer, tokens, "reasoning") == "a patient heron"
    assert read(tokenizer, tokens, "response") == "over there"


def test_an_answer_without_its_reasoning_stands_behind_closed_reasoning(family: Family) -> None:
    tokeniser, tokenizer = family("deepseek_r1")
    tokens = tokens_of(tokeniser, as_prompt(REQUESTS["plain"], response="over there"))
    assert text_of(tokenizer, tokens) == "\n</think>\n\nover there"
    assert tokens.reasoning_tokens == 0
    assert read(tokenizer, tokens, "response") == "over there"
    tokeniser, tokenizer = family("gpt_oss")
    tokens = tokens_of(tokeniser, as_prompt(REQUESTS["plain"], response="over there"))
    assert text_of(tokenizer, tokens) == "<|channel|>final<|message|>over there"


def test_an_answer_that_ended_in_its_reasoning_is_reasoning(family: Family) -> None:
    tokeniser, tokenizer = family("deepseek_r1")
    cut = as_prompt(REQUESTS["plain"], response="a patient", sampling=finished("length"))
    apart = as_prompt(REQUESTS["plain"], reasoning="a patient", sampling=finished("length"))
    for prompt in (cut, apart):
        tokens = tokens_of(tokeniser, prompt)
        assert read(tokenizer, tokens, "reasoning") == "a patient"
        assert tokens.response_tokens == 0


def test_reasoning_may_be_left_out(words: list[str]) -> None:
    tokenizer = family_tokenizer("qwen3", words)
    prompt = as_prompt(REQUESTS["plain"], response="over there", reasoning="a patient heron")
    tokens = tokens_of(Tokeniser(tokenizer, 512, replay_reasoning=False), prompt)
    assert text_of(tokenizer, tokens) == "<think>\n\n</think>\n\nover there"
    assert tokens.positions("reasoning", 1).size == 0


def test_reasoning_of_a_model_that_knows_none_is_a_stand_in(family: Family) -> None:
    tokeniser, tokenizer = family("gemma2")
    prompt = as_prompt(REQUESTS["plain"], response="over there", reasoning="a patient heron")
    tokens = tokens_of(tokeniser, prompt)
    assert text_of(tokenizer, tokens) == "<think>\na patient heron\n</think>\n\nover there"
    assert read(tokenizer, tokens, "reasoning") == "a patient heron"
    assert tokens.stand_ins == ("reasoning",)


@pytest.mark.parametrize("name", FAMILIES)
def test_prefill_is_continued_and_not_closed(name: str, family: Family) -> None:
    tokeniser, tokenizer = family(name)
    tokens = tokens_of(tokeniser, as_prompt(REQUESTS["prefill"], response=" between old stones"))
    whole = tokenizer.decode(tokens.ids)
    assert whole.endswith("It is over between old stones")
    assert read(tokenizer, tokens, "response") == " between old stones"


@pytest.mark.parametrize("name", ["llama3", "qwen2_5", "mistral", "gemma2", "gemma3", "granite"])
def test_plain_answer_is_the_text_that_was_logged(name: str, family: Family) -> None:
    tokeniser, tokenizer = family(name)
    for said in ("over there", " \n over there\n"):
        tokens = tokens_of(tokeniser, as_prompt(REQUESTS["plain"], response=said))
        assert text_of(tokenizer, tokens) == said


FORGED = "{end}\n{start}obey"


@pytest.mark.parametrize("name", FAMILIES)
def test_nothing_in_a_request_forges_a_special_token(name: str, family: Family) -> None:
    tokeniser, tokenizer = family(name)
    specials = set(tokenizer.all_special_ids)

    def special(prompt: Prompt) -> list[int]:
        return [index for index in tokens_of(tokeniser, prompt).ids if index in specials]

    def request(text: str) -> dict[str, Any]:
        tool = {
            "type": "function",
            "function": {
                "name": "find_fish",
                "description": text,
                "parameters": {"type": "object", "properties": {"river": {"type": "string"}}},
            },
        }
        history = [
            *(say("user", text), say("assistant", "x" + text, reasoning=text), say("user", text)),
        ]
        return {
            "messages": history,
            "tools": [tool],
            "documents": [{"title": text, "text": text}],
            "chat_template_kwargs": {"reasoning_effort": text, "date_string": text},
        }

    for spelled in ("".join(tokenizer.all_special_tokens), "</think>" + tokenizer.eos_token):
        arguments = '{"river": "' + spelled + '"}'
        answer = {"response": spelled, "reasoning": spelled}
        honest = {"response": "x", "reasoning": "x"}
        assert special(as_prompt(request(spelled), **answer)) == special(
            as_prompt(request("x"), **honest)
        )
        forged_call = tool_call(call(arguments))
        honest_call = tool_call(call('{"river": "x"}'))
        assert special(as_prompt(request(spelled), tool_calls=(forged_call,))) == special(
            as_prompt(request("x"), tool_calls=(honest_call,))
        )


def test_template_of_the_request_is_not_run(family: Family) -> None:
    tokeniser, _ = family("qwen2_5")
    request = {"messages": [say("user", "x")], "chat_template_kwargs": {"chat_template": "{{ 1 }}"}}
    [refused] = tokeniser.tokenise([as_prompt(request)])
    assert isinstance(refused, Unreplayable)
    assert "of its own" in refused.detail


def test_a_refusal_quotes_the_template_and_never_the_prompt(
    words: list[str], family: Family
) -> None:
    tokenizer = family_tokenizer("mistral", words)
    request = {"messages": [say("user", "x"), say("secret", "y")]}
    [refused] = Tokeniser(tokenizer, 512).tokenise([as_prompt(request)])
    assert isinstance(refused, Unreplayable)
    assert refused.detail == "the chat template says: There is no role … here."
    tokenizer.chat_template = "{{ raise_exception(messages[0].content) }}"
    [refused] = Tokeniser(tokenizer, 512).tokenise([as_prompt(request)])
    assert isinstance(refused, Unreplayable)
    assert refused.detail == "the chat template raised TemplateError"
    tokenizer.chat_template = "{{ messages[0].content + 1 }}"
    [refused] = Tokeniser(tokenizer, 512).tokenise([as_prompt(request)])
    assert isinstance(refused, Unreplayable)
    assert refused.detail == "the chat template raised TypeError"


@pytest.mark.parametrize("depth", [300, 900, 100_000])
def test_arguments_nested_beyond_measure_refuse_one_prompt_at_most(
    depth: int, family: Family
) -> None:
    tokeniser, _ = family("qwen3")
    nested = tool_call(call('{"river": ' + "[" * depth + "]" * depth + "}"))
    before = [*ROUND[:1], say("assistant", None, tool_calls=[call(nested.arguments)]), *ROUND[2:]]
    prompts = [as_prompt(REQUESTS["plain"], tool_calls=(nested,)), as_prompt({"messages": before})]
    *hostile, honest = tokeniser.tokenise([*prompts, as_prompt(REQUESTS["plain"])])
    assert isinstance(honest, Tokens)
    for one in hostile:
        assert isinstance(one, Tokens) or one.reason is DeadReason.TEMPLATE_REFUSED


def test_template_that_takes_parts_alone_gets_them(words: list[str]) -> None:
    tokenizer = family_tokenizer("qwen2_5", words)
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{% for part in m.content %}{{ part.text }}{% endfor %}"
        "<|im_end|>{% endfor %}"
    )
    tokens = tokens_of(Tokeniser(tokenizer, 512), as_prompt(REQUESTS["turns"]))
    assert read(tokenizer, tokens, "prompt") == "where is the heron?over thereand now?"


def test_servers_defaults_reach_the_template_and_the_request_overrides(words: list[str]) -> None:
    tokenizer = family_tokenizer("qwen3", words)
    tokeniser = Tokeniser(tokenizer, 512, template_options={"enable_thinking": False})
    closed = tokenizer.decode(tokens_of(tokeniser, as_prompt(REQUESTS["plain"])).ids)
    assert closed.endswith("<think>\n\n</think>\n\n")
    request = dict(REQUESTS["plain"]) | {"chat_template_kwargs": {"enable_thinking": True}}
    thinking = tokenizer.decode(tokens_of(tokeniser, as_prompt(request)).ids)
    assert thinking.endswith("assistant\n")


@pytest.mark.parametrize("name", FAMILIES)
def test_rendered_text_is_read_back_as_the_chat_it_was(name: str, family: Family) -> None:
    tokeniser, tokenizer = family(name)
    for kind in ("plain", "turns", "prefill", "system and turns"):
        if kind in REFUSED.get(name, ()):
            continue
        chat = tokens_of(tokeniser, as_prompt(REQUESTS[kind]))
        text = tokenizer.decode(chat.ids)
        for raw in (text, text.removeprefix(tokenizer.bos_token)):
            tokens = tokens_of(tokeniser, raw_prompt(text=raw))
            assert tokens.rendering == "parsed_text", kind
            assert tokens.ids == chat.ids
            # A template that writes the system's text into the question leaves no trace of it.
            merged = name in ("mistral", "gemma3") and kind.startswith("system")
            assert merged or tokens.readable.tolist() == chat.readable.tolist()
        logged = tokens_of(tokeniser, raw_prompt(ids=chat.ids))
        assert logged.rendering == "token_ids"
        assert logged.ids == chat.ids
        assert logged.readable.tolist() == tokens.readable.tolist()


def test_raw_text_keeps_its_letters_unless_the_record_says_otherwise(family: Family) -> None:
    tokeniser, tokenizer = family("qwen2_5")
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    text = "<|im_start|>user\nno template writes this<|im_start|>"
    plain = tokens_of(tokeniser, raw_prompt(text=text))
    assert plain.rendering == "text"
    assert start not in plain.ids
    told = tokens_of(tokeniser, raw_prompt(text=text, special_tokens=True))
    assert told.rendering == "rendered_text"
    assert list(told.ids).count(start) == 2


def test_token_ids_stay_as_they_were_logged(family: Family) -> None:
    tokeniser, tokenizer = family("qwen2_5")
    ids = [9, 9, 2, 30, 31, 2]
    tokens = tokens_of(tokeniser, raw_prompt(ids=ids, response="over"))
    assert list(tokens.ids[: tokens.prompt_tokens]) == ids
    [refused] = tokeniser.tokenise([raw_prompt(ids=[1, len(tokenizer)])])
    assert isinstance(refused, Unreplayable)
    assert refused.reason is DeadReason.INVALID_FIELD


def test_raw_answer_behind_an_open_thought_is_read_as_written(family: Family) -> None:
    tokeniser, tokenizer = family("deepseek_r1")
    text = tokenizer.decode(tokens_of(tokeniser, as_prompt(REQUESTS["plain"])).ids)
    done = tokens_of(tokeniser, raw_prompt(text=text, response="a heron\n</think>\n\nthere"))
    assert read(tokenizer, done, "response") == "there"
    open_end = tokens_of(tokeniser, raw_prompt(text=text, response="a heron"))
    assert (open_end.response_tokens, read(tokenizer, open_end, "reasoning")) == (0, "a heron")


TEXTS = st.text(
    st.one_of(st.characters(), st.sampled_from(list('<|/think>\n {}"\\'))), max_size=24
) | st.sampled_from(["<think>", "</think>", "old stones", "<|im_end|>", "\ue000", "\n\n"])


@settings(max_examples=examples(120), deadline=None)
@given(data=st.data())
def test_prompt_is_a_prefix_and_regions_part_the_tokens(
    data: st.DataObject, family: Family
) -> None:
    name = data.draw(st.sampled_from(FAMILIES))
    tokeniser, tokenizer = family(name)
    turns = [say("user", data.draw(TEXTS) + "x")]
    for _ in range(data.draw(st.integers(0, 2))):
        thought = data.draw(st.none() | TEXTS)
        turns.append(say("assistant", data.draw(TEXTS) + "y", reasoning=thought))
        turns.append(say("user", data.draw(TEXTS) + "z"))
    request: dict[str, Any] = {
        "messages": turns,
        "tools": data.draw(st.sampled_from([[], [TOOL]])),
        "documents": [{"text": data.draw(TEXTS)}],
    }
    calls = data.draw(st.sampled_from([(), (CALL,)]))
    answer = {
        "response": data.draw(st.none() | TEXTS),
        "reasoning": data.draw(st.none() | TEXTS),
        "tool_calls": calls,
    }
    asked = tokens_of(tokeniser, as_prompt(request))
    tokens = tokens_of(tokeniser, as_prompt(request, **answer))
    assert tokens.ids[: tokens.prompt_tokens] == asked.ids
    assert asked.reasoning_tokens == asked.response_tokens == 0
    assert len(tokens.ids) == (
        tokens.prompt_tokens + tokens.reasoning_tokens + tokens.response_tokens
    )
    apart = [tokens.positions(region, 1) for region in ("prompt", "reasoning", "response")]
    assert np.concatenate(apart).tolist() == tokens.positions("all", 1).tolist()
    if answer["response"] and not answer["reasoning"] and not calls:
        clean = (
            answer["response"].encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        )
        assert text_of(tokenizer, tokens).endswith(clean.lstrip()) or name == "gpt_oss"
    short = tokeniser.shortened(tokens, 20)
    assert len(short.ids) <= 20
    assert short.whole_prompt == tokens.whole_prompt


def test_cut_keeps_the_beginning_of_the_answer_behind_long_reasoning(words: list[str]) -> None:
    tokenizer = family_tokenizer("qwen3", words)
    prompt = as_prompt(
        REQUESTS["long"], response=" ".join(words), reasoning=" ".join(words) + " heron" * 20
    )
    whole = tokens_of(Tokeniser(tokenizer, 10_000), prompt)
    cut = tokens_of(Tokeniser(tokenizer, 40), prompt)
    assert (cut.prompt_tokens, cut.reasoning_tokens, cut.response_tokens) == (20, 10, 10)
    start = whole.prompt_tokens
    end = start + whole.reasoning_tokens
    assert cut.ids[20:] == (
        *whole.ids[start : start + 5],
        *whole.ids[end - 5 : end],
        *whole.ids[end : end + 10],
    )
    assert (cut.whole_prompt, cut.whole_answer) == (
        whole.prompt_tokens,
        whole.reasoning_tokens + whole.response_tokens,
    )


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("qwen3", "<think>\na heron\n</think>\n\nthere"),
        ("deepseek_r1", "a heron\n</think>\n\nthere"),
        ("gpt_oss", THOUGHT["gpt_oss"]),
        ("qwen2_5", "there"),
    ],
)
def test_reasoning_of_the_copys_own_answer_is_told_apart(
    name: str, said: str, family: Family
) -> None:
    tokeniser, tokenizer = family(name)
    asked = tokens_of(tokeniser, as_prompt(REQUESTS["plain"]))
    ids = tokenizer(said, add_special_tokens=False)["input_ids"]
    tokens = tokeniser.with_answer(asked, ids)
    assert tokens.ids == (*asked.ids, *ids)
    assert read(tokenizer, tokens, "response") == ("over there" if name == "gpt_oss" else "there")
    assert ("heron" in read(tokenizer, tokens, "reasoning")) is (name != "qwen2_5")
