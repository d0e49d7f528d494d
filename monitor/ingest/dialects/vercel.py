"""The Vercel AI SDK's spans: ``ai.*.doGenerate`` and ``ai.*.doStream``, one call of the model each.

The spans around them (``ai.generateText`` …) enclose several and are passed over.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from monitor.ingest import chat, fields, parameters
from monitor.ingest.dialects import otlp
from monitor.ingest.dialects.otlp import Entry
from monitor.ingest.exchange import NO_ANSWER, Answer, Exchange
from monitor.ingest.fields import Skipped
from monitor.ingest.foreign import Foreign
from monitor.settings import IngestSettings
from monitor.values.prompts import SkipReason

_CUT_HELP: Final = "raise the attribute length limit of the SDK or collector"
_MESSAGES: Final = "ai.prompt.messages"


def is_exchange(own: Mapping[str, Any]) -> bool:
    return str(own.get("ai.operationId")).endswith((".doGenerate", ".doStream"))


def read(entry: Entry, settings: IngestSettings) -> Exchange:
    own, at, nesting = entry.own, entry.where, settings.max_nesting
    if own.get(_MESSAGES) is None:
        raise Skipped(SkipReason.CONTENT_REDACTED)
    given = fields.opened(own[_MESSAGES], at + _MESSAGES, nesting, _CUT_HELP)
    asked = chat.asked(
        chat.read(given, at + _MESSAGES), at + _MESSAGES, tools=_tools(own, at, settings)
    )
    answer = chat.thought_apart(_answer(own, at, settings))
    foreign = Foreign()
    drawn = {
        key.rpartition(".")[2]: value
        for key, value in own.items()
        if key.startswith(("gen_ai.request.", "ai.settings."))
    }
    usage = {
        key.rpartition(".")[2]: value
        for key, value in own.items()
        if key.startswith(("ai.usage.", "gen_ai.usage.")) and "cache" not in key.lower()
    }
    labels = {
        key.removeprefix("ai.telemetry.metadata."): value
        for key, value in own.items()
        if key.startswith("ai.telemetry.metadata.")
    }
    return Exchange(
        source_format="vercel",
        asked=asked,
        answer=answer,
        counts=parameters.counts(usage),
        sampling=parameters.sampling(drawn, answer.finish_reason),
        prompt_id=foreign.first_name(own, at, "ai.response.id", "gen_ai.response.id")
        or foreign.identifier(otlp.span_id(entry), f"{at}traceId"),
        conversation_id=foreign.identifier(
            labels.get("sessionId"), f"{at}ai.telemetry.metadata.sessionId"
        ),
        model=foreign.first_name(
            own, at, "ai.response.model", "gen_ai.response.model", "ai.model.id"
        ),
        segment=otlp.labels(entry, settings) | fields.chosen_labels(labels, settings.segment_keys),
        timestamp=otlp.time(entry),
        left_out=foreign.left_out,
    )


def _answer(own: Mapping[str, Any], at: str, settings: IngestSettings) -> Answer:
    """Text, an object that was asked for as JSON, reasoning and calls; ``ai.result.*`` is older."""

    def found(*keys: str) -> tuple[Any, str]:
        return next(
            ((own[key], at + key) for key in keys if own.get(key) not in (None, "")), (None, at)
        )

    text, _ = found("ai.response.text", "ai.result.text", "ai.response.object", "ai.result.object")
    reasoning, _ = found("ai.response.reasoning")
    calls, where = found("ai.response.toolCalls", "ai.result.toolCalls")
    said: dict[str, Any] = {"content": [] if text is None else [{"type": "text", "text": text}]}
    if isinstance(reasoning, str):
        said["reasoning"] = reasoning
    listed = fields.opened(calls, where, settings.max_nesting, _CUT_HELP) if calls else []
    for call in fields.sequence(listed, where):
        said["content"].append({**fields.mapping(call, where), "type": "tool-call"})
    answer = chat.answer(said, f"{at}ai.response")
    finished, _ = found("ai.response.finishReason", "ai.finishReason", "ai.result.finishReason")
    if answer == NO_ANSWER and not listed:
        return NO_ANSWER
    return Answer(
        text=answer.text,
        reasoning=answer.reasoning,
        tool_calls=answer.tool_calls,
        finish_reason=parameters.label(finished),
    )


def _tools(
    own: Mapping[str, Any], at: str, settings: IngestSettings
) -> tuple[Mapping[str, Any], ...]:
    key = "ai.prompt.tools"
    value = fields.opened(own.get(key), at + key, settings.max_nesting, _CUT_HELP)
    if value is None:
        return ()
    listed = [
        fields.opened(tool, at + key, settings.max_nesting, _CUT_HELP)
        for tool in fields.sequence(value, at + key)
    ]
    return parameters.tools({"tools": listed}, at)
