"""Chat messages of every API, made plain: a role of ours, text, reasoning, and calls of tools.

Content is passed on untouched, also where it spells special tokens or template syntax: it is data.
Whoever renders it must not let the tokenizer read special tokens out of content.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, TypeGuard

from monitor.ingest import fields, parts
from monitor.ingest.exchange import Answer, Asked
from monitor.ingest.fields import Skipped, Unreadable
from monitor.ingest.parts import Speech
from monitor.values.prompts import DeadReason, Message, SkipReason

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

_REASONING_KEYS: Final = ("reasoning", "reasoning_content", "thinking", "reasoning_details")
_OPEN: Final = "<think>"
_CLOSE: Final = "</think>"


@dataclasses.dataclass(slots=True)
class Chat:
    """The messages read so far, and what was found beside their text."""

    messages: list[Message] = dataclasses.field(default_factory=list)
    media: bool = False
    prefix: bool = False
    """The last message says of itself that the answer continues it."""

    def add(self, value: object, where: str) -> None:
        """One message object in any API's shape."""
        if self.add_plain(value):
            return
        entry = fields.mapping(value, where)
        speech = Speech(role(entry.get("role"), f"{where}.role"))
        _speak(entry, where, speech)
        self.messages += speech.end(call_id=entry.get("tool_call_id"), name=entry.get("name"))
        self.media |= speech.media
        self.prefix = entry.get("prefix") is True or entry.get("partial") is True

    def add_plain(self, value: object) -> bool:
        """Whether ``value`` is no more than a role and a text, as most messages are; then it is added."""
        if not _is_plain(value):
            return False
        self.messages.append(Message(role=ROLES[value["role"]], content=value["content"]))
        self.prefix = False
        return True

    def add_system(self, value: object, where: str) -> None:
        """Instructions given apart from the messages come first; the same given twice count once."""
        speech = Speech("system")
        _content(value, where, speech)
        (message,) = speech.end()
        self.media |= speech.media
        first = self.messages[0] if self.messages else None
        if message.content and message != first:
            self.messages.insert(0, message)

    def join_calls(self) -> None:
        """Calls that stand in messages of their own are those of the turn before, as they were made:
        no API takes a call after another turn's calls that have no result."""
        joined: list[Message] = []
        for said in self.messages:
            last = joined[-1] if joined else None
            alone = said.tool_calls and not said.content and not said.reasoning
            if alone and last is not None and last.role == said.role == "assistant":
                calls = last.tool_calls + said.tool_calls
                joined[-1] = dataclasses.replace(last, tool_calls=calls)
            else:
                joined.append(said)
        self.messages = joined


def role(value: object, where: str) -> str:
    if not isinstance(value, str) or value not in ROLES:
        raise Unreadable(
            DeadReason.INVALID_FIELD, f"{where}: expected one of {', '.join(sorted(ROLES))}"
        )
    return ROLES[value]


def read(value: object, where: str) -> Chat:
    entries = fields.sequence(value, where)
    fields.within(len(entries), parts.LIMIT, where, "messages")
    chat = Chat()
    for index, entry in enumerate(entries):
        if not chat.add_plain(entry):
            chat.add(entry, f"{where}[{index}]")
    return chat


def _is_plain(value: object) -> TypeGuard[dict[str, str]]:
    """A role that is known, a text, and nothing else."""
    return (
        isinstance(value, dict)
        and len(value) == 2
        and isinstance(value.get("content"), str)
        and isinstance(role := value.get("role"), str)
        and role in ROLES
    )


def _speak(entry: Mapping[str, Any], where: str, speech: Speech) -> None:
    """All that a message object says; its role is not looked at."""
    content, listed = entry.get("content"), entry.get("parts")
    if isinstance(listed, list):
        parts.read(listed, f"{where}.parts", speech)
        _beside_parts(content, f"{where}.content", speech)
    elif listed is not None:
        raise fields.invalid(f"{where}.parts", "an array", listed)
    else:
        _content(content, f"{where}.content", speech)
    if isinstance(entry.get("refusal"), str):
        speech.texts.append(entry["refusal"])
    elif entry.get("refusal") is not None:
        raise fields.invalid(f"{where}.refusal", "a string", entry["refusal"])
    if not speech.reasoning:
        _reasoning(entry, where, speech)
    audio = entry.get("audio")
    if isinstance(audio, dict):
        speech.media = True
        if not speech.texts and isinstance(audio.get("transcript"), str):
            speech.texts.append(audio["transcript"])
    elif entry.get("images"):
        speech.media = True
    _calls(entry, where, speech)


def _content(value: object, where: str, speech: Speech) -> None:
    """A string, null, or a list of parts; a tool may answer with data, which is written as JSON."""
    match value:
        case None | "":
            return
        case str():
            speech.texts.append(value)
        case list() if speech.role == "tool" and not _holds_results(value):
            speech.texts.append(parts.told(value, where, speech))
        case list():
            parts.read(value, where, speech)
        case dict() if speech.role == "tool":
            speech.texts.append(parts.plain(value))
        case _:
            raise fields.invalid(where, "a string, null or an array of parts", value)


def _holds_results(listed: Sequence[Any]) -> bool:
    """Parts that say which call they answer, rather than an answer in parts."""
    return any(
        isinstance(part, dict)
        and (
            part.get("type") in ("tool-result", "tool_result", "tool_call_response")
            or not {"toolResult", "functionResponse"}.isdisjoint(part)
        )
        for part in listed[: parts.LIMIT]
    )


