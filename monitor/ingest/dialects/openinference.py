"""OpenInference (Phoenix): spans of kind LLM, with messages as indexed attributes."""

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

REDACTED: Final = "__REDACTED__"
_CALLED: Final = "tool_call.function.name"
_CUT_HELP: Final = "raise the attribute length limit of the SDK or collector"


def read(entry: Entry, settings: IngestSettings) -> Exchange:
    """The bodies in ``input.value`` and ``output.value`` where they are an API's own objects, which hold
    more (reasoning, tools); else the indexed attributes."""
    own = entry.own
    asked, answer = _bodies(own, settings) or _attributes(entry, settings)
    if asked.messages:
        answer = chat.thought_apart(answer)
    at, foreign = entry.where, Foreign()
    drawn = _object(own.get("llm.invocation_parameters"), settings)
    finished = answer.finish_reason or parameters.label(own.get("llm.finish_reason"))
    return Exchange(
        source_format="openinference",
        asked=asked,
        answer=answer,
        counts=parameters.served(
            own.get("llm.token_count.prompt"), own.get("llm.token_count.completion")
        ),
        sampling=parameters.sampling({**asked.parameters, **drawn}, finished),
        prompt_id=foreign.identifier(otlp.span_id(entry), f"{at}traceId"),
        conversation_id=foreign.identifier(own.get("session.id"), f"{at}session.id"),
        model=foreign.name(own.get("llm.model_name"), f"{at}llm.model_name"),
        model_revision=foreign.name(
            _object(own.get("output.value"), settings).get("system_fingerprint"),
            f"{at}output.value",
        ),
        segment=otlp.labels(entry, settings),
        timestamp=otlp.time(entry),
        left_out=foreign.left_out,
    )


def _object(value: object, settings: IngestSettings) -> dict[str, Any]:
    """A JSON object given as text; nothing where it is none."""
    if not isinstance(value, str) or not fields.looks_like_json(value):
        return {}
    try:
        document = fields.decode(value, "record", settings.max_nesting)
    except Unreadable:
        return {}
    return document if isinstance(document, dict) else {}


def _bodies(own: Mapping[str, Any], settings: IngestSettings) -> tuple[Asked, Answer] | None:
    request = _object(own.get("input.value"), settings)
    response = _object(own.get("output.value"), settings)
    known = request.get("messages") or request.get("input") or request.get("prompt")
    anthropic = response.get("type") == "message" and "content" in response
    if not known or not (anthropic or {"choices", "output"} & response.keys()):
        return None
    try:
        asked, answer, _ = api.read(
            api.Pair(
                request=request,
                response=response,
                request_at="input.value.",
                continues=anthropic,
            ),
            settings.max_nesting,
        )
    except (Unreadable, Skipped):
        return None
    return asked, answer


def _attributes(entry: Entry, settings: IngestSettings) -> tuple[Asked, Answer]:
    own, at = entry.own, entry.where
    given = otlp.indexed(own, "llm.input_messages.", parts.LIMIT)
    if not given:
        return _raw(entry)
    read = Chat()
    for index, message in enumerate(given):
        read.add(_message(message), f"{at}llm.input_messages.{index}.message")
    if any(REDACTED in message.content for message in read.messages):
        raise Skipped(SkipReason.CONTENT_REDACTED)
    served = otlp.indexed(own, "llm.output_messages.", parts.LIMIT)
    answer = NO_ANSWER
    if served:
        answer = api.choices_of_messages(
            [{"role": "assistant", **_message(message)} for message in served],
            f"{at}llm.output_messages",
        )
        if answer.text == REDACTED:
            answer = NO_ANSWER
    tools = [
        fields.opened(
            tool.get("tool.json_schema"), f"{at}llm.tools", settings.max_nesting, _CUT_HELP
        )
        for tool in otlp.indexed(own, "llm.tools.", parameters.TOOLS_LIMIT)
    ]
    return (
        chat.asked(read, f"{at}llm.input_messages", tools=parameters.tools({"tools": tools}, at)),
        answer,
    )


def _message(given: Mapping[str, Any]) -> dict[str, Any]:
    """One message's attributes as a message object."""
    own = {key.removeprefix("message."): value for key, value in given.items()}
    contents = otlp.indexed(own, "contents.", parts.LIMIT)
    listed = [_part(part) for part in contents if _CALLED not in part]
    # calls may stand among the contents too, where they are the same ones
    called = otlp.indexed(own, "tool_calls.", parts.LIMIT) or [
        part for part in contents if _CALLED in part
    ]
    calls = [
        {
            "id": call.get("tool_call.id"),
            "function": {
                "name": call.get(_CALLED),
                "arguments": call.get("tool_call.function.arguments"),
            },
        }
        for call in called
    ]
    message = {
        "content": listed or own.get("content"),
        "tool_calls": calls,
        "tool_call_id": own.get("tool_call_id"),
        "name": own.get("name"),
    }
    if "role" in own:
        message["role"] = own["role"]
    if own.get("function_call_name") is not None:
        message["function_call"] = {
            "name": own["function_call_name"],
            "arguments": own.get("function_call_arguments_json"),
        }
    return message


def _part(given: Mapping[str, Any]) -> dict[str, Any]:
    part = {key.removeprefix("message_content."): value for key, value in given.items()}
    return {"type": part.get("type", "text"), **{k: v for k, v in part.items() if k != "type"}}


def _raw(entry: Entry) -> tuple[Asked, Answer]:
    """A raw completion: ``llm.prompts.N.prompt.text``, or the older list ``llm.prompts``."""
    own, at = entry.own, f"{entry.where}llm.prompts"
    prompts: list[Any] = [
        given.get("prompt.text") for given in otlp.indexed(own, "llm.prompts.", parts.LIMIT)
    ]
    older = own.get("llm.prompts")
    if not prompts and isinstance(older, list):
        prompts = older
    if not prompts or prompts[0] == REDACTED:
        raise Skipped(SkipReason.CONTENT_REDACTED)
    if len(prompts) > 1:
        raise fields.not_read("a span of several prompts", "send one prompt a call", at)
    choices = otlp.indexed(own, "llm.choices.", parts.LIMIT)
    text = choices[0].get("completion.text") if choices else None
    return (
        Asked(text=chat.raw(fields.text(prompts[0], at), at)),
        dataclasses.replace(NO_ANSWER, text=text if isinstance(text, str) and text else None),
    )
