"""Content parts of every API, by the names that each gives them, and the turns that they make up.

A part is text, reasoning, a call, a call's result, or media. Media is left out and said so; a part of
any other kind is refused: half a message must not pass for a whole one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

from monitor.ingest import fields
from monitor.ingest.fields import Unreadable
from monitor.values.prompts import DeadReason, Message, ToolCall

LIMIT: Final = 10_000
"""Most parts of one message, and most messages of one chat."""

_PARTS_NESTING: Final = 4
"""How deep a list of text parts goes."""
_TEXT: Final = frozenset({"text", "input_text", "output_text", "summary_text"})
_REASONING: Final = frozenset({"reasoning", "thinking", "reasoning_text", "reasoning.text"})
_MEDIA: Final = frozenset(
    {
        *("image", "image_url", "input_image", "image_file", "audio", "input_audio", "audio_url"),
        *(
            "output_audio",
            "video",
            "video_url",
            "input_video",
            "file",
            "input_file",
            "media",
            "pdf",
        ),
        *("blob", "uri", "file_url", "reasoning-file", "inlineData", "inline_data", "fileData"),
        "file_data",
    }
)
_SILENT: Final = frozenset(
    {"step-start", "source-url", "source-document", "cachePoint", "cache_control"}
)
"""Marks of clients and caches, which the model is not shown."""
_SEALED: Final = frozenset({"redacted_thinking", "reasoning.encrypted", "encrypted"})


def plain(value: object) -> str:
    """``value`` as JSON the way chat templates write it: spaces, no escapes beyond JSON's own."""
    return json.dumps(value, ensure_ascii=False)


def arguments(value: object) -> str:
    """A call's arguments as JSON text; a string is the model's own tokens and stays as it is."""
    given = value if isinstance(value, str) else plain({} if value is None else value)
    return given or "{}"


def joined(texts: list[str]) -> str:
    if len(texts) == 1:
        return texts[0]
    return "\n".join(text for text in texts if text)


class Speech:
    """One message being read: it becomes one turn, or several where results of calls stand in it."""

    def __init__(self, role: str) -> None:
        self.role = role
        self.turns: list[Message] = []
        self.media = False
        self.texts: list[str] = []
        self.reasoning: list[str] = []
        self.calls: list[ToolCall] = []

    def call(self, name: object, given: object, call_id: object, where: str) -> None:
        self.calls.append(
            ToolCall(
                name=fields.text(name, f"{where}.name"),
                arguments=arguments(given),
                call_id=call_id if isinstance(call_id, str) and call_id else None,
            )
        )

    def result(self, content: str, call_id: object, name: object = None) -> None:
        """A call's result is a turn of its own; what was said before it is another."""
        self._close()
        self.turns.append(
            Message(
                role="tool",
                content=content,
                tool_call_id=call_id if isinstance(call_id, str) and call_id else None,
                name=name if isinstance(name, str) and fields.is_name(name) else None,
            )
        )

    def end(self, *, call_id: object = None, name: object = None) -> list[Message]:
        """The turns, at least one."""
        if not self.turns:
            self._close(
                always=True,
                call_id=call_id if isinstance(call_id, str) and call_id else None,
                name=name if isinstance(name, str) and fields.is_name(name) else None,
            )
        else:
            self._close()
        return self.turns

    def _close(
        self, *, always: bool = False, call_id: str | None = None, name: str | None = None
    ) -> None:
        content, reasoning = joined(self.texts), joined(self.reasoning)
        if always or content or reasoning or self.calls:
            self.turns.append(
                Message(
                    role=self.role,
                    content=content,
                    reasoning=reasoning or None,
                    tool_calls=tuple(self.calls),
                    tool_call_id=call_id,
                    name=name,
                )
            )
        self.texts, self.reasoning, self.calls = [], [], []


def read(parts: list[Any], where: str, speech: Speech) -> None:
    fields.within(len(parts), LIMIT, where, "parts")
    for index, part in enumerate(parts):
        if isinstance(part, str):
            speech.texts.append(part)
        else:
            _part(fields.mapping(part, f"{where}[{index}]"), f"{where}[{index}]", speech)


