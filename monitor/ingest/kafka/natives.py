"""The client library's partitions, records and errors, and ours."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from kafka import KafkaConsumer, TopicPartition
from kafka.consumer.fetcher import Fetcher
from kafka.consumer.subscription_state import SubscriptionState

from monitor.errors import BrokerUnavailable, StopLoudly
from monitor.ingest.kafka.batches import UnreadBatch
from monitor.values.prompts import RawRecord
from monitor.values.reading import Partition

NAMED: Final = 20
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_MS: Final = 253_402_300_799_000  # 9999-12-31T23:59:59Z


def native(partition: Partition) -> TopicPartition:
    return TopicPartition(*partition)


def key_of(native: TopicPartition) -> Partition:
    return (native.topic, native.partition)


def names_of(partitions: Iterable[Partition]) -> list[str]:
    """``topic/number`` of each, in order; of very many the first, and how many more there are."""
    names = [f"{topic}/{number}" for topic, number in sorted(partitions)]
    return names if len(names) <= NAMED else [*names[:NAMED], f"and {len(names) - NAMED} more"]


def raw_record(record: Any) -> RawRecord:
    """A record of the client library; a timestamp outside of the calendar is moved to its border."""
    return RawRecord(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        timestamp=_EPOCH + timedelta(milliseconds=min(max(record.timestamp, 0), _LAST_MS)),
        value=record.value,
        key=record.key,
        headers=tuple((name, content or b"") for name, content in record.headers or ()),
        unread_from=record.value.first if isinstance(record.value, UnreadBatch) else None,
    )


def topic_id(consumer: KafkaConsumer, topic: str) -> UUID | None:
    """The broker's id of the topic, as of the last metadata; None from a broker without such ids."""
    found: UUID | None = consumer._client.cluster.topic_id(topic)
    return found


def positions(consumer: KafkaConsumer) -> dict[Partition, int]:
    """Where the next record of each assigned partition is expected; without asking anybody.

    `KafkaConsumer.position` walks over all partitions for each that it is asked for.
    """
    standing = consumer._subscription.all_consumed_offsets()
    return {key_of(one): position.offset for one, position in standing.items()}


def high_watermarks(
    consumer: KafkaConsumer,
) -> Callable[[list[TopicPartition], int], dict[TopicPartition, int]]:
    """As ``consumer.end_offsets``, but up to the end of the log, also behind open transactions."""
    fetcher = Fetcher(
        consumer._client,
        SubscriptionState(),
        isolation_level="read_uncommitted",
        request_timeout_ms=consumer.config["request_timeout_ms"],
        retry_backoff_ms=consumer.config["retry_backoff_ms"],
    )
    ask: Callable[[list[TopicPartition], int], dict[TopicPartition, int]] = fetcher.end_offsets
    return ask


def look_up(
    ask: Callable[[list[TopicPartition], int], dict[TopicPartition, int]],
    partitions: Iterable[Partition],
    timeout_ms: int,
) -> dict[Partition, int]:
    """Offsets by ``consumer.beginning_offsets`` or ``end_offsets``. Blocks for ``timeout_ms`` at most.

    Raises `BrokerUnavailable` while a partition has no leader, and the library's own `KafkaError`.
    """
    try:
        found = ask(list(map(native, partitions)), timeout_ms)
    except KeyError as error:  # how the library says that a partition has no leader just now
        raise BrokerUnavailable(f"the log's limits are not known: {error}") from None
    return {key_of(one): offset for one, offset in found.items()}


def truncated(ends: Mapping[Partition, tuple[int, int | None]]) -> StopLoudly:
    """``ends``: up to which offset a partition was read, and where its log ends now (None: not known)."""
    told = ", ".join(
        f"{names_of([one])[0]} (read up to {read}, the log {'ends at ' + str(end) if end is not None else 'is another'})"
        for one, (read, end) in sorted(ends.items())
    )
    topics = " ".join(f"--topic {topic}" for topic in sorted({topic for topic, _ in ends}))
    return StopLoudly(
        f"a log ends before the stored offset: {told}. The topic was made anew, records were lost in an "
        "unclean leader election, or this is another cluster",
        hint=f"Nothing was skipped. Decide where reading goes on: `monitor offsets move {topics} --to earliest` "
        "(what the log holds and was not read), or `--to latest`.",
    )


def made_anew(topics: Mapping[str, tuple[UUID, UUID]]) -> StopLoudly:
    """``topics``: the id that the group began to read, and the id that the broker tells now."""
    named = ", ".join(f"{topic} (id {old}, now {new})" for topic, (old, new) in topics.items())
    options = " ".join(f"--topic {topic}" for topic in topics)
    return StopLoudly(
        f"the topic was made anew since it was read: {named}. The stored offsets are those of another log",
        hint=f"Decide where reading goes on: `monitor offsets move {options} --to earliest` reads all that it "
        "holds, `--to latest` what comes from now on.",
    )
