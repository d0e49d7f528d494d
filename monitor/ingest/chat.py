"""Chat messages in OpenAI's shape, made plain: a role of ours and one string each.

Content is passed on untouched, also where it spells special tokens or template syntax: it is data.
Whoever renders it must not let the tokenizer read special tokens out of content.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from types import MappingProxyType
from typing import Any, Final

from monitor.ingest import fields
from monitor.ingest.fields import Unreadable
from monitor.values.prompts import DeadReason, Message

ROLES: Final = MappingProxyType(
    {
        "system": "system",
        "developer": "system",
        "user": "user",
        "assistant": "assistant",
        "model": "assistant",
        "tool": "tool",
        "function": "tool",
    }
)
"""Roles a record may use, and the ones they are replayed as. No other text reaches a template's role."""

_TEXT_PARTS: Final = MappingProxyType(
    {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
)


def role(value: object, where: str) -> str:
    if not isinstance(value, str) or value not in ROLES:
        raise Unreadable(
            DeadReason.INVALID_FIELD, f"{where}: expected one of {', '.join(sorted(ROLES))}"
        )
    return ROLES[value]


def messages(value: object, where: str) -> tuple[Message, ...]:
    return tuple(
        message(entry, f"{where}[{index}]")
        for index, entry in enumerate(fields.sequence(value, where))
    )


def message(value: object, where: str) -> Message:
    """One message; its tool calls follow its text, one per line, as `tool_call` writes them."""
    entry = fields.mapping(value, where)
    return Message(role=role(entry.get("role"), f"{where}.role"), content=spoken(entry, where))


def spoken(entry: dict[str, Any], where: str) -> str:
    """The text and tool calls of a message object; its role is not looked at."""
    lines = [content(entry.get("content"), f"{where}.content")]
    refusal = entry.get("refusal")
    if refusal is not None:
        lines.append(fields.text(refusal, f"{where}.refusal"))
    for index, call in enumerate(_calls(entry, where)):
        at = f"{where}.tool_calls[{index}]"
        called = fields.mapping(call, at)
        function = fields.mapping(called.get("function", called.get("custom")), f"{at}.function")
        arguments = function.get("arguments", function.get("input"))
        lines.append(tool_call(fields.text(function.get("name"), f"{at}.function.name"), arguments))
    return "\n".join(line for line in lines if line)


def _calls(entry: dict[str, Any], where: str) -> list[Any]:
    legacy, calls = entry.get("function_call"), entry.get("tool_calls")
    first = [] if legacy is None else [{"function": legacy}]
    return first + ([] if calls is None else fields.sequence(calls, f"{where}.tool_calls"))


def tool_call(called: str, arguments: object) -> str:
    """``{"name": "get_weather", "arguments": {"city": "Oslo"}}`` on one line.

    Arguments that come as a string are the model's own tokens and stay as they are.
    """
    given = arguments if isinstance(arguments, str) else plain(arguments or {})
    return f'{{"name": {plain(called)}, "arguments": {given or "{}"}}}'


def plain(value: object) -> str:
    """``value`` as JSON the way chat templates write it: spaces, no escapes beyond JSON's own."""
    return json.dumps(value, ensure_ascii=False)


def content(value: object, where: str) -> str:
    """A string, null, or a list of parts. Text parts are joined by newlines; images, audio and files
    are left out: the replayed model reads text."""
    match value:
        case None:
            return ""
        case str():
            return value
        case list():
            parts = (_part(part, f"{where}[{index}]") for index, part in enumerate(value))
            return "\n".join(part for part in parts if part)
    raise fields.invalid(where, "a string, null or an array of parts", value)


def _part(value: object, where: str) -> str:
    if isinstance(value, str):
        return value
    part = fields.mapping(value, where)
    kind = fields.text(part.get("type", "text"), f"{where}.type")
    if kind not in _TEXT_PARTS:
        return ""
    key = _TEXT_PARTS[kind]
    return fields.text(part.get(key), f"{where}.{key}")


def turns(
    given: Iterable[Message], response: str | None, where: str
) -> tuple[tuple[Message, ...], str | None]:
    """The messages before the served answer, and the answer.

    Where the record has none apart, a final assistant message is the answer. An empty answer is no
    answer. Refuses a chat without any text before the answer (EMPTY).
    """
    before = tuple(given)
    if not response:
        response = None
        if before and before[-1].role == "assistant":
            response = before[-1].content or None
            before = before[:-1]
    if not any(message.content.strip() for message in before):
        raise Unreadable(
            DeadReason.EMPTY, f"{where}: no text before the answer; log the messages sent"
        )
    return before, response


def raw(value: str, where: str) -> str:
    """A raw prompt, which must hold some text (EMPTY)."""
    if not value.strip():
        raise Unreadable(DeadReason.EMPTY, f"{where}: no text; log the prompt sent")
    return value
