"""Gemini's and Vertex's ``contents``, ``systemInstruction`` and ``candidates``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from monitor.ingest import chat, fields, parameters, parts
from monitor.ingest.dialects import openai
from monitor.ingest.exchange import NO_ANSWER, Answer, Asked


def asked(request: Mapping[str, Any], where: str) -> Asked:
    """A content without a role is the user's; one that answers calls is a tool's."""
    value = request["contents"]
    if isinstance(value, str):
        value = [{"parts": [{"text": value}]}]
    elif isinstance(value, dict):
        value = [value]
    listed = fields.sequence(value, f"{where}contents")
    entries = [
        {**entry, "role": entry.get("role") or "user"} if isinstance(entry, dict) else entry
        for entry in listed
    ]
    read = chat.read(entries, f"{where}contents")
    for key in ("systemInstruction", "system_instruction"):
        given = request.get(key)
        if given is None:
            continue
        if isinstance(given, dict):
            given = fields.mapping(given, f"{where}{key}").get("parts")
            given = [given] if isinstance(given, dict) else given
        read.add_system(given, f"{where}{key}")
    return chat.asked(
        read,
        f"{where}contents",
        tools=parameters.tools(request, where),
        template_options=parameters.template_options(request, where),
        parameters=openai.parameters_of(request),
    )


def candidate(response: Mapping[str, Any], where: str) -> Answer:
    """The first candidate; one without content was blocked, which is no answer."""
    listed = fields.sequence(response["candidates"], f"{where}.candidates")
    if not listed:
        return NO_ANSWER
    at = f"{where}.candidates[0]"
    first = fields.mapping(listed[0], at)
    said = NO_ANSWER
    if first.get("content") is not None:
        content = fields.mapping(first["content"], f"{at}.content")
        speech = parts.Speech("assistant")
        parts.read(
            fields.sequence(content.get("parts") or [], f"{at}.content.parts"),
            f"{at}.content.parts",
            speech,
        )
        speech.texts = ["".join(speech.texts)]  # pieces of one text, as they were streamed
        said = chat.spoken(speech, f"{at}.content")
    return dataclasses.replace(
        said,
        finish_reason=parameters.label(first.get("finishReason")),
        counts=parameters.counts(response.get("usageMetadata")),
    )
