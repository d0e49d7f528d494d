"""Exchanges in forms that are known and not read: each is refused under its own name, with what helps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from monitor.ingest import fields
from monitor.ingest.fields import Unreadable


def named(document: Mapping[str, Any]) -> Unreadable | None:
    """The refusal of a document that is told and not read; None for one of no known shape."""
    if "conversations" in document:
        return fields.not_read("a ShareGPT conversation (from, value)", "write role and content")
    properties = document.get("properties")
    if _is_apim(document) or (isinstance(properties, dict) and _is_apim(properties)):
        return fields.not_read(
            "a part of an Azure API Management log (split by sequenceNumber)",
            "log at the server or with OpenTelemetry",
        )
    if "instances" in document or "dataframe_split" in document or "dataframe_records" in document:
        return fields.not_read("a call of the v1 inference protocol (instances)", "log chats")
    if "choices" in document or document.get("type") == "message" or "candidates" in document:
        return fields.not_read("an answer without its request", "send both in one record")
    if "role" in document and ("content" in document or "parts" in document):
        return fields.not_read("a message by itself", 'send the chat: {"messages": […]}')
    return None


def _is_apim(document: Mapping[str, Any]) -> bool:
    return not {
        "requestMessages",
        "RequestMessages",
        "responseMessages",
        "ResponseMessages",
    }.isdisjoint(document)
