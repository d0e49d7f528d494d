"""Our own record format; its JSON Schema is `NATIVE_SCHEMA_PATH`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from monitor.ingest import chat, fields
from monitor.ingest.fields import Exchange, Unreadable
from monitor.settings import IngestSettings
from monitor.values.prompts import DeadReason, Message

NATIVE_SCHEMA_PATH: Final = Path(__file__).with_name("native.schema.json")
OWN_KEYS: Final = frozenset(
    {
        *("response", "id", "conversation_id", "model_revision", "timestamp", "segment"),
        "sampling_probability",
    }
)
"""Keys that an OpenAI request does not have: with any of them a record with messages is ours."""


def native_schema() -> dict[str, Any]:
    """The published JSON Schema (draft 2020-12) of the native format."""
    schema: dict[str, Any] = json.loads(NATIVE_SCHEMA_PATH.read_text(encoding="utf-8"))
    return schema


def read(document: dict[str, Any], settings: IngestSettings) -> Exchange:
    """``messages`` or ``prompt``, and everything else optional; unknown keys are passed over."""
    given, prompt = document.get("messages"), document.get("prompt")
    if (given is None) == (prompt is None):
        raise Unreadable(
            DeadReason.INVALID_FIELD, "messages: expected either messages or prompt, and not both"
        )
    response = answer(document.get("response"), "response")
    messages: tuple[Message, ...] = ()
    text = None
    if given is None:
        text = chat.raw(fields.text(prompt, "prompt"), "prompt")
    else:
        messages, response = chat.turns(chat.messages(given, "messages"), response, "messages")
    return Exchange(
        source_format="native",
        messages=messages,
        text=text,
        response=response or None,
        prompt_id=fields.name(document.get("id"), "id"),
        conversation_id=fields.name(document.get("conversation_id"), "conversation_id"),
        model=fields.name(document.get("model"), "model"),
        model_revision=fields.name(document.get("model_revision"), "model_revision"),
        segment=fields.segment(document.get("segment"), "segment"),
        inclusion_probability=fields.probability(
            document.get("sampling_probability"), "sampling_probability"
        ),
        timestamp=fields.timestamp(document.get("timestamp"), "timestamp"),
    )


def answer(value: object, where: str) -> str | None:
    """A served answer: a string, or an assistant message in OpenAI's shape."""
    match value:
        case None:
            return None
        case str():
            return value
        case dict():
            spoken = chat.message({"role": "assistant"} | value, where)
            if spoken.role != "assistant":
                raise Unreadable(DeadReason.INVALID_FIELD, f"{where}.role: expected assistant")
            return spoken.content
    raise fields.invalid(where, "a string or a message", value)