def _part(part: dict[str, Any], where: str, speech: Speech) -> None:
    kind = part.get("type")
    if kind is None:
        return _untyped(part, where, speech)
    if not isinstance(kind, str):
        raise fields.invalid(f"{where}.type", "a string", kind)
    if kind in _TEXT:
        speech.texts.append(_text_of(part, where))
    elif kind in _REASONING:
        speech.reasoning.append(thought(part, where))
    elif kind == "refusal":
        speech.texts.append(fields.text(part.get("refusal"), f"{where}.refusal"))
    elif kind in _MEDIA:
        speech.media = True
    elif kind in _READERS:
        _READERS[kind](part, where, speech)
    elif kind == "dynamic-tool" or (kind.startswith("tool-") and "toolCallId" in part):
        _vercel_ui_tool(part, where, speech)
    elif kind not in _SILENT and kind not in _SEALED and not kind.startswith("data-"):
        raise unknown(f"{where}.type")


def unknown(where: str) -> Unreadable:
    return Unreadable(
        DeadReason.INVALID_FIELD,
        f"{where}: a content part of no kind that is read; see docs/records.md",
    )


def _text_of(part: Mapping[str, Any], where: str) -> str:
    """``text``, or ``content`` as OpenTelemetry has it."""
    value, key = part.get("text"), "text"
    if value is None and "content" in part:
        value, key = part["content"], "content"
    return fields.text(value, f"{where}.{key}")


def thought(part: Mapping[str, Any], where: str) -> str:
    """The text of a reasoning part: a string, or a list of text parts, under any of its names."""
    found: list[str] = []
    for key in ("text", "content", "thinking", "reasoning", "summary"):
        value = _opened_thought(part.get(key))
        if isinstance(value, str):
            found.append(value)
        elif isinstance(value, list):
            for index, inner in enumerate(value):
                at = f"{where}.{key}[{index}]"
                found.append(
                    inner if isinstance(inner, str) else _text_of(fields.mapping(inner, at), at)
                )
        if found and key != "summary":
            break
    return joined(found)


def _opened_thought(value: object) -> object:
    """Text parts that were written as JSON (OpenLLMetry) as a list; any other text as it is."""
    if not isinstance(value, str) or not value.startswith('[{"'):
        return value
    try:
        listed = fields.decode(value, "reasoning", _PARTS_NESTING)
    except Unreadable:
        return value
    known = _TEXT | _REASONING
    whole = isinstance(listed, list) and all(
        isinstance(part, dict) and part.get("type") in known and isinstance(part.get("text"), str)
        for part in listed
    )
    return listed if whole else value


def _untyped(part: dict[str, Any], where: str, speech: Speech) -> None:
    """Bedrock Converse and Gemini name a part by its key."""
    read_any = False
    if isinstance(part.get("text"), str):
        (speech.reasoning if part.get("thought") is True else speech.texts).append(part["text"])
        read_any = True
    for key, value in part.items():
        if key in _KEYED:
            _KEYED[key](value, f"{where}.{key}", speech)
        elif key in _MEDIA or (key == "document" and isinstance(value, dict)):
            speech.media = True
        elif key not in _SILENT:
            continue
        read_any = True
    if not read_any:
        if "text" in part or not part:
            raise fields.invalid(f"{where}.text", "a string", part.get("text"))
        raise unknown(where)


def _tool_use(part: Mapping[str, Any], where: str, speech: Speech) -> None:
    speech.call(part.get("name"), part.get("input"), part.get("id"), where)


def _tool_call(part: Mapping[str, Any], where: str, speech: Speech) -> None:
    """OpenTelemetry, and the same with OpenAI's ``function`` inside."""
    function = part.get("function")
    inner = fields.mapping(function, f"{where}.function") if function is not None else part
    speech.call(inner.get("name"), inner.get("arguments"), part.get("id"), where)


def _function_call(part: Mapping[str, Any], where: str, speech: Speech) -> None:
    call_id = part.get("call_id", part.get("id"))
    speech.call(part.get("name"), part.get("arguments", part.get("input")), call_id, where)


def _vercel_call(part: Mapping[str, Any], where: str, speech: Speech) -> None:
    given = part.get("input", part.get("args"))
    speech.call(part.get("toolName"), given, part.get("toolCallId"), where)


def _vercel_ui_tool(part: Mapping[str, Any], where: str, speech: Speech) -> None:
    """A part of a user interface's message that holds a call and, once it is there, its result."""
    name = part.get("toolName") or str(part["type"]).removeprefix("tool-")
    speech.call(name, part.get("input", part.get("args")), part.get("toolCallId"), where)
    for key in ("output", "errorText", "result"):
        if part.get(key) is not None:
            speech.result(structured(part[key]), part.get("toolCallId"), name)
            return


