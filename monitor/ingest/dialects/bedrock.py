"""Amazon Bedrock: model invocation logs of Converse and of InvokeModel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from monitor.ingest import fields, parameters
from monitor.ingest.dialects import api, stream
from monitor.ingest.dialects.dialect import Dialect, Document
from monitor.ingest.exchange import Exchange
from monitor.ingest.fields import Skipped
from monitor.ingest.foreign import Foreign
from monitor.settings import IngestSettings
from monitor.values.prompts import SkipReason


def read(document: Document, settings: IngestSettings) -> Exchange:
    """A raw prompt of InvokeModel is in the model's own prompt format: its special tokens are tokens.

    Bodies of more than 100 kB stay in S3 and are not read; a log without bodies is CONTENT_REDACTED.
    """
    given = fields.mapping(document.get("input") or {}, "input")
    output = fields.mapping(document.get("output") or {}, "output")
    body = given.get("inputBodyJson")
    for side, at in ((given, "input.inputBodyS3Path"), (output, "output.outputBodyS3Path")):
        if side.get(at.partition(".")[2]) is not None:
            raise fields.not_read("a Bedrock body that was left in S3", "send bodies inline", at)
    if not body:
        raise Skipped(SkipReason.CONTENT_REDACTED)
    at = "input.inputBodyJson."
    request = _request(
        fields.mapping(
            fields.opened(body, at[:-1], settings.max_nesting, "log whole bodies"), at[:-1]
        )
    )
    response = _response(output.get("outputBodyJson"))
    if isinstance(response, dict) and not {"embedding", "embeddings", "images"}.isdisjoint(
        response
    ):
        raise Skipped(SkipReason.NOT_A_PROMPT)
    metadata = document.get("requestMetadata")
    foreign = Foreign()
    return api.exchange(
        "bedrock",
        api.Pair(
            request=request,
            response=response,
            request_at=at,
            response_at="output.outputBodyJson",
            continues=True,
        ),
        foreign,
        settings.max_nesting,
        counts=parameters.served(given.get("inputTokenCount"), output.get("outputTokenCount")),
        prompt_id=foreign.identifier(document.get("requestId"), "requestId"),
        model=foreign.name(document.get("modelId"), "modelId"),
        segment=fields.chosen_labels(
            metadata if isinstance(metadata, dict) else {}, settings.segment_keys
        )
        or None,
        timestamp=foreign.time(document.get("timestamp"), "timestamp"),
    )


def _request(body: dict[str, Any]) -> dict[str, Any]:
    if isinstance(body.get("inputText"), str):  # Titan
        settings = body.get("textGenerationConfig")
        inner = settings if isinstance(settings, dict) else {}
        return {**inner, "prompt": body["inputText"]}
    if body.get("messages") is None and "prompt" in body:
        return {**body, "raw": True}
    return body


def _response(body: object) -> Any:
    """A streamed answer is logged as the list of its events."""
    if not isinstance(body, list) or not body:
        return body
    pieces = [event.get("generation") for event in body if isinstance(event, dict)]
    if all(isinstance(piece, str) for piece in pieces):
        last = body[-1] if isinstance(body[-1], dict) else {}
        return {**last, "generation": "".join(str(piece) for piece in pieces)}
    return stream.assembled(body, "output.outputBodyJson")


def told(document: Mapping[str, Any]) -> bool:
    return document.get("schemaType") == "ModelInvocationLog"


BEDROCK: Final = Dialect(name="bedrock", told=told, read=read)
