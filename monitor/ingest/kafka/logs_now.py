"""What the broker says of topics and group now, for a person who looks at reading points or moves them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from kafka import KafkaAdminClient, KafkaConsumer
from kafka.errors import KafkaError

from monitor.errors import BadInput
from monitor.ingest.kafka.committed import committed
from monitor.ingest.kafka.connection import close, missing_topics, open_client
from monitor.ingest.kafka.natives import high_watermarks, key_of, look_up, native, topic_id
from monitor.ingest.kafka.options import consumer_options, failure
from monitor.settings import KafkaSettings
from monitor.values.reading import Partition

TIMEOUT_MS: Final = 10_000
PATIENCE_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LogNow:
    """One partition: its records are [first, end)."""

    first: int
    end: int
    committed: int | None
    """By the group, in Kafka itself."""
    since: int | None = None
    """The first record of the moment that was asked about or later; None without one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogsNow:
    logs: Mapping[Partition, LogNow]
    topic_ids: Mapping[str, UUID | None]


def logs_now(
    settings: KafkaSettings, topics: Collection[str], since: datetime | None = None
) -> LogsNow:
    """Every partition of ``topics``, without joining the group.

    May block for half a minute. Raises `BrokerUnavailable`, `ConfigurationError`, and `BadInput` for a topic
    that is not there.
    """
    consumer = open_client(KafkaConsumer, settings, consumer_options(settings))
    try:
        names = sorted(topics)
        if missing := missing_topics(consumer, names, PATIENCE_SECONDS):
            raise BadInput(
                f"no such topic: {', '.join(missing)}",
                hint="Or this principal may not DESCRIBE it: then the broker hides it.",
            )
        every = [
            (topic, number)
            for topic in names
            for number in sorted(consumer.partitions_for_topic(topic))
        ]
        first = look_up(consumer.beginning_offsets, every, TIMEOUT_MS)
        end = look_up(high_watermarks(consumer), every, TIMEOUT_MS)
        at = _since(consumer, every, since) if since else {}
        set_in_kafka = committed(consumer, every)
        return LogsNow(
            logs={
                one: LogNow(
                    first=first[one],
                    end=end[one],
                    committed=set_in_kafka.get(one),
                    since=at.get(one),
                )
                for one in every
            },
            topic_ids={topic: topic_id(consumer, topic) for topic in names},
        )
    except KafkaError as error:
        raise failure(error, settings) from None
    finally:
        close(consumer)


def group_members(settings: KafkaSettings) -> list[str]:
    """Client and host of everybody who is in the consumer group now. May block, and raises, as `logs_now`."""
    options = {
        name: value
        for name, value in consumer_options(settings).items()
        if name in KafkaAdminClient.DEFAULT_CONFIG
    }
    admin = open_client(KafkaAdminClient, settings, options)
    try:
        found = admin.describe_groups([settings.group_id]).get(settings.group_id) or {}
        return sorted(
            f"{one['client_id']} at {one['client_host'].lstrip('/')}"
            for one in found.get("members") or ()
        )
    except KafkaError as error:
        raise failure(error, settings) from None
    finally:
        admin.close()


def _since(
    consumer: KafkaConsumer, partitions: Sequence[Partition], since: datetime
) -> dict[Partition, int]:
    wanted = {native(one): int(since.timestamp() * 1_000) for one in partitions}
    found = consumer.offsets_for_times(wanted, TIMEOUT_MS)
    return {key_of(one): at.offset for one, at in found.items() if at is not None}
