"""Exports that keep the prompt and its answer side by side: ``input``/``output``, ``prompt``/``completion``.

OpenPipe's and OpenAI's batch lines are of this kind with names of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from monitor.ingest import fields
from monitor.ingest.dialects import api, exchanges
from monitor.ingest.dialects.dialect import Dialect, Document
from monitor.ingest.exchange import Exchange
from monitor.ingest.fields import Skipped
from monitor.ingest.foreign import Foreign
from monitor.settings import IngestSettings
from monitor.values.prompts import SkipReason

_HELP: Final = "export whole fields"
_ANSWERS: Final = ("completion", "outputs", "output", "generated_text", "choices", "candidates")


def read(document: Document, settings: IngestSettings) -> Exchange:
    """One object with a prompt (``input``, ``inputs``, ``prompt``, ``messages``) and its answer."""
    foreign = Foreign()
    answered = any(document.get(key) is not None for key in _ANSWERS)
    given = document.get("input")
    if given is not None and document.get("messages") is None:
        request = request_of(given, document, settings)
        response: Any = document.get("output")
    else:
        request, response = document, document
    if "prompt_token_ids" in document:  # vLLM's RequestOutput
        request = _tokens(request)
    return api.exchange(
        "flat",
        api.Pair(
            request=request,
            response=response if answered else None,
            request_at="" if request is document else "input.",
            response_at="output" if response is not document else "record",
            logged=True,
            spoken=True,
            continues=api.is_anthropic(request, None),
        ),
        foreign,
        settings.max_nesting,
        prompt_id=foreign.first_name(document, "", "id", "request_id", "custom_id"),
        conversation_id=foreign.identifier(document.get("conversation_id"), "conversation_id"),
        model=foreign.name(document.get("model"), "model"),
        segment=fields.chosen_labels(_metadata(document), settings.segment_keys) or None,
        timestamp=foreign.time(document.get("timestamp"), "timestamp"),
    )


def request_of(given: Any, about: Mapping[str, Any], settings: IngestSettings) -> dict[str, Any]:
    """``input`` as a request: an object with messages, messages alone, or one user message."""
    if isinstance(given, str) and fields.looks_like_json(given):
        given = fields.opened(given, "input", settings.max_nesting, _HELP)
    if isinstance(given, dict):
        if all(given.get(key) is None for key in api.REQUEST_KEYS):
            if "role" in given:
                return {"messages": [given]}
            raise fields.not_read(
                "an input of free names", "write messages or a prompt into it", "input"
            )
        return given
    rest = {key: about[key] for key in ("tools", "instructions", "system") if about.get(key)}
    if isinstance(given, str):
        return {**rest, "messages": [{"role": "user", "content": given}]}
    return {**rest, "messages": fields.sequence(given, "input")}


def _tokens(document: Mapping[str, Any]) -> dict[str, Any]:
    ids = document.get("prompt_token_ids")
    request = dict(document)
    if request.get("prompt") is None and ids is not None:
        request["prompt"] = ids
    return request


def _metadata(document: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key in ("tags", "metadata"):
        value = document.get(key)
        found |= value if isinstance(value, dict) else {}
    return found


def told(document: Mapping[str, Any]) -> bool:
    if "input" in document and "output" in document:
        return True
    if "prompt" in document or "inputs" in document or "messages" in document:
        return "response" not in document and any(document.get(key) is not None for key in _ANSWERS)
    return False


def read_batch(document: Document, settings: IngestSettings) -> Exchange:
    """A line of an OpenAI batch's input file; a line of its output holds no prompt."""
    if api.is_other_route(document.get("url")):
        raise Skipped(SkipReason.NOT_A_PROMPT)
    if "body" not in document:
        raise fields.not_read("an answer without its request", "send both in one record")
    body = fields.mapping(document["body"], "body")
    foreign = Foreign()
    return api.exchange(
        api.name_of(body),
        api.Pair(request=body, request_at="body."),
        foreign,
        settings.max_nesting,
        prompt_id=foreign.identifier(document.get("custom_id"), "custom_id"),
    )


def told_batch(document: Mapping[str, Any]) -> bool:
    return "custom_id" in document and ("body" in document or "response" in document)


def split(document: Document, settings: IngestSettings) -> Sequence[Document]:
    return exchanges.split(document, settings) if "choices" in document else (document,)


FLAT: Final = Dialect(name="flat", told=told, read=read, split=split)
BATCH: Final = Dialect(name="batch", told=told_batch, read=read_batch)