def _beside_parts(content: object, where: str, speech: Speech) -> None:
    """Some clients keep the text of the parts as ``content`` too: the same text counts once."""
    if content in (None, ""):
        return
    if not isinstance(content, str):
        raise fields.invalid(where, "a string beside parts", content)
    heard = [*speech.texts, *(t.content for t in speech.turns if t.role != "tool")]
    if not any(heard):
        speech.texts.append(content)
    elif content not in (parts.joined(heard), "".join(heard)):
        raise Unreadable(
            DeadReason.INVALID_FIELD, f"{where}: another text than its parts; send one of the two"
        )


def _reasoning(entry: Mapping[str, Any], where: str, speech: Speech) -> None:
    """What the record keeps apart from the text; servers repeat it under several names."""
    for key in _REASONING_KEYS:
        value = entry.get(key)
        if isinstance(value, str) and value:
            speech.reasoning.append(value)
        elif isinstance(value, list):
            for index, part in enumerate(value):
                if isinstance(part, dict):
                    speech.reasoning.append(parts.thought(part, f"{where}.{key}[{index}]"))
        if any(speech.reasoning):
            return


def _calls(entry: Mapping[str, Any], where: str, speech: Speech) -> None:
    legacy, calls = entry.get("function_call"), entry.get("tool_calls")
    if legacy is not None:
        at = f"{where}.function_call"
        function = fields.mapping(legacy, at)
        if function.get("name") is not None or function.get("arguments") is not None:
            speech.call(function.get("name"), function.get("arguments"), None, at)
    if calls is None:
        return
    listed = fields.sequence(calls, f"{where}.tool_calls")
    fields.within(len(listed), parts.LIMIT, f"{where}.tool_calls", "calls")
    for index, value in enumerate(listed):
        at = f"{where}.tool_calls[{index}]"
        call = fields.mapping(value, at)
        inner = call.get("function", call.get("custom"))
        if inner is None and "name" in call:
            inner = call
        function = fields.mapping(inner, f"{at}.function")
        given = function.get("arguments", function.get("args", function.get("input")))
        speech.call(function.get("name"), given, call.get("id"), f"{at}.function")


def answer(value: object, where: str) -> Answer:
    """A served message: an assistant's, or one that does not say whose it is."""
    entry = fields.mapping(value, where)
    if _is_plain(entry) and ROLES[entry["role"]] == "assistant":
        return Answer(text=entry["content"] or None)
    if role(entry.get("role") or "assistant", f"{where}.role") != "assistant":
        raise Unreadable(DeadReason.INVALID_FIELD, f"{where}.role: expected assistant")
    speech = Speech("assistant")
    _speak(entry, where, speech)
    return spoken(speech, where)


def spoken(speech: Speech, where: str) -> Answer:
    """What one speech says as the served answer, which is a single turn."""
    turns = speech.end()
    if len(turns) > 1 or turns[0].role != "assistant":
        raise fields.not_read(
            "an answer that holds results of calls", "log each call of the model", where
        )
    (said,) = turns
    return Answer(
        text=said.content or None,
        reasoning=said.reasoning,
        tool_calls=said.tool_calls,
        media=speech.media,
    )


def thought_apart(answer: Answer) -> Answer:
    """The answer with ``<think>`` text taken out of it, where nothing took it out before.

    Read as reasoning: text that begins with the tag, up to its end or to the end of all (cut off while
    thinking); and text up to a closing tag that ends its line, where the template opened the tag. A
    closing tag inside of a line is text.
    """
    if answer.reasoning is not None or answer.text is None or "think>" not in answer.text:
        return answer
    head, closed, rest = answer.text.partition(_CLOSE)
    begun = head.lstrip().startswith(_OPEN)
    if not begun and not (closed and _OPEN not in answer.text and rest[:1] in ("", "\n")):
        return answer
    reasoning = head.lstrip().removeprefix(_OPEN).strip("\n")
    return dataclasses.replace(answer, text=rest.lstrip("\n") or None, reasoning=reasoning or None)


def asked(chat: Chat, where: str, *, continues: bool = False, **more: Any) -> Asked:
    """The messages as a prompt, which must hold some text (EMPTY; ONLY_MEDIA where media is all)."""
    for message in chat.messages:
        if message.content.strip():
            break
    else:
        if chat.media:
            raise Skipped(SkipReason.ONLY_MEDIA)
        raise Unreadable(
            DeadReason.EMPTY, f"{where}: no text before the answer; log the messages sent"
        )
    last = chat.messages[-1].role == "assistant"
    return Asked(
        messages=tuple(chat.messages),
        media=chat.media,
        continues=last and (continues or chat.prefix),
        **more,
    )


def final_answer(chat: Chat) -> Answer | None:
    """A final assistant message, taken off the chat: records that keep no response apart end with it."""
    if not chat.messages or chat.messages[-1].role != "assistant" or chat.prefix:
        return None
    last = chat.messages.pop()
    return Answer(text=last.content or None, reasoning=last.reasoning, tool_calls=last.tool_calls)


def raw(value: str, where: str) -> str:
    """A raw prompt, which must hold some text (EMPTY)."""
    if not value.strip():
        raise Unreadable(DeadReason.EMPTY, f"{where}: no text; log the prompt sent")
    return value
