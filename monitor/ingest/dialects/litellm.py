"""LiteLLM's ``StandardLoggingPayload``, as its callbacks write it, and the rows of its spend logs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Final

from monitor.ingest import fields, parameters
from monitor.ingest.dialects import api, openai
from monitor.ingest.dialects.dialect import Dialect, Document
from monitor.ingest.exchange import NO_ANSWER, Answer, Exchange
from monitor.ingest.fields import Skipped, Unreadable
from monitor.ingest.foreign import Foreign
from monitor.settings import IngestSettings
from monitor.values.prompts import DeadReason, SkipReason

REDACTED: Final = "redacted-by-litellm"
"""What LiteLLM writes in place of content when its message logging is turned off."""
PLACEHOLDER: Final = "default-message-value"
"""What it writes where a call has no messages of its own."""

_ITEM_CALLS: Final = frozenset({"responses", "aresponses"})
_RAW_CALLS: Final = frozenset({"text_completion", "atext_completion"})
_CALLS: Final = frozenset(
    {
        *("completion", "acompletion", "anthropic_messages", *_ITEM_CALLS),
        *("generate_content", "agenerate_content", "generate_content_stream"),
        *("agenerate_content_stream", "pass_through_endpoint", *_RAW_CALLS),
    }
)
_CUT_HELP: Final = "raise MAX_STRING_LENGTH_PROMPT_IN_DB, or use a callback that does not cut"
_NOTHING: Final[tuple[Any, ...]] = (None, "", "{}", "[]", {}, [])


def read(document: Document, settings: IngestSettings) -> Exchange:
    """Chats, completions, Responses and Gemini calls; embeddings, images and the like are NOT_A_PROMPT.

    Segment keys are looked for among ``model_group``, ``end_user``, the entries of ``metadata``
    (``user_api_key_team_alias`` …) and request tags written ``key:value`` or ``key=value``.
    """
    nesting = settings.max_nesting
    call = fields.text(document.get("call_type"), "call_type")
    served = api.opened_response(document.get("response"), "response", nesting)
    if call not in _CALLS or api.is_other_call({}, served):
        if call == "arealtime" or call.startswith("_arealtime"):
            raise fields.not_read("LiteLLM's realtime call", "log chats")
        raise Skipped(SkipReason.NOT_A_PROMPT)
    request, at = _request(document, settings)
    if request.get("messages") is not None and _redacted(request["messages"]):
        raise Skipped(SkipReason.CONTENT_REDACTED)
    if call in _RAW_CALLS:
        request = _raw(request)
    elif call in _ITEM_CALLS and isinstance(request.get("messages"), list):
        request["input"] = request.pop("messages")  # items, in which messages are one kind
    asked, answer, response = api.read(
        api.Pair(request=request, response=served, request_at=at, continues=True), nesting
    )
    foreign = Foreign()
    metadata = fields.opened(document.get("metadata"), "metadata", nesting, _CUT_HELP)
    tags = fields.opened(document.get("request_tags"), "request_tags", nesting, _CUT_HELP)
    labels = _labels(document, metadata, tags)
    answer = _unredacted(answer)
    return Exchange(
        source_format="litellm",
        asked=asked,
        answer=answer,
        counts=answer.counts
        or parameters.served(document.get("prompt_tokens"), document.get("completion_tokens")),
        sampling=parameters.sampling(asked.parameters, answer.finish_reason),
        prompt_id=foreign.identifier(document.get("id", document.get("request_id")), "id"),
        conversation_id=foreign.identifier(
            document.get("trace_id", document.get("session_id")), "trace_id"
        ),
        model=foreign.name(document.get("model"), "model"),
        model_revision=foreign.name(response.get("system_fingerprint"), "system_fingerprint")
        or foreign.name(document.get("model_id"), "model_id"),
        segment=fields.chosen_labels(labels, settings.segment_keys),
        timestamp=foreign.time(document.get("endTime"), "endTime")
        or foreign.time(document.get("startTime"), "startTime"),
        left_out=foreign.left_out,
    )


def split(document: Document, settings: IngestSettings) -> Sequence[Document]:
    """A text completion of several prompts logs each as a message of its own."""
    messages = document.get("messages")
    call = document.get("call_type")
    if not isinstance(call, str) or call not in _RAW_CALLS or not isinstance(messages, list):
        return (document,)
    if len(messages) < 2 or _redacted(messages):
        return (document,)
    served = api.opened_response(document.get("response"), "response", settings.max_nesting)
    pairs = openai.apart({}, [{"messages": [message]} for message in messages], served)
    whole = {**document, "prompt_tokens": None, "completion_tokens": None}
    return [{**whole, **ask, "response": told} for ask, told in pairs]


def _request(document: Document, settings: IngestSettings) -> tuple[dict[str, Any], str]:
    """Messages and parameters as one request. Spend logs keep the request as the proxy was sent it."""
    nesting = settings.max_nesting
    given = document.get("messages")
    if isinstance(given, str):
        api.refuse_cut(given, "messages")
        if fields.looks_like_json(given):
            given = fields.opened(given, "messages", nesting, _CUT_HELP)
    if isinstance(given, dict) and "messages" in given:
        given = given["messages"]
    sent = document.get("proxy_server_request")
    if any(given == nothing for nothing in _NOTHING) and sent:
        if isinstance(sent, str):
            api.refuse_cut(sent, "proxy_server_request")
        opened = fields.opened(sent, "proxy_server_request", nesting, _CUT_HELP)
        request = fields.mapping(opened, "proxy_server_request")
        inner = request.get("body")
        request = inner if isinstance(inner, dict) else request
        if any(request.get(key) is not None for key in api.REQUEST_KEYS):
            _refuse_cut_content(request.get("messages"), "proxy_server_request.messages")
            return request, "proxy_server_request."
    if given is None or given in ({}, "{}"):
        raise Skipped(SkipReason.CONTENT_REDACTED)
    _refuse_cut_content(given, "messages")
    found = fields.opened(document.get("model_parameters"), "model_parameters", nesting, _CUT_HELP)
    parameters_given = dict(found) if isinstance(found, dict) else {}
    for key in (*api.REQUEST_KEYS, "system", "echo"):
        if key not in ("messages", "system"):
            parameters_given.pop(key, None)
    if isinstance(given, str):
        return {**parameters_given, **_spoken(given, document)}, ""
    listed = [given] if isinstance(given, dict) else given
    response = document.get("response")
    if isinstance(response, dict) and response.get("object") == "response":
        for key in ("instructions", "tools"):
            if response.get(key):
                parameters_given.setdefault(key, response[key])
    return {**parameters_given, "messages": listed}, ""


def _spoken(given: str, document: Document) -> dict[str, Any]:
    if given == REDACTED:
        raise Skipped(SkipReason.CONTENT_REDACTED)
    if not given.strip():
        raise Unreadable(DeadReason.EMPTY, "messages: no text; log the messages sent")
    if document["call_type"] not in _RAW_CALLS:
        raise Unreadable(
            DeadReason.INVALID_FIELD, "messages: expected an array of messages, found other text"
        )
    return {"prompt": given}


def _raw(request: dict[str, Any]) -> dict[str, Any]:
    """A text completion's prompt is logged as one user message."""
    messages = request.get("messages")
    if isinstance(messages, list) and len(messages) == 1 and isinstance(messages[0], dict):
        content = messages[0].get("content")
        if isinstance(content, str | list):
            rest = {key: value for key, value in request.items() if key != "messages"}
            return {**rest, "prompt": content}
    return request


