"""Exchanges in several records, as KServe and OpenTelemetry's older instrumentations write them."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import orjson

from monitor.values.prompts import RawRecord
from tests.ingest.conftest import APPENDED

QUESTION, ANSWER = "How do I boil an egg?", "Ten minutes in boiling water."
KSERVE = "org.kubeflow.serving.inference."


def kserve(side: str, number: int | str = 1, **attributes: str) -> dict[str, Any]:
    """One event of KServe's payload logger, in structured mode."""
    body: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": QUESTION}]}
    if side == "response":
        message = {"role": "assistant", "content": ANSWER}
        body = {"model": "m", "choices": [{"index": 0, "message": message}]}
    return {
        "specversion": "1.0",
        "id": f"call-{number}",
        "type": KSERVE + side,
        "source": "http://localhost:9081/",
        "inferenceservicename": "egg",
        "data": body,
    } | attributes


def attribute(key: str, value: str) -> dict[str, Any]:
    return {"key": key, "value": {"stringValue": value}}


def message(role: str, content: str = QUESTION, *, span: int = 1) -> dict[str, Any]:
    """A log record with one message; ``choice`` is the answer."""
    body = [attribute("content", content)]
    if role == "choice":
        said = {"values": [attribute("role", "assistant"), attribute("content", content)]}
        body = [
            {"key": "index", "value": {"intValue": "0"}},
            attribute("finish_reason", "stop"),
            {"key": "message", "value": {"kvlistValue": said}},
        ]
    return {
        "traceId": f"{span:032x}",
        "spanId": f"{span:016x}",
        "timeUnixNano": "1772366400000000000",
        "eventName": "gen_ai.choice" if role == "choice" else f"gen_ai.{role}.message",
        "attributes": [attribute("gen_ai.system", "openai")],
        "body": {"kvlistValue": {"values": body}},
    }


def logs(*records: dict[str, Any]) -> dict[str, Any]:
    """What the collector's Kafka exporter writes of log records, as JSON."""
    return {"resourceLogs": [{"scopeLogs": [{"logRecords": list(records)}]}]}


def raw(
    document: Any,
    offset: int = 0,
    *,
    partition: int = 0,
    after: float = 0.0,
    key: bytes | None = b"k",
    at: datetime = APPENDED,
    headers: tuple[tuple[str, bytes], ...] = (),
) -> RawRecord:
    """A record of a topic, appended ``after`` seconds."""
    value = document if isinstance(document, bytes) else orjson.dumps(document)
    return RawRecord(
        topic="t",
        partition=partition,
        offset=offset,
        timestamp=at + timedelta(seconds=after),
        value=value,
        key=key,
        headers=headers,
    )
