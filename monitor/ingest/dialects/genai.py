"""OpenTelemetry's GenAI convention: spans, their inference event, and what came before it.

Content is looked for where each age of the convention has it: ``gen_ai.input.messages`` (also as LiteLLM
writes them), span events ``gen_ai.user.message`` and ``gen_ai.choice``, and indexed attributes
``gen_ai.prompt.N.content`` (OpenLLMetry). Content is opt-in: without any the operation is CONTENT_REDACTED.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

from monitor.ingest import chat, fields, parameters, parts
from monitor.ingest.chat import Chat
from monitor.ingest.dialects import api, otlp
from monitor.ingest.dialects.otlp import Entry
from monitor.ingest.exchange import NO_ANSWER, Answer, Asked, Exchange
from monitor.ingest.fields import Skipped, Unreadable
from monitor.ingest.foreign import Foreign
from monitor.settings import IngestSettings
from monitor.values.prompts import SkipReason

INFERENCE_EVENT: Final = "gen_ai.client.inference.operation.details"
ENCLOSING: Final = frozenset(
    {
        *("invoke_agent", "create_agent", "execute_tool", "embeddings", "embedding", "aembedding"),
        *("retrieval", "invoke_workflow", "rerank", "arerank", "moderation", "amoderation"),
        *("image_generation", "aimage_generation", "transcription", "atranscription", "speech"),
        *("aspeech", "plan", "search", "create_memory", "search_memory", "call_mcp_tool"),
    }
)
"""Operations that enclose an exchange or are none: their content would be counted twice."""
OPERATIONS: Final = frozenset(
    {
        *("chat", "text_completion", "generate_content", "completion", "acompletion"),
        *("atext_completion", "anthropic_messages", "responses", "aresponses"),
        *("agenerate_content", "generate_content_stream", "agenerate_content_stream"),
    }
)
"""Operations that are one exchange with the model, LiteLLM's names among them."""

_OPERATION: Final = "gen_ai.operation.name"
_INPUT: Final = "gen_ai.input.messages"
_OUTPUT: Final = "gen_ai.output.messages"
_SYSTEM: Final = "gen_ai.system_instructions"
_CUT_HELP: Final = "raise the attribute length limit of the SDK or collector"
CHOICE: Final = "gen_ai.choice"
_MESSAGE_EVENTS: Final = frozenset(
    {
        *("gen_ai.system.message", "gen_ai.user.message", "gen_ai.assistant.message"),
        *("gen_ai.tool.message", CHOICE),
    }
)
_RAW: Final = frozenset({"text_completion", "atext_completion"})


def event_name(document: Mapping[str, Any]) -> str | None:
    """The name of a GenAI event. ``name`` is free text on spans: it counts only in full."""
    for key in ("eventName", "event_name", "event.name"):
        value = document.get(key)
        if isinstance(value, str) and value.startswith("gen_ai."):
            return value
    name = document.get("name")
    known = isinstance(name, str) and (name == INFERENCE_EVENT or name in _MESSAGE_EVENTS)
    return str(name) if known else None


def is_message(entry: Entry) -> bool:
    """Whether the entry is an event that holds one message of an inference."""
    return event_of(entry) in _MESSAGE_EVENTS


def event_of(entry: Entry) -> str | None:
    named = event_name(entry.document) or entry.own.get("event.name")
    return named if isinstance(named, str) else None


def is_exchange(entry: Entry) -> bool:
    """Whether the entry is one inference, and nothing that encloses it."""
    own = entry.own
    event = event_of(entry)
    if any(name == INFERENCE_EVENT for name, _ in otlp.events(entry)):
        event = INFERENCE_EVENT
    if event not in (None, INFERENCE_EVENT):
        return False
    operation = own.get(_OPERATION)
    if isinstance(operation, str):
        return operation in OPERATIONS or (
            operation not in ENCLOSING and (_INPUT in own or "gen_ai.prompt.0.content" in own)
        )
    if own.get("llm.request.type") in ("chat", "completion"):
        return True
    return (
        event == INFERENCE_EVENT
        or _INPUT in own
        or any(key.startswith("gen_ai.prompt.") for key in own)
    )


def read(entry: Entry, settings: IngestSettings) -> Exchange:
    own = dict(entry.own)
    for name, given in otlp.events(entry):
        if name == INFERENCE_EVENT:
            own |= given
    operation = own.get(_OPERATION)
    if isinstance(operation, str) and operation not in OPERATIONS:
        raise fields.not_read(
            "an operation of this name", "see docs/records.md", f"{entry.where}{_OPERATION}"
        )
    asked, answer = _content(entry, own, settings)
    raw = (isinstance(operation, str) and operation in _RAW) or own.get(
        "llm.request.type"
    ) == "completion"
    if raw and len(asked.messages) == 1 and asked.messages[0].role == "user":
        asked = dataclasses.replace(asked, text=asked.messages[0].content, messages=())
    if asked.messages:
        answer = chat.thought_apart(answer)
    return _exchange(entry, own, asked, answer, settings)