def _tool_result(part: Mapping[str, Any], where: str, speech: Speech) -> None:
    content = told(part.get("content"), f"{where}.content", speech)
    speech.result(content, part.get("tool_use_id", part.get("toolUseId")))


def _otel_result(part: Mapping[str, Any], where: str, speech: Speech) -> None:
    speech.result(structured(part.get("response", part.get("result"))), part.get("id"))


def _function_output(part: Mapping[str, Any], where: str, speech: Speech) -> None:
    speech.result(told(part.get("output"), f"{where}.output", speech), part.get("call_id"))


def _vercel_result(part: Mapping[str, Any], where: str, speech: Speech) -> None:
    output = part.get("output", part.get("result"))
    if isinstance(output, dict) and isinstance(output.get("type"), str) and "value" in output:
        value = output["value"]
        listed = output["type"] == "content"
        content = told(value, f"{where}.output.value", speech) if listed else structured(value)
    else:
        content = structured(output)
    speech.result(content, part.get("toolCallId"), part.get("toolName"))


def _function_response(part: Mapping[str, Any], where: str, speech: Speech) -> None:
    speech.result(structured(part.get("response")), part.get("id"), part.get("name"))


def _document(part: Mapping[str, Any], where: str, speech: Speech) -> None:
    """A document block: its text where it is given as text, else a file."""
    source = part.get("source")
    if isinstance(source, dict) and source.get("type") == "text":
        speech.texts.append(fields.text(source.get("data"), f"{where}.source.data"))
    elif isinstance(source, dict) and source.get("type") == "content":
        speech.texts.append(told(source.get("content"), f"{where}.source.content", speech))
    else:
        speech.media = True


def structured(value: object) -> str:
    """A result: text as it is, anything else as JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else plain(value)


def told(value: object, where: str, speech: Speech) -> str:
    """A result given as text, as parts of text (joined by newlines), or as data (JSON)."""
    if not isinstance(value, list):
        return structured(value)
    fields.within(len(value), LIMIT, where, "parts")
    texts: list[str] = []
    for index, part in enumerate(value):
        match part:
            case str():
                texts.append(part)
            case {"text": str() as text}:
                texts.append(text)
            case {"json": inner}:
                texts.append(plain(inner))
            case {"type": str() as kind} if kind in _MEDIA or kind == "document":
                speech.media = True
            case {"image": _} | {"video": _} | {"document": _}:
                speech.media = True
            case {"type": str() as kind} if kind in _TEXT:
                raise fields.invalid(f"{where}[{index}].text", "a string", part.get("text"))
            case _:
                return plain(value)
    return joined(texts)


def _keyed_call(value: object, where: str, speech: Speech) -> None:
    part = fields.mapping(value, where)
    call_id = part.get("toolUseId", part.get("id"))
    speech.call(part.get("name"), part.get("input", part.get("args")), call_id, where)


def _keyed_reasoning(value: object, where: str, speech: Speech) -> None:
    inner = fields.mapping(value, where).get("reasoningText")
    if isinstance(inner, dict):
        speech.reasoning.append(fields.text(inner.get("text"), f"{where}.reasoningText.text"))


def _keyed_guard(value: object, where: str, speech: Speech) -> None:
    inner = fields.mapping(value, where).get("text")
    found = inner.get("text") if isinstance(inner, dict) else inner
    speech.texts.append(fields.text(found, f"{where}.text"))


_Reader = Callable[[dict[str, Any], str, Speech], None]
_READERS: Final[Mapping[str, _Reader]] = MappingProxyType(
    {
        "tool_use": _tool_use,
        "tool_call": _tool_call,
        "function_call": _function_call,
        "custom_tool_call": _function_call,
        "tool-call": _vercel_call,
        "tool_result": _tool_result,
        "tool_call_response": _otel_result,
        "function_call_output": _function_output,
        "custom_tool_call_output": _function_output,
        "tool-result": _vercel_result,
        "document": _document,
    }
)
_KEYED: Final[Mapping[str, Callable[[Any, str, Speech], None]]] = MappingProxyType(
    {
        "toolUse": _keyed_call,
        "functionCall": _keyed_call,
        "function_call": _keyed_call,
        "toolResult": lambda value, where, speech: _tool_result(
            fields.mapping(value, where), where, speech
        ),
        "functionResponse": lambda value, where, speech: _function_response(
            fields.mapping(value, where), where, speech
        ),
        "function_response": lambda value, where, speech: _function_response(
            fields.mapping(value, where), where, speech
        ),
        "reasoningContent": _keyed_reasoning,
        "guardContent": _keyed_guard,
    }
)
