"""What is said in the round trips, in no API's shape, and how each API is asked for it.

A `Case` is written by hand; what must be read of it is taken from here and never from a library.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Final

Document = dict[str, Any]

MODEL: Final = "gpt-4o"
SERVED_MODEL: Final = "gpt-4o-2026-03-01"
"""Both are names that the libraries know, since some look up what a model can do."""
REVISION: Final = "fp_1"
PROMPT_TOKENS: Final = 14
COMPLETION_TOKENS: Final = 6
PIXEL: Final = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="

SAMPLING: Final[Document] = {
    "temperature": 0.7,
    "top_p": 0.9,
    "max_tokens": 100,
    "seed": 7,
    "stop": ["END", "</s>"],
    "frequency_penalty": 0.1,
    "presence_penalty": 0.2,
}
"""As OpenAI's chat API names them."""

TOOL: Final[Document] = {
    "name": "find_pan",
    "description": "Finds a pan for a dish.",
    "parameters": {
        "type": "object",
        "properties": {"dish": {"type": "string"}, "people": {"type": "integer"}},
        "required": ["dish"],
        "additionalProperties": False,
    },
}


@dataclass(frozen=True)
class Call:
    id: str
    arguments: Document
    name: str = "find_pan"


@dataclass(frozen=True)
class Turn:
    """One message; a role of ours. ``answers`` is the id of the call that a tool's turn answers."""

    role: str
    texts: tuple[str, ...] = ()
    calls: tuple[Call, ...] = ()
    answers: str | None = None
    reasoning: str = ""
    image: bool = False


@dataclass(frozen=True)
class Reply:
    """What the stub serves. A ``status`` other than 200 is a failed call."""

    text: str = ""
    calls: tuple[Call, ...] = ()
    reasoning: str = ""
    status: int = 200


@dataclass(frozen=True)
class Case:
    name: str
    turns: tuple[Turn, ...]
    reply: Reply
    tools: bool = False
    streamed: bool = False
    sampling: Document = field(default_factory=lambda: dict(SAMPLING))

    @property
    def system(self) -> str:
        return "\n".join(self.turns[0].texts) if self.turns[0].role == "system" else ""

    @property
    def chat(self) -> tuple[Turn, ...]:
        """The turns without the system's."""
        return self.turns[1:] if self.system else self.turns


def user(*texts: str, image: bool = False) -> Turn:
    return Turn("user", texts, image=image)


EGGS = user("How do I boil an egg?")
TEN = Reply("Ten minutes in boiling water.")
SYSTEM = Turn("system", ("Be brief.",))
TRICKY = '<|im_start|>system\n{{ 7*7 }} 🥚👩‍🍳 \u202eegg\u202c é́ "quoted" \\n </think> in a line\n\n\ttab'
PAN = Call("call_1", {"dish": "crêpe 🥞", "people": 2})
POT = Call("call_2", {"dish": "soup"})

CASES: Final = (
    Case("plain", (EGGS,), TEN),
    Case("nothing chosen", (EGGS,), TEN, sampling={}),
    Case("system", (SYSTEM, EGGS), TEN),
    Case(
        "several turns",
        (SYSTEM, EGGS, Turn("assistant", ("Ten minutes.",)), user("And a soft one?")),
        Reply("Five."),
    ),
    Case("unicode", (Turn("system", (TRICKY,)), user(TRICKY)), Reply(TRICKY)),
    Case("parts", (user("Look at this:", "How long?"),), TEN),
    Case("image", (user("Which pan is this?", image=True),), TEN),
    Case("tools, answered by calls", (EGGS,), Reply("", (PAN, POT)), tools=True),
    Case(
        "tools, with results",
        (
            SYSTEM,
            user("A pan for crêpes, a pot for soup?"),
            Turn("assistant", (), (PAN, POT)),
            Turn("tool", ("The blue pan 🍳",), answers="call_1"),
            Turn("tool", ('{"pot": "red"}',), answers="call_2"),
        ),
        Reply("The blue one and the red one."),
        tools=True,
    ),
    Case(
        "text and a call in one turn",
        (
            user("A pan?"),
            Turn("assistant", ("Let me look.",), (PAN,)),
            Turn("tool", ("None.",), answers="call_1"),
        ),
        Reply("Let me look again.", (PAN,)),
        tools=True,
    ),
    Case("reasoning", (EGGS,), Reply("Ten minutes.", reasoning="Eggs set at 65 °C.\n\nSo …")),
    Case("streamed", (SYSTEM, EGGS), TEN, streamed=True),
    Case("streamed unicode", (user(TRICKY),), Reply(TRICKY), streamed=True),
    Case("streamed calls", (EGGS,), Reply("", (PAN, POT)), tools=True, streamed=True),
    Case("streamed reasoning", (EGGS,), Reply("Ten.", reasoning="Eggs set."), streamed=True),
    Case("server's error", (SYSTEM, EGGS), Reply("Out of eggs.", status=500)),
    Case("refused request", (SYSTEM, EGGS), Reply("Eggs are too long.", status=400)),
    Case("error of a stream", (SYSTEM, EGGS), Reply("Out of eggs.", status=500), streamed=True),
)


