"""Dead letters, and what arrives of them on their topic."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from kafka import KafkaConsumer, TopicPartition

from monitor.values.prompts import DeadLetter, DeadReason, RecordKey


def letters(first: int, count: int) -> list[DeadLetter]:
    return [
        DeadLetter(
            key=RecordKey(topic="prompts", partition=0, offset=offset, index=0),
            recorded_at=datetime(2026, 3, 4, tzinfo=UTC),
            reason=DeadReason.NOT_JSON,
            detail="line 1",
            content=None,
        )
        for offset in range(first, first + count)
    ]


def told(bootstrap: str, topic: str, count: int) -> list[int]:
    consumer = KafkaConsumer(
        bootstrap_servers=bootstrap, auto_offset_reset="earliest", consumer_timeout_ms=10_000
    )
    consumer.assign([TopicPartition(topic, 0)])
    try:
        return [json.loads(next(consumer).value)["offset"] for _ in range(count)]
    finally:
        consumer.close()
