"""A chat request in the JSON types that a template is given, in the shape in which vLLM gives them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from monitor.replay.provenance import Write, rewritten, values_rewritten
from monitor.values.prompts import Message, ToolCall

CALL_ID_LENGTH: Final = 9
"""Mistral's templates take ids of this length alone; vLLM cuts longer ones to their end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What `apply_chat_template` is called with, in JSON types."""

    messages: list[dict[str, Any]]
    tools: list[Any] = field(default_factory=list)
    documents: list[Any] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    generation_prompt: bool = True
    continues: bool = False

    def answered(self, message: dict[str, Any]) -> Request:
        """The request with an answer behind it: a turn of its own, or the rest of the last one."""
        before, last = self.messages[:-1], self.messages[-1]
        if not self.continues:
            before, last = self.messages, {"role": "assistant", "content": ""}
        content = last["content"] + message.get("content", "")
        return replace(
            self,
            messages=[*before, last | message | {"content": content}],
            generation_prompt=False,
            continues=False,
        )


def as_given(message: Message) -> dict[str, Any]:
    """``message`` in the shape in which vLLM gives it to the template."""
    entry: dict[str, Any] = {"role": message.role, "content": valid(message.content)}
    if message.name is not None:
        entry["name"] = valid(message.name)
    if message.tool_call_id is not None:
        entry["tool_call_id"] = valid(message.tool_call_id)
    if message.role == "assistant":
        if message.reasoning is not None:
            entry |= thought(valid(message.reasoning))
        if message.tool_calls:
            entry["tool_calls"] = [_call(call) for call in message.tool_calls]
    return entry


def thought(reasoning: str) -> dict[str, str]:
    return {"reasoning": reasoning, "reasoning_content": reasoning}


def _call(call: ToolCall) -> dict[str, Any]:
    named = {} if call.call_id is None else {"id": valid(call.call_id)}
    function = {"name": valid(call.name), "arguments": _object(call.arguments)}
    return named | {"type": "function", "function": function, "logged": valid(call.arguments)}


def _object(arguments: str) -> dict[str, Any]:
    """Arguments as vLLM hands them on: an object, and an empty one for anything else."""
    try:
        given = json.loads(arguments)
    except (ValueError, RecursionError):
        return {}
    return rewritten(given, valid) if isinstance(given, dict) else {}


def forms(request: Request) -> Iterator[Request]:
    """``request`` as vLLM hands it to the template, then in the forms that some templates need instead.

    Arguments as text (templates that add them to a text); ids cut to Mistral's length.
    """
    seen = []
    for as_text, shortened in ((False, False), (True, False), (False, True), (True, True)):
        messages = [_in_form(m, as_text=as_text, shortened=shortened) for m in request.messages]
        if messages not in seen:
            seen.append(messages)
            yield replace(request, messages=messages)


def call_forms(calls: Sequence[ToolCall]) -> Iterator[list[dict[str, Any]]]:
    message = {"tool_calls": [_call(call) for call in calls]}
    for form in forms(Request(messages=[message] if calls else [{}])):
        yield form.messages[0].get("tool_calls", [])


def _in_form(message: dict[str, Any], *, as_text: bool, shortened: bool) -> dict[str, Any]:
    def short(name: str) -> str:
        return name[-CALL_ID_LENGTH:] if shortened else name

    changed = dict(message)
    if "tool_call_id" in message:
        changed["tool_call_id"] = short(message["tool_call_id"])
    if "tool_calls" in message:
        calls = []
        for call in message["tool_calls"]:
            function = call["function"]
            if as_text:
                function = function | {"arguments": call["logged"]}
            given = {"type": "function", "function": function}
            calls.append(({"id": short(call["id"])} if "id" in call else {}) | given)
        changed["tool_calls"] = calls
    return changed


def marked_request(request: Request, write: Write) -> Request:
    """``request`` with the texts that count as content written by ``write``."""
    messages = []
    for message in request.messages:
        entry = message | {"content": write(message["content"])}
        if message.get("reasoning"):
            entry |= thought(write(message["reasoning"]))
        if "tool_calls" in message:
            entry["tool_calls"] = [
                call
                | {
                    "function": call["function"]
                    | {"arguments": values_rewritten(call["function"]["arguments"], write)}
                }
                for call in message["tool_calls"]
            ]
        messages.append(entry)
    return replace(request, messages=messages, documents=values_rewritten(request.documents, write))


def fenced_request(request: Request, write: Write) -> Request:
    """``request`` with every text in it, roles apart, written by ``write``."""
    return replace(
        request,
        messages=[
            {"role": m["role"]} | {key: rewritten(m[key], write) for key in m if key != "role"}
            for m in request.messages
        ],
        tools=rewritten(request.tools, write),
        documents=rewritten(request.documents, write),
        options=values_rewritten(request.options, write),
    )


def as_json(request: Request) -> str:
    return json.dumps(
        [
            request.messages,
            request.tools,
            request.documents,
            request.options,
            request.generation_prompt,
            request.continues,
        ],
        ensure_ascii=False,
        default=str,
    )


def valid(text: str) -> str:
    """``text`` with lone surrogates, which no tokenizer takes, replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
