"""Moving the reading point of a group, so that no record is counted twice.

What was read stays known (``read_spans``) and is passed over when reading comes to it again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Connection, text

from monitor.store.reading import begin_partitions, spans_read, topics_begun
from monitor.values.reading import Partition, Span, joined


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """How one partition is read."""

    next_offset: int
    read: tuple[Span, ...]
    """All offsets that were read, `joined`: where reading began up to ``next_offset``, and earlier spans."""


def partitions_begun(c: Connection, group_id: str) -> dict[Partition, Begun]:
    """Every partition that the group has begun to read. Locked until the transaction ends."""
    rows = c.execute(
        text("""
            SELECT topic, partition, begins_at, next_offset
            FROM monitor_data.offsets
            WHERE group_id = :group_id
            ORDER BY topic, partition
            FOR UPDATE
        """),
        {"group_id": group_id},
    ).all()
    earlier = spans_read(c, group_id, [(row.topic, row.partition) for row in rows])
    return {
        (row.topic, row.partition): Begun(
            next_offset=row.next_offset,
            read=joined(
                [
                    *earlier.get((row.topic, row.partition), ()),
                    (row.begins_at, row.next_offset),
                ]
            ),
        )
        for row in rows
    }


def move_topic(
    c: Connection,
    group_id: str,
    by: str,
    topic: str,
    topic_id: UUID | None,
    targets: Mapping[int, int],
    ends: Mapping[int, int],
) -> None:
    """Read the partitions of ``targets`` on from there, and pass over what was read already.

    ``ends`` are the ends of the logs now: what was read beyond one was of another log. When ``topic_id`` is
    not the one that was read, everything that is known of the topic is of another log and is forgotten.
    """
    known = topics_begun(c, group_id, [topic])
    before = known.get(topic)
    if topic in known and None not in (before, topic_id) and before != topic_id:
        _forget(c, group_id, topic)
    begun = {
        number: one for (of, number), one in partitions_begun(c, group_id).items() if of == topic
    }
    for number in sorted(targets.keys() & begun.keys()):
        read = [(first, min(end, ends[number])) for first, end in begun[number].read]
        _move(c, group_id, (topic, number), targets[number], joined(read))
    added = {(topic, number): targets[number] for number in targets.keys() - begun.keys()}
    begin_partitions(c, group_id, by, added)
    c.execute(
        text("""
            INSERT INTO monitor_data.topics (group_id, topic, topic_id)
            VALUES (:group_id, :topic, :topic_id)
            ON CONFLICT (group_id, topic) DO UPDATE SET
                topic_id = coalesce(excluded.topic_id, topics.topic_id)
        """),
        {"group_id": group_id, "topic": topic, "topic_id": topic_id},
    )


def _move(
    c: Connection, group_id: str, partition: Partition, target: int, read: tuple[Span, ...]
) -> None:
    where = {"group_id": group_id, "topic": partition[0], "partition": partition[1]}
    c.execute(
        text("""
            UPDATE monitor_data.offsets
            SET next_offset = :target, begins_at = :target, watermark = NULL, updated_at = now()
            WHERE group_id = :group_id AND topic = :topic AND partition = :partition
        """),
        {**where, "target": target},
    )
    c.execute(
        text("""
            DELETE FROM monitor_data.read_spans
            WHERE group_id = :group_id AND topic = :topic AND partition = :partition
        """),
        where,
    )
    if read:
        c.execute(
            text("""
                INSERT INTO monitor_data.read_spans
                    (group_id, topic, partition, first_offset, end_offset)
                VALUES (:group_id, :topic, :partition, :first, :end)
            """),
            [{**where, "first": first, "end": end} for first, end in read],
        )


def _forget(c: Connection, group_id: str, topic: str) -> None:
    for table in ("offsets", "read_spans", "halves", "log_ends", "topics"):
        c.execute(
            text(f"DELETE FROM monitor_data.{table} WHERE group_id = :group_id AND topic = :topic"),
            {"group_id": group_id, "topic": topic},
        )
