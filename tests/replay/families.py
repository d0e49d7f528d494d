"""Model families for the tests: a small tokenizer with a family's special tokens, and its chat template.

The templates in ``templates/`` are written for these tests after each family's documented token layout.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from monitor.values.prompts import Message, Prompt, RecordKey, Sampling, ServedCounts, ToolCall

TEMPLATES = Path(__file__).with_name("templates")

SPECIALS: Mapping[str, tuple[str, ...]] = {
    "llama3": (
        *("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
        "<|eom_id|>",
    ),
    "qwen2_5": ("<|endoftext|>", "<|im_end|>", "<|im_start|>"),
    "qwen3": ("<|endoftext|>", "<|im_end|>", "<|im_start|>"),
    "mistral": (
        *("<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]"),
        *("[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
    ),
    "gemma2": ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
    "gemma3": ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>"),
    "gpt_oss": (
        *("<|startoftext|>", "<|return|>", "<|start|>", "<|end|>", "<|message|>", "<|channel|>"),
        *("<|call|>", "<|constrain|>"),
    ),
    "deepseek_r1": (
        *("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"),
        *("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>"),
        *("<｜tool▁call▁end｜>", "<｜tool▁sep｜>", "<｜tool▁outputs▁begin｜>"),
        *("<｜tool▁outputs▁end｜>", "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>"),
    ),
    "granite": (
        "<|bos|>",
        "<|end_of_text|>",
        "<|start_of_role|>",
        "<|end_of_role|>",
        "<|tool_call|>",
    ),
}
"""BOS and end of turn first."""
ORDINARY: Mapping[str, tuple[str, ...]] = {
    "qwen2_5": ("<tool_call>", "</tool_call>"),
    "qwen3": ("<tool_call>", "</tool_call>", "<think>", "</think>"),
    "deepseek_r1": ("<think>", "</think>"),
}
"""Tokens of their own that are no special tokens."""
FAMILIES = tuple(SPECIALS)

TOOL = {
    "type": "function",
    "function": {
        "name": "find_fish",
        "description": "Where the fish are.",
        "parameters": {
            "type": "object",
            "properties": {"river": {"type": "string"}, "deep": {"type": "integer"}},
            "required": ["river"],
        },
    },
}


def family_tokenizer(name: str, words: Sequence[str]) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of a few hundred tokens with the family's special ones and template."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        [" ".join(words)] * 4,
        trainers.BpeTrainer(
            vocab_size=420,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=list(SPECIALS[name]),
            show_progress=False,
        ),
    )
    backend.add_tokens([AddedToken(t, special=False) for t in ORDINARY.get(name, ())])
    bos, eos, *rest = SPECIALS[name]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=bos, eos_token=eos, additional_special_tokens=rest
    )
    tokenizer.chat_template = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    return tokenizer


def say(role: str, content: str | None = None, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content} | more


def call(arguments: str = '{"river": "old", "deep": 2}', call_id: str = "abcdefghi") -> Any:
    return {
        "id": call_id,
        "type": "function",
        "function": {"name": "find_fish", "arguments": arguments},
    }


ASKED = say("user", "where is the heron?")
ROUND = [
    ASKED,
    say("assistant", None, tool_calls=[call()]),
    say("tool", '{"fish": "two"}', tool_call_id="abcdefghi"),
]

REQUESTS: Mapping[str, Mapping[str, Any]] = {
    "plain": {"messages": [ASKED]},
    "system": {"messages": [say("system", "the old stones"), ASKED]},
    "blank around": {"messages": [say("user", "  a heron\n\n")]},
    "turns": {"messages": [ASKED, say("assistant", "over there"), say("user", "and now?")]},
    "system and turns": {
        "messages": [
            *(say("system", "be brief"), ASKED, say("assistant", " on stones "), say("user", "?")),
        ]
    },
    "unicode": {"messages": [say("user", "naïve 漢字 🙂 e\u0301 \U0001f9d1\u200d\U0001f680")]},
    "long": {"messages": [say("user", "the river ran over old stones\n" * 40)]},
    "tools": {"messages": [ASKED], "tools": [TOOL]},
    "tools and system": {"messages": [say("system", "the river"), ASKED], "tools": [TOOL]},
    "tool round": {"messages": ROUND, "tools": [TOOL]},
    "tool round and on": {
        "messages": [*ROUND, say("assistant", "two fish"), say("user", "thanks")],
        "tools": [TOOL],
    },
    "arguments not JSON": {
        "messages": [ASKED, say("assistant", "", tool_calls=[call("{river")]), *ROUND[2:]],
        "tools": [TOOL],
    },
    "prefill": {
        "messages": [ASKED, say("assistant", "It is over")],
        "continue_final_message": True,
    },
    "prefill with a blank": {
        "messages": [ASKED, say("assistant", "It is ")],
        "continue_final_message": True,
    },
    "reasoning before": {
        "messages": [
            *(ASKED, say("assistant", "there", reasoning="a patient heron waits")),
            say("user", "why?"),
        ]
    },
    "think in content": {
        "messages": [
            *(ASKED, say("assistant", "<think>\nwait\n</think>\n\nthere"), say("user", "why?")),
        ]
    },
    "options": {
        "messages": [ASKED],
        "chat_template_kwargs": {
            "enable_thinking": False,
            "reasoning_effort": "high",
            "thinking": True,
            "date_string": "1 May",
            "tool_choice": "auto",
        },
    },
    "documents": {
        "messages": [ASKED],
        "documents": [{"title": "fish", "text": "old stones"}, {"text": "two villages"}],
    },
    "two questions": {"messages": [ASKED, say("user", "and the path?")]},
    "assistant first": {"messages": [say("assistant", "good evening"), ASKED]},
}


def as_served(
    tokenizer: Any, request: Mapping[str, Any], *, text_arguments: bool = False
) -> list[int]:
    """Token ids of `apply_chat_template` with the request as vLLM passes it on."""
    messages = copy.deepcopy(list(request["messages"]))
    for message in messages:
        message["content"] = message["content"] or ""
        if "reasoning" in message:
            message["reasoning_content"] = message["reasoning"]
        for one in message.get("tool_calls", ()):
            if text_arguments:
                continue
            try:
                one["function"]["arguments"] = json.loads(one["function"]["arguments"])
            except ValueError:
                one["function"]["arguments"] = {}
    continues = bool(request.get("continue_final_message"))
    ids: list[int] = tokenizer.apply_chat_template(
        messages,
        tools=request.get("tools"),
        documents=request.get("documents"),
        tokenize=True,
        return_dict=False,
        add_generation_prompt=not continues,
        continue_final_message=continues,
        **request.get("chat_template_kwargs", {}),
    )
    return ids


def as_prompt(request: Mapping[str, Any], **answer: Any) -> Prompt:
    """The prompt that a reader makes of the request; ``answer``: further fields of `Prompt`."""
    options = dict(request.get("chat_template_kwargs", {}))
    if "documents" in request:
        options["documents"] = request["documents"]
    return Prompt(
        key=RecordKey(topic="prompts", partition=0, offset=0),
        recorded_at=datetime(2026, 1, 1, tzinfo=UTC),
        messages=tuple(
            Message(
                role=message["role"],
                content=message["content"] or "",
                reasoning=message.get("reasoning"),
                tool_calls=tuple(tool_call(one) for one in message.get("tool_calls", ())),
                tool_call_id=message.get("tool_call_id"),
            )
            for message in request["messages"]
        ),
        continues=bool(request.get("continue_final_message")),
        tools=tuple(request.get("tools", ())),
        template_options=options,
        **answer,
    )


def raw_prompt(*, text: str | None = None, ids: Sequence[int] | None = None, **more: Any) -> Prompt:
    """A prompt that was not logged as a chat."""
    return Prompt(
        key=RecordKey(topic="prompts", partition=0, offset=0),
        recorded_at=datetime(2026, 1, 1, tzinfo=UTC),
        text=text,
        token_ids=None if ids is None else tuple(ids),
        **more,
    )


def tool_call(one: Mapping[str, Any]) -> ToolCall:
    function = one["function"]
    return ToolCall(name=function["name"], arguments=function["arguments"], call_id=one.get("id"))


def finished(reason: str) -> Sampling:
    return Sampling(finish_reason=reason)


def counted(prompt: int | None = None, completion: int | None = None) -> ServedCounts:
    return ServedCounts(prompt_tokens=prompt, completion_tokens=completion)
