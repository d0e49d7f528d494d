"""The newest records of the topics, looked at without joining the group and without committing."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError, UnsupportedCodecError

from monitor.errors import ConfigurationError
from monitor.ingest.kafka.codecs import INSTALL
from monitor.ingest.kafka.connection import close, missing_topics, open_client
from monitor.ingest.kafka.natives import raw_record
from monitor.ingest.kafka.options import consumer_options, failure
from monitor.settings import KafkaSettings
from monitor.values.prompts import RawRecord

RECORDS: Final = 300
BYTES: Final = 32 * 1024 * 1024
SECONDS: Final = 10.0
_PATIENCE_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Newest:
    """``records`` in the order of partition and offset, from ``partitions`` that hold any."""

    records: tuple[RawRecord, ...]
    partitions: int
    cut: bool = False
    """Time or bytes ran out before all were read."""


def newest_records(
    settings: KafkaSettings,
    *,
    records: int = RECORDS,
    most_bytes: int = BYTES,
    seconds: float = SECONDS,
) -> Newest:
    """The newest ``records`` of ``kafka.topics``, about as many of every partition.

    Stops after ``seconds`` or ``most_bytes`` with what it has; connecting may block for half a minute.
    Raises `BrokerUnavailable` or `ConfigurationError`; topics that do not exist hold no records.
    """
    options = consumer_options(settings) | {"group_id": None, "fetch_max_bytes": most_bytes}
    consumer = open_client(KafkaConsumer, settings, options)
    try:
        missing_topics(consumer, settings.topics, _PATIENCE_SECONDS)
        return _read(consumer, settings, records, most_bytes, seconds)
    except UnsupportedCodecError as error:
        raise ConfigurationError(f"the newest records: {error.args[0]}", hint=INSTALL) from None
    except KafkaError as error:
        raise failure(error, settings) from None
    finally:
        close(consumer)


def _read(
    consumer: KafkaConsumer, settings: KafkaSettings, records: int, most_bytes: int, seconds: float
) -> Newest:
    partitions = [
        TopicPartition(topic, number)
        for topic in settings.topics
        for number in sorted(consumer.partitions_for_topic(topic) or ())
    ]
    if not partitions:
        return Newest(records=(), partitions=0)
    first, last = consumer.beginning_offsets(partitions), consumer.end_offsets(partitions)
    starts = _starts(
        {one: (first[one], last[one]) for one in partitions if last[one] > first[one]}, records
    )
    consumer.assign(list(starts))
    for partition, offset in starts.items():
        consumer.seek(partition, offset)
    found: list[RawRecord] = []
    size, left = 0, set(starts)
    deadline = time.monotonic() + seconds
    while left and size < most_bytes and time.monotonic() < deadline:
        for batch in consumer.poll(200).values():
            for record in batch:
                # The log may have grown since, and a fetch may bring more than was asked for.
                newer = record.offset >= last[TopicPartition(record.topic, record.partition)]
                if newer or size >= most_bytes:
                    continue
                found.append(raw_record(record))
                size += len(record.value or b"")
        left = {one for one in left if (consumer.position(one) or 0) < last[one]}
    return Newest(
        records=tuple(sorted(found, key=lambda one: (one.topic, one.partition, one.offset))),
        partitions=len(starts),
        cut=bool(left) or size >= most_bytes,
    )


def _starts(
    limits: Mapping[TopicPartition, tuple[int, int]], records: int
) -> dict[TopicPartition, int]:
    """Where to begin in each partition, given [first, last).

    Equal shares; what the shorter logs do not have goes to the longer ones, which come last.
    """
    starts: dict[TopicPartition, int] = {}
    by_length = sorted(limits.items(), key=lambda item: (item[1][1] - item[1][0], item[0]))
    for index, (partition, (first, last)) in enumerate(by_length):
        share = min(last - first, records // (len(by_length) - index))
        if share:
            starts[partition] = last - share
        records -= share
    return starts