def _redacted(given: object) -> bool:
    entries = given if isinstance(given, list) else [given]
    return given is None or any(
        entry in ({}, REDACTED)
        or (isinstance(entry, dict) and entry.get("content") in (REDACTED, PLACEHOLDER))
        for entry in entries
    )


def _refuse_cut_content(given: object, where: str) -> None:
    for index, entry in enumerate(given if isinstance(given, list) else ()):
        content = entry.get("content") if isinstance(entry, dict) else None
        if isinstance(content, str):
            api.refuse_cut(content, f"{where}[{index}].content")


def _unredacted(answer: Answer) -> Answer:
    """A redacted answer is none: neither its text nor what is left of its calls."""
    if answer.text == REDACTED or any(REDACTED in call.arguments for call in answer.tool_calls):
        return dataclasses.replace(
            NO_ANSWER, finish_reason=answer.finish_reason, counts=answer.counts
        )
    if answer.text is not None:
        api.refuse_cut(answer.text, "response")
    if answer.reasoning == REDACTED:
        return dataclasses.replace(answer, reasoning=None)
    return answer


def _labels(document: Document, metadata: object, tags: object) -> dict[str, Any]:
    labels = {key: document.get(key) for key in ("model_group", "end_user")}
    if isinstance(metadata, dict):
        labels |= metadata
    for tag in tags if isinstance(tags, list) else ():
        if isinstance(tag, str):
            for separator in ":=":
                key, found, label = tag.partition(separator)
                if found:
                    labels[key.strip()] = label.strip()
                    break
    return labels


def told(document: Mapping[str, Any]) -> bool:
    return "call_type" in document


LITELLM: Final = Dialect(name="litellm", told=told, read=read, split=split)