def _exchange(
    entry: Entry, own: Mapping[str, Any], asked: Asked, answer: Answer, settings: IngestSettings
) -> Exchange:
    at, foreign = entry.where, Foreign()
    request = {
        key.removeprefix("gen_ai.request."): value
        for key, value in own.items()
        if key.startswith("gen_ai.request.")
    }
    usage = {
        key.removeprefix("gen_ai.usage."): value
        for key, value in own.items()
        if key.startswith("gen_ai.usage.") and "cache" not in key
    }
    finished = answer.finish_reason or _first_reason(own.get("gen_ai.response.finish_reasons"))
    return Exchange(
        source_format="otel",
        asked=asked,
        answer=answer,
        counts=parameters.counts(usage),
        sampling=parameters.sampling(request, finished),
        prompt_id=foreign.identifier(own.get("gen_ai.response.id"), f"{at}gen_ai.response.id")
        or foreign.identifier(otlp.span_id(entry), f"{at}traceId"),
        conversation_id=foreign.identifier(
            own.get("gen_ai.conversation.id", own.get("session.id")), f"{at}gen_ai.conversation.id"
        ),
        model=foreign.first_name(own, at, "gen_ai.response.model", "gen_ai.request.model"),
        model_revision=foreign.first_name(
            own,
            at,
            "openai.response.system_fingerprint",
            "gen_ai.openai.response.system_fingerprint",
            "gen_ai.response.system_fingerprint",
        ),
        segment=otlp.labels(entry, settings),
        timestamp=otlp.time(entry),
        left_out=foreign.left_out,
    )


def _first_reason(value: object) -> str | None:
    if isinstance(value, list) and value:
        value = value[0]
    return parameters.label(value)


def _content(
    entry: Entry, own: Mapping[str, Any], settings: IngestSettings
) -> tuple[Asked, Answer]:
    if own.get(_INPUT) is not None:
        return _messages(entry, own, settings)
    if any(name in _MESSAGE_EVENTS for name, _ in otlp.events(entry)):
        return _message_events(entry, own, settings)
    if any(key.startswith("gen_ai.prompt.") for key in own):
        return _indexed(entry, own, settings)
    texts = [("gen_ai.prompt", own)]
    texts += [("gen_ai.prompt", given) for name, given in otlp.events(entry)]
    for key, given in texts:
        if isinstance(given.get(key), str) and given[key]:
            raise fields.not_read(
                "a prompt as one text (gen_ai.content.prompt)",
                "send gen_ai.input.messages",
                f"{entry.where}{key}",
            )
    raise Skipped(SkipReason.CONTENT_REDACTED)


def _messages(
    entry: Entry, own: Mapping[str, Any], settings: IngestSettings
) -> tuple[Asked, Answer]:
    at, nesting = entry.where, settings.max_nesting
    given = fields.opened(own[_INPUT], at + _INPUT, nesting, _CUT_HELP)
    if _left_out(given):
        raise Skipped(SkipReason.CONTENT_REDACTED)
    read = chat.read(given, at + _INPUT)
    read.join_calls()
    if own.get(_SYSTEM) is not None:
        _add_instructions(read, own[_SYSTEM], at + _SYSTEM, settings)
    answer = NO_ANSWER
    if own.get(_OUTPUT) is not None:
        output = fields.opened(own[_OUTPUT], at + _OUTPUT, nesting, _CUT_HELP)
        answer = api.choices_of_messages(fields.sequence(output, at + _OUTPUT), at + _OUTPUT)
    elif any(key.startswith("gen_ai.completion.") for key in own):
        answer = _indexed_answer(own, at)
    return chat.asked(read, at + _INPUT, tools=_tools(own, at, settings), parameters={}), answer


def _left_out(given: object) -> bool:
    """Content of a role that always says something is missing from a message: half a chat is none.

    OpenTelemetry's instrumentation of OpenAI writes no parts for content in several parts; pydantic-ai
    writes the kinds of the parts alone when its content is turned off.
    """
    return isinstance(given, list) and any(
        isinstance(message, dict)
        and message.get("role") in ("system", "developer", "user", "tool")
        and not message.get("content")
        and _empty(message.get("parts"))
        for message in given[: parts.LIMIT]
    )


def _empty(listed: object) -> bool:
    return isinstance(listed, list) and (
        not listed or any(part == {"type": "text"} for part in listed[: parts.LIMIT])
    )


