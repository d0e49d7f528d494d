"""LiteLLM's ``StandardLoggingPayload``, as its callbacks write it."""

from __future__ import annotations

from typing import Any, Final

from monitor.ingest import chat, fields, native, openai
from monitor.ingest.fields import Exchange, Skipped
from monitor.settings import IngestSettings
from monitor.values.prompts import Message, SkipReason

REDACTED: Final = "redacted-by-litellm"
"""What LiteLLM writes in place of content when its message logging is turned off."""

_RAW_CALLS: Final = frozenset({"text_completion", "atext_completion"})
_CHAT_CALLS: Final = frozenset({"completion", "acompletion", "anthropic_messages"})


def read(document: dict[str, Any], settings: IngestSettings) -> Exchange:
    """Completions and chats; embeddings, images and the like are NOT_A_PROMPT.

    Segment keys are looked for among ``model_group``, ``end_user``, the entries of ``metadata``
    (``user_api_key_team_alias`` …) and request tags written ``key:value`` or ``key=value``.
    """
    call = fields.text(document.get("call_type"), "call_type")
    if call not in _RAW_CALLS | _CHAT_CALLS:
        raise Skipped(SkipReason.NOT_A_PROMPT)
    given = document.get("messages")
    if isinstance(given, dict) and "messages" in given:
        given = given["messages"]
    if _redacted(given):
        raise Skipped(SkipReason.CONTENT_REDACTED)
    served = _response(document.get("response"))
    messages: tuple[Message, ...] = ()
    text = None
    if isinstance(given, str):
        text = chat.raw(given, "messages")
    else:
        listed = [given] if isinstance(given, dict) else given
        messages, served = chat.turns(chat.messages(listed, "messages"), served, "messages")
        if call in _RAW_CALLS and len(messages) == 1:
            text, messages = messages[0].content, ()
    return Exchange(
        source_format="litellm",
        messages=messages,
        text=text,
        response=served or None,
        prompt_id=fields.name(document.get("id"), "id"),
        conversation_id=fields.name(document.get("trace_id"), "trace_id"),
        model=fields.name(document.get("model"), "model"),
        model_revision=fields.name(document.get("model_id"), "model_id"),
        segment=fields.chosen_labels(_labels(document), settings.segment_keys),
        timestamp=fields.timestamp(document.get("endTime"), "endTime")
        or fields.timestamp(document.get("startTime"), "startTime"),
    )


def _redacted(given: object) -> bool:
    entries = given if isinstance(given, list) else [given]
    return given is None or any(
        entry in ({}, REDACTED) or (isinstance(entry, dict) and entry.get("content") == REDACTED)
        for entry in entries
    )


def _response(value: object) -> str | None:
    """An OpenAI completion, a message, a plain string, or nothing (a failed call)."""
    if isinstance(value, dict) and ("choices" in value or "error" in value or not value):
        served = openai.choice(value, "response")
    elif isinstance(value, dict) and isinstance(value.get("text"), str):
        served = value["text"]
    else:
        served = native.answer(value, "response")
    return None if served == REDACTED else served


def _labels(document: dict[str, Any]) -> dict[str, Any]:
    labels = {key: document.get(key) for key in ("model_group", "end_user")}
    if isinstance(document.get("metadata"), dict):
        labels |= document["metadata"]
    tags = document.get("request_tags")
    for tag in tags if isinstance(tags, list) else ():
        if isinstance(tag, str):
            for separator in ":=":
                key, found, label = tag.partition(separator)
                if found:
                    labels[key.strip()] = label.strip()
                    break
    return labels