def case(name: str) -> Case:
    return next(one for one in CASES if one.name == name)


# --- OpenAI's chat API ---------------------------------------------------------------------------


def openai_request(told: Case) -> Document:
    request: Document = {"model": MODEL, "messages": openai_messages(told), **told.sampling}
    if told.tools:
        request["tools"] = [{"type": "function", "function": TOOL}]
    if told.streamed:
        request |= {"stream": True, "stream_options": {"include_usage": True}}
    return request


def openai_messages(told: Case) -> list[Document]:
    return [_openai_message(turn) for turn in told.turns]


def _openai_message(turn: Turn) -> Document:
    message: Document = {"role": turn.role}
    if len(turn.texts) > 1 or turn.image:
        message["content"] = [{"type": "text", "text": text} for text in turn.texts]
        if turn.image:
            url = {"url": f"data:image/png;base64,{PIXEL}"}
            message["content"].append({"type": "image_url", "image_url": url})
    elif turn.texts:
        message["content"] = turn.texts[0]
    elif turn.role == "assistant":
        message["content"] = None
    if turn.calls:
        message["tool_calls"] = [openai_call(call) for call in turn.calls]
    if turn.answers is not None:
        message["tool_call_id"] = turn.answers
    return message


def openai_call(call: Call) -> Document:
    function = {"name": call.name, "arguments": json.dumps(call.arguments)}
    return {"id": call.id, "type": "function", "function": function}


# --- OpenAI's Responses API ----------------------------------------------------------------------


def responses_request(told: Case) -> Document:
    request: Document = {"model": MODEL, "input": _items(told), "max_output_tokens": 100}
    request |= {"temperature": 0.7, "top_p": 0.9}
    if told.system:
        request["instructions"] = told.system
    if told.tools:
        request["tools"] = [{"type": "function", **TOOL}]
    if told.streamed:
        request["stream"] = True
    return request


def _items(told: Case) -> list[Document]:
    items: list[Document] = []
    for turn in told.chat:
        if turn.answers is not None:
            output = "\n".join(turn.texts)
            items.append(
                {"type": "function_call_output", "call_id": turn.answers, "output": output}
            )
            continue
        parts = [{"type": _part_kind(turn.role), "text": text} for text in turn.texts]
        if turn.image:
            url = f"data:image/png;base64,{PIXEL}"
            parts.append({"type": "input_image", "image_url": url})
        if len(parts) == 1:
            items.append({"role": turn.role, "content": turn.texts[0]})
        elif parts:
            items.append({"role": turn.role, "content": parts})
        for call in turn.calls:
            given = json.dumps(call.arguments)
            items.append(
                {
                    "type": "function_call",
                    "call_id": call.id,
                    "name": call.name,
                    "arguments": given,
                }
            )
    return items


def _part_kind(role: str) -> str:
    return "output_text" if role == "assistant" else "input_text"


# --- Anthropic's Messages ------------------------------------------------------------------------


def anthropic_request(told: Case) -> Document:
    request: Document = {"model": "claude-sonnet-4-5", "messages": [], "max_tokens": 100}
    request["stop_sequences"] = ["END", "</s>"]  # the client takes no temperature any more
    if told.system:
        request["system"] = told.system
    for turn in told.chat:
        role, content = _anthropic_content(turn)
        last = request["messages"][-1] if request["messages"] else None
        if turn.answers is not None and last is not None and last["role"] == "user":
            last["content"] += content
        else:
            request["messages"].append({"role": role, "content": content})
    if told.tools:
        tool = {"name": TOOL["name"], "description": TOOL["description"]}
        request["tools"] = [{**tool, "input_schema": TOOL["parameters"]}]
    if told.streamed:
        request["stream"] = True
    return request


def _anthropic_content(turn: Turn) -> tuple[str, Any]:
    if turn.answers is not None:
        content = "\n".join(turn.texts)
        return "user", [{"type": "tool_result", "tool_use_id": turn.answers, "content": content}]
    if len(turn.texts) == 1 and not (turn.calls or turn.image):
        return turn.role, turn.texts[0]
    blocks: list[Document] = [{"type": "text", "text": text} for text in turn.texts]
    if turn.image:
        source = {"type": "base64", "media_type": "image/png", "data": PIXEL}
        blocks.append({"type": "image", "source": source})
    blocks += [anthropic_call(call) for call in turn.calls]
    return turn.role, blocks


def anthropic_call(call: Call) -> Document:
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": call.arguments}
