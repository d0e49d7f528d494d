"""OpenAI chat-completions logs: ``{"request": …, "response": …}``, or the request alone.

Gateways and servers that speak OpenAI's API (vLLM, SGLang, TGI …) log the same two objects.
"""

from __future__ import annotations

from typing import Any

from monitor.ingest import chat, fields
from monitor.ingest.fields import Exchange
from monitor.settings import IngestSettings
from monitor.values.prompts import Message


def read(document: dict[str, Any], settings: IngestSettings) -> Exchange:
    """Of several choices the first is read. An ``error`` instead of choices is no answer.

    Beside request and response, ``id``, ``conversation_id`` and ``timestamp`` are looked for on the
    outer object. The segment is taken from the request's ``metadata``.
    """
    inside = "request" in document
    request = fields.mapping(document["request"], "request") if inside else document
    at = "request." if inside else ""
    given = document.get("response") if inside else None
    response = {} if given is None else fields.mapping(given, "response")
    served = choice(response, "response")
    messages: tuple[Message, ...] = ()
    text = None
    if request.get("messages") is not None:
        messages, served = chat.turns(
            chat.messages(request["messages"], f"{at}messages"), served, f"{at}messages"
        )
    else:
        text = chat.raw(_prompt(request.get("prompt"), at), f"{at}prompt")
    metadata = request.get("metadata")
    return Exchange(
        source_format="openai",
        messages=messages,
        text=text,
        response=served or None,
        prompt_id=fields.name(document.get("id"), "id")
        or fields.name(response.get("id"), "response.id"),
        conversation_id=fields.name(document.get("conversation_id"), "conversation_id"),
        model=fields.name(response.get("model"), "response.model")
        or fields.name(request.get("model"), f"{at}model"),
        model_revision=fields.name(
            response.get("system_fingerprint"), "response.system_fingerprint"
        ),
        segment=fields.chosen_labels(
            metadata if isinstance(metadata, dict) else {}, settings.segment_keys
        ),
        timestamp=fields.timestamp(document.get("timestamp"), "timestamp")
        or fields.timestamp(response.get("created"), "response.created"),
    )


def _prompt(value: object, at: str) -> str:
    """The legacy completions API sends one prompt as a string, or as a list of one."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, str):
        raise fields.invalid(f"{at}messages", "messages, or one prompt", value)
    return value


def choice(response: dict[str, Any], where: str) -> str | None:
    """The first choice of a completion, chat or legacy; None where there is none."""
    if response.get("choices") is None:
        if not response or response.get("error") is not None:
            return None
        raise fields.invalid(f"{where}.choices", "an array", None)
    choices = fields.sequence(response["choices"], f"{where}.choices")
    if not choices:
        return None
    first = fields.mapping(choices[0], f"{where}.choices[0]")
    if isinstance(first.get("text"), str):
        return str(first["text"])
    at = f"{where}.choices[0].message"
    return chat.spoken(fields.mapping(first.get("message"), at), at)