def _add_instructions(read: Chat, value: Any, where: str, settings: IngestSettings) -> None:
    """System instructions: a list of parts, the same as JSON, text as JSON, or bare text."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", '"'):
        try:
            value = fields.opened(value, where, settings.max_nesting, _CUT_HELP)
        except Unreadable as error:
            if "found other text" not in error.detail:
                raise
    read.add_system(value, where)


def _tools(
    own: Mapping[str, Any], at: str, settings: IngestSettings
) -> tuple[Mapping[str, Any], ...]:
    key = "gen_ai.tool.definitions"
    if own.get(key) is not None:
        listed = fields.opened(own[key], at + key, settings.max_nesting, _CUT_HELP)
        return parameters.tools({"tools": listed}, at)
    found = []
    for entry in otlp.indexed(own, "llm.request.functions.", parameters.TOOLS_LIMIT):
        one = dict(entry)
        where = f"{at}llm.request.functions"
        one["parameters"] = fields.opened(
            one.get("parameters"), where, settings.max_nesting, _CUT_HELP
        )
        found.append(one)
    return parameters.tools({"functions": found}, at)


def _message_events(
    entry: Entry, own: Mapping[str, Any], settings: IngestSettings
) -> tuple[Asked, Answer]:
    """Events of one span, in order: a message each, and the first choice."""
    read, choices = Chat(), []
    for index, (name, given) in enumerate(otlp.events(entry)):
        at = f"{entry.where}events[{index}]"
        if name not in _MESSAGE_EVENTS:
            continue
        fields.within(len(read.messages), parts.LIMIT, at, "messages")
        body = fields.opened(
            given.get("gen_ai.event.content", given), at, settings.max_nesting, _CUT_HELP
        )
        message = dict(fields.mapping(body, at))
        if name == CHOICE:
            choices.append((message, at))
            continue
        message.setdefault("role", name.split(".")[1])
        if message["role"] == "tool":
            message.setdefault("tool_call_id", message.get("id"))
        message["tool_calls"] = fields.opened(
            message.get("tool_calls"), f"{at}.tool_calls", settings.max_nesting, _CUT_HELP
        )
        read.add(message, at)
    if not any(m.content or m.tool_calls for m in read.messages) and not read.media:
        raise Skipped(SkipReason.CONTENT_REDACTED)
    answer = NO_ANSWER
    if choices:
        first, at = next((c for c in choices if c[0].get("index") in (0, "0")), choices[0])
        inner = fields.opened(
            first.get("message", first), f"{at}.message", settings.max_nesting, _CUT_HELP
        )
        answer = dataclasses.replace(
            chat.answer(inner, f"{at}.message"),
            finish_reason=parameters.label(first.get("finish_reason")),
        )
    tools = _tools(own, entry.where, settings)
    return chat.asked(read, f"{entry.where}events", tools=tools, parameters={}), answer


def _indexed(
    entry: Entry, own: Mapping[str, Any], settings: IngestSettings
) -> tuple[Asked, Answer]:
    """OpenLLMetry's attributes ``gen_ai.prompt.0.role`` and so on."""
    at = f"{entry.where}gen_ai.prompt"
    read = Chat()
    listed = otlp.indexed(own, "gen_ai.prompt.", parts.LIMIT)
    for index, given in enumerate(listed):
        where = f"{at}.{index}"
        content = given.get("content")
        if isinstance(content, str) and content.startswith('[{"'):
            content = fields.opened(content, f"{where}.content", settings.max_nesting, _CUT_HELP)
        read.add(
            {
                "role": given.get("role", "user"),
                "content": content,
                "reasoning": given.get("reasoning"),
                "tool_call_id": given.get("tool_call_id"),
                "tool_calls": _indexed_calls(given),
            },
            where,
        )
    if not any(m.content or m.tool_calls for m in read.messages) and not read.media:
        raise Skipped(SkipReason.CONTENT_REDACTED)
    asked = chat.asked(read, at, tools=_tools(own, entry.where, settings), parameters={})
    return asked, _indexed_answer(own, entry.where)


def _indexed_answer(own: Mapping[str, Any], at: str) -> Answer:
    listed = otlp.indexed(own, "gen_ai.completion.", parts.LIMIT)
    if not listed:
        return NO_ANSWER
    first = listed[0]
    said = {
        "role": first.get("role", "assistant"),
        "content": first.get("content"),
        "reasoning": first.get("reasoning"),
        "tool_calls": _indexed_calls(first),
    }
    if first.get("function_call.name") is not None:
        said["function_call"] = {
            "name": first["function_call.name"],
            "arguments": first.get("function_call.arguments"),
        }
    return dataclasses.replace(
        chat.answer(said, f"{at}gen_ai.completion.0"),
        finish_reason=parameters.label(first.get("finish_reason")),
    )


def _indexed_calls(given: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "id": call.get("id"),
            "function": {
                "name": call.get("name", call.get("function.name")),
                "arguments": call.get("arguments", call.get("function.arguments")),
            },
        }
        for call in otlp.indexed(given, "tool_calls.", parts.LIMIT)
    ]
