"""LangSmith runs, and LangChain's messages in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from monitor.ingest import fields, parameters, parts
from monitor.ingest.dialects import api
from monitor.ingest.dialects.dialect import Dialect, Document
from monitor.ingest.exchange import Exchange
from monitor.ingest.fields import Skipped
from monitor.ingest.foreign import Foreign
from monitor.settings import IngestSettings
from monitor.values.prompts import SkipReason

_ROLES: Final[Mapping[str, str]] = {
    "human": "user",
    "ai": "assistant",
    "HumanMessage": "user",
    "HumanMessageChunk": "user",
    "AIMessage": "assistant",
    "AIMessageChunk": "assistant",
    "SystemMessage": "system",
    "ToolMessage": "tool",
    "FunctionMessage": "tool",
}


def read(document: Document, settings: IngestSettings) -> Exchange:
    """Runs of type ``llm``; chains, tools and retrievers enclose them and are NOT_A_PROMPT."""
    if document.get("run_type") not in ("llm", "chat_model"):
        raise Skipped(SkipReason.NOT_A_PROMPT)
    inputs = document.get("inputs")
    if not inputs:
        raise Skipped(SkipReason.CONTENT_REDACTED)
    given = dict(fields.mapping(inputs, "inputs"))
    extra = document.get("extra")
    about: dict[str, Any] = extra if isinstance(extra, dict) else {}
    drawn = about.get("invocation_params")
    if isinstance(drawn, dict):
        given = {**drawn, **given}
    if given.get("messages") is not None:
        listed = fields.sequence(given["messages"], "inputs.messages")
        if listed and isinstance(listed[0], list):  # one list of messages per prompt
            if len(listed) > 1:
                raise fields.not_read("a run of several prompts", "send one prompt a run", "inputs")
            listed = listed[0]
        given["messages"] = messages_of(listed, "inputs.messages")
    elif isinstance(given.get("prompts"), list):
        given["prompt"] = given["prompts"]
    metadata = about.get("metadata")
    named: dict[str, Any] = metadata if isinstance(metadata, dict) else {}
    # what a failed run holds is no answer: nothing, part of one, or the error's text
    outputs = {"error": {}} if document.get("error") else document.get("outputs")
    foreign = Foreign()
    return api.exchange(
        "langsmith",
        api.Pair(
            request=given,
            response=_served(outputs),
            request_at="inputs.",
            response_at="outputs",
            continues=api.is_anthropic(given, None),
        ),
        foreign,
        settings.max_nesting,
        counts=_counts(outputs),
        prompt_id=foreign.identifier(document.get("id"), "id"),
        conversation_id=foreign.identifier(
            named.get("session_id", named.get("thread_id", document.get("trace_id"))), "trace_id"
        ),
        model=foreign.first_name(named, "extra.metadata.", "ls_model_name"),
        segment=fields.chosen_labels(named, settings.segment_keys) or None,
        timestamp=foreign.time(document.get("end_time"), "end_time")
        or foreign.time(document.get("start_time"), "start_time"),
    )


def _served(outputs: object) -> object:
    """LangChain's generations hold a message; its calls stand there alone."""
    if not isinstance(outputs, dict):
        return outputs
    generation: Any = outputs.get("generations")
    while isinstance(generation, list) and generation:
        generation = generation[0]
    if isinstance(generation, dict) and isinstance(generation.get("message"), dict):
        return message_of(generation["message"], "outputs.generations")
    message = outputs.get("message", outputs.get("output"))
    if isinstance(message, dict) and "choices" not in outputs:
        return message_of(message, "outputs.message")
    return outputs


def _counts(outputs: object) -> Any:
    if not isinstance(outputs, dict):
        return None
    inner = outputs.get("llm_output")
    if isinstance(inner, dict):
        for key in ("token_usage", "usage"):
            if (found := parameters.counts(inner.get(key))) is not None:
                return found
    return parameters.counts(outputs.get("usage_metadata", outputs.get("usage")))


def messages_of(value: object, where: str) -> list[dict[str, Any]]:
    """LangChain's messages, in any of their written forms, as messages with roles."""
    listed = fields.sequence(value, where)
    fields.within(len(listed), parts.LIMIT, where, "messages")
    return [message_of(entry, f"{where}[{index}]") for index, entry in enumerate(listed)]


def message_of(value: object, where: str) -> dict[str, Any]:
    """One message: ``{type, content}``, ``{type, data}``, or a serialised constructor with kwargs."""
    entry = fields.mapping(value, where)
    kind = entry.get("type")
    if kind == "constructor":
        path = entry.get("id")
        kind = path[-1] if isinstance(path, list) and path else None
        entry = fields.mapping(entry.get("kwargs"), f"{where}.kwargs")
    elif isinstance(entry.get("data"), dict):
        entry = entry["data"]
    if "role" in entry:
        return entry
    role = _ROLES.get(kind, kind) if isinstance(kind, str) else kind
    added = entry.get("additional_kwargs")
    beside: dict[str, Any] = added if isinstance(added, dict) else {}
    calls = entry.get("tool_calls") or beside.get("tool_calls")
    content = entry.get("content")
    if isinstance(content, list) and any(
        isinstance(part, dict) and part.get("type") == "tool_use" for part in content
    ):
        calls = None  # Anthropic's own parts, which LangChain repeats as calls
    return {
        "role": role,
        "content": content,
        "tool_calls": calls or None,
        "function_call": beside.get("function_call"),
        "reasoning_content": beside.get("reasoning_content"),
        "tool_call_id": entry.get("tool_call_id"),
        "name": entry.get("name"),
    }


def told(document: Mapping[str, Any]) -> bool:
    return "run_type" in document


LANGSMITH: Final = Dialect(name="langsmith", told=told, read=read)
