"""KServe's payload logger: a CloudEvent for the request and one for the response, with the same id.

Source: KServe's ``pkg/logger`` (types ``org.kubeflow.serving.inference.request`` and ``.response``; the
model's names in ``inferenceservicename``, ``namespace``, ``component``, ``endpoint``). Several senders
log one call under one id where a transformer stands before a predictor: their names tell them apart.
A response is logged for status 200 alone, and by several workers, so it may come before its request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from monitor.ingest import fields
from monitor.ingest.cloudevents import Envelope
from monitor.ingest.dialects import exchanges, unread
from monitor.ingest.exchange import Exchange, Piece
from monitor.ingest.fields import Unreadable
from monitor.settings import IngestSettings
from monitor.values.prompts import DeadReason

EVENTS: Final = "org.kubeflow.serving.inference."
_SIDES: Final = ("request", "response")


def piece(envelope: Envelope) -> Piece:
    """One half: the body of the request or of the response, as it was served."""
    side = envelope.kind.removeprefix(EVENTS)
    if side not in _SIDES:
        raise fields.not_read("a KServe event of this type", "send request and response", "type")
    if envelope.event_id is None:
        raise Unreadable(DeadReason.INVALID_FIELD, "id: the event has none; request and response")
    if side == "request" and isinstance(envelope.data, dict):
        refusal = unread.named(envelope.data)
        if refusal is not None:
            raise refusal
    return Piece(
        dialect="kserve",
        name=(*envelope.origin, envelope.event_id),
        side=side,
        content={"body": envelope.data, "id": envelope.event_id},
    )


def joined(contents: Sequence[Mapping[str, Any]], settings: IngestSettings) -> Exchange:
    """The exchange in a request's and a response's content, in that order."""
    request, response = contents
    document = {"request": request["body"], "response": response["body"], "id": request["id"]}
    return exchanges.read(document, settings)
