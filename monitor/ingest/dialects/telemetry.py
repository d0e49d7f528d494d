"""Telemetry: which spans and log records are exchanges, and in whose convention.

Of OpenTelemetry's GenAI convention (in all its ages), OpenInference, the Vercel AI SDK, Langfuse and
MLflow. One message may carry many operations, and among them much that is no prompt: that is passed
over without a number, so that an exchange which several spans enclose is counted once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from monitor.ingest.dialects import genai, langfuse, messages, mlflow, openinference, otlp, vercel
from monitor.ingest.dialects.dialect import Dialect, Document
from monitor.ingest.dialects.otlp import Entry
from monitor.ingest.exchange import Exchange, Piece
from monitor.ingest.fields import Skipped
from monitor.settings import IngestSettings
from monitor.values.prompts import SkipReason

_Read = Callable[[Entry, IngestSettings], Exchange | Piece]
_SIGNS: Final = ("gen_ai.", "llm.", "openinference.", "ai.", "traceloop.", "langfuse.", "mlflow.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    entry: Entry
    read: _Read


def split(document: Document, settings: IngestSettings) -> Sequence[Operation]:
    """The exchanges of a message, in order. None at all is NOT_A_PROMPT."""
    found = []
    for entry in otlp.entries(document):
        if (reader := _reader(entry)) is not None:
            found.append(Operation(entry=entry, read=reader))
    if not found:
        raise Skipped(SkipReason.NOT_A_PROMPT)
    return found


def _reader(entry: Entry) -> _Read | None:
    own = entry.own
    if "openinference.span.kind" in own:
        return openinference.read if own["openinference.span.kind"] == "LLM" else None
    if isinstance(own.get("ai.operationId"), str):
        return vercel.read if vercel.is_exchange(own) else None
    if langfuse.TYPE in own:
        return langfuse.read_span if langfuse.is_exchange(own) else None
    if mlflow.TYPE in own:
        return mlflow.read_span if mlflow.is_exchange(own) else None
    if genai.is_message(entry):
        return messages.piece if messages.is_read(entry) else None
    return genai.read if genai.is_exchange(entry) else None


def read(operation: Operation, settings: IngestSettings) -> Exchange | Piece:
    return operation.read(operation.entry, settings)


def told(document: Mapping[str, Any]) -> bool:
    if otlp.is_enveloped(document) or genai.event_name(document) is not None:
        return True
    if any(key.startswith("gen_ai.") for key in document):
        return True
    given = document.get("attributes")
    return given is not None and any(
        key.startswith(_SIGNS) and not key.startswith("ai.proxy") for key in otlp.attributes(given)
    )


OTEL: Final = Dialect(name="otel", told=told, read=read, split=split)
