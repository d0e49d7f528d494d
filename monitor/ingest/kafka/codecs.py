"""Which compressed records can be read here; gzip always can."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Final

from kafka import KafkaConsumer, TopicPartition, codec
from kafka.errors import UnsupportedCodecError

from monitor.errors import ConfigurationError

PACKAGES: Final[Mapping[str, str]] = {
    "snappy": "python-snappy",
    "lz4": "lz4",
    "zstd": "zstandard",
}
"""Codec → the package that the client library reads it with; all are dependencies of ours."""
INSTALL: Final = f"pip install {' '.join(PACKAGES.values())}"
READ_SECONDS: Final = 10.0


def readable_codecs() -> tuple[str, ...]:
    """The codecs that can be read; `ConfigurationError` when one cannot.

    A producer may turn on any of them at any time, and the worker ends at its first batch.
    """
    missing = [name for name in PACKAGES if not getattr(codec, f"has_{name}")()]
    if missing:
        raise ConfigurationError(
            f"records compressed with {', '.join(missing)} cannot be read: a worker that meets one "
            "stops",
            hint=f"pip install {' '.join(PACKAGES[name] for name in missing)}",
        )
    return ("gzip", *PACKAGES)


def newest_read(consumer: KafkaConsumer, topics: Sequence[str]) -> tuple[int, int]:
    """Read the newest batch of each partition: how many were read, how many hold records.

    Stops after `READ_SECONDS`. Raises `ConfigurationError` for a batch whose codec is not known here,
    and what the client library raises.
    """
    partitions = [
        TopicPartition(topic, number)
        for topic in topics
        for number in sorted(consumer.partitions_for_topic(topic) or ())
    ]
    if not partitions:
        return 0, 0
    first, last = consumer.beginning_offsets(partitions), consumer.end_offsets(partitions)
    filled = [one for one in partitions if last[one] > first[one]]
    deadline = time.monotonic() + READ_SECONDS
    read = 0
    for partition in filled:
        consumer.assign([partition])
        consumer.seek(partition, last[partition] - 1)
        while (consumer.position(partition) or 0) < last[partition]:
            if time.monotonic() > deadline:
                return read, len(filled)
            try:
                consumer.poll(200)
            except UnsupportedCodecError as error:
                raise ConfigurationError(
                    f"{partition.topic}/{partition.partition}: {error.args[0]}", hint=INSTALL
                ) from None
        read += 1
    return read, len(filled)
