"""`monitor offsets`: where a group reads on, and moving it: never while it reads, never counting twice."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Engine

from monitor.errors import BadInput
from monitor.ingest.kafka import LogsNow, group_members, logs_now
from monitor.settings import Settings
from monitor.store.database import transaction
from monitor.store.moving import Begun, move_topic, partitions_begun
from monitor.store.packs import ALIVE
from monitor.store.reading import topics_begun
from monitor.store.workers import live_workers
from monitor.values.reading import Partition, outside

EARLIEST, LATEST = "earliest", "latest"


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """What moving does to one partition."""

    topic: str
    partition: int
    before: int | None
    """Where reading would go on; None: it has not begun."""
    after: int
    to_read: int
    """Offsets from there to the end of the log that were never read; compaction may have taken some away."""
    passed_over: int
    """Offsets from there on that were read already, and are not counted again."""
    skipped: int
    """Offsets between ``before`` and ``after`` that were never read, and now are not."""


def offsets_shown(
    database: Engine, settings: Settings, topics: Collection[str] = ()
) -> list[dict[str, object]]:
    """A row for every partition: what the store says, what Kafka says."""
    now = logs_now(settings.kafka, topics or settings.kafka.topics)
    with transaction(database) as c:
        begun = partitions_begun(c, settings.kafka.group_id)
        ids = topics_begun(c, settings.kafka.group_id, now.topic_ids)
    rows: list[dict[str, object]] = []
    for (topic, number), log in now.logs.items():
        known = begun.get((topic, number))
        at = known.next_offset if known else None
        rows.append(
            {
                "topic": topic,
                "partition": number,
                "reads_on_at": at,
                "log_start": log.first,
                "log_end": log.end,
                "to_read": outside((at, log.end), known.read) if known and at is not None else None,
                "committed_in_kafka": log.committed,
                "same_topic": _same(ids.get(topic), now.topic_ids[topic]),
            }
        )
    return rows


def planned(
    database: Engine,
    settings: Settings,
    topics: Sequence[str],
    partitions: Collection[int],
    to: int | datetime | str,
    now: datetime,
) -> tuple[list[Move], LogsNow]:
    """What moving to ``to`` would do: `EARLIEST`, `LATEST`, an offset, or the first record of a moment.

    Raises `BadInput` while workers of the group are alive, for an offset outside of a log, and for single
    partitions of a topic that was not begun or was made anew.
    """
    _require_nobody(database, settings, now)
    logs = logs_now(settings.kafka, topics, to if isinstance(to, datetime) else None)
    with transaction(database) as c:
        begun = partitions_begun(c, settings.kafka.group_id)
        ids = topics_begun(c, settings.kafka.group_id, topics)
    other = {one for one in topics if not _same(ids.get(one), logs.topic_ids[one])}
    if partitions:
        _require_partitions(logs, topics, partitions, {*other, *(set(topics) - ids.keys())})
    return [
        _move(one, logs, None if one[0] in other else begun.get(one), to)
        for one in logs.logs
        if not partitions or one[1] in partitions
    ], logs


def move(
    database: Engine,
    settings: Settings,
    moves: Sequence[Move],
    logs: LogsNow,
    by: str,
    now: datetime,
) -> None:
    """Do what was `planned`, in one transaction. Refuses as `planned` does."""
    _require_nobody(database, settings, now)
    with transaction(database) as c:
        for topic in sorted({one.topic for one in moves}):
            targets = {one.partition: one.after for one in moves if one.topic == topic}
            ends = {number: log.end for (of, number), log in logs.logs.items() if of == topic}
            move_topic(c, settings.kafka.group_id, by, topic, logs.topic_ids[topic], targets, ends)


def _move(
    partition: Partition, logs: LogsNow, begun: Begun | None, to: int | datetime | str
) -> Move:
    log = logs.logs[partition]
    if isinstance(to, int):
        if not log.first <= to <= log.end:
            raise BadInput(
                f"{partition[0]}/{partition[1]}: the log holds the offsets {log.first} to {log.end}, not {to}"
            )
        after = to
    elif isinstance(to, datetime):
        after = log.end if log.since is None else log.since
    else:
        after = log.first if to == EARLIEST else log.end
    read = begun.read if begun else ()
    to_read = outside((after, log.end), read)
    before = begun.next_offset if begun else None
    return Move(
        topic=partition[0],
        partition=partition[1],
        before=before,
        after=after,
        to_read=to_read,
        passed_over=log.end - after - to_read,
        skipped=0 if before is None else outside((max(before, log.first), after), read),
    )


def _same(kept: object, told: object) -> bool:
    return kept is None or told is None or kept == told


def _require_nobody(database: Engine, settings: Settings, now: datetime) -> None:
    with transaction(database) as c:
        alive = [
            worker.worker_id
            for worker in live_workers(c, now - ALIVE)
            if worker.group_id == settings.kafka.group_id
        ]
    members = group_members(settings.kafka)
    if alive or members:
        who = ", ".join(alive) or ", ".join(members)
        raise BadInput(
            f"the group {settings.kafka.group_id} is being read: {who}",
            hint="Stop its workers first. One that was killed counts as alive for two minutes.",
        )


def _require_partitions(
    logs: LogsNow, topics: Sequence[str], partitions: Collection[int], whole: Collection[str]
) -> None:
    for topic in topics:
        missing = [one for one in sorted(partitions) if (topic, one) not in logs.logs]
        if missing:
            raise BadInput(f"--partition: {topic} has no partition {missing[0]}")
    if whole:
        raise BadInput(
            f"--partition: {', '.join(sorted(whole))} was made anew or never read, so all of it is to be moved"
        )
