"""Where a consumer group begins to read, and where it goes on.

A group begins a topic once, with every partition that the topic has at that moment. So a partition without
a stored offset, of a topic that the group reads, is one that was added later, whoever died meanwhile.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from uuid import UUID

from sqlalchemy import Connection, text

from monitor.store.border import clean
from monitor.store.chunks import start_offsets
from monitor.store.halves import waiting_halves
from monitor.values.reading import Partition, ReadingPoint, Span


def topics_begun(c: Connection, group_id: str, topics: Collection[str]) -> dict[str, UUID | None]:
    """Those of ``topics`` that the group has begun to read, with their ids.

    The id is None where the broker tells none, or the topic was begun by a release before revision 0009.
    """
    rows = c.execute(
        text("""
            SELECT topic, max(topic_id::text)::uuid AS topic_id
            FROM (
                SELECT topic, topic_id FROM monitor_data.topics WHERE group_id = :group_id
                UNION ALL
                SELECT topic, NULL FROM monitor_data.offsets WHERE group_id = :group_id
            ) AS begun
            WHERE topic = ANY(CAST(:topics AS text[]))
            GROUP BY topic
        """),
        {"group_id": group_id, "topics": sorted(topics)},
    )
    return {row.topic: row.topic_id for row in rows}


def begin_topic(
    c: Connection,
    group_id: str,
    worker_id: str,
    topic: str,
    topic_id: UUID | None,
    starts: Mapping[int, int],
) -> None:
    """Begin ``topic`` with all its partitions, by number; nothing when another worker was first."""
    first = c.scalar(
        text("""
            INSERT INTO monitor_data.topics (group_id, topic, topic_id)
            VALUES (:group_id, :topic, :topic_id)
            ON CONFLICT (group_id, topic) DO NOTHING
            RETURNING topic
        """),
        {"group_id": group_id, "topic": topic, "topic_id": topic_id},
    )
    if first is not None:
        begin_partitions(
            c, group_id, worker_id, {(topic, number): at for number, at in starts.items()}
        )


def begin_partitions(
    c: Connection, group_id: str, worker_id: str, starts: Mapping[Partition, int]
) -> None:
    """Begin to read each partition at its offset; one that is begun already stays where it is."""
    ordered = sorted(starts)
    c.execute(
        text("""
            INSERT INTO monitor_data.offsets
                (group_id, topic, partition, next_offset, begins_at, worker_id)
            SELECT :group_id, topic, partition, start, start, :worker_id
            FROM unnest(
                CAST(:topics AS text[]), CAST(:partitions AS int[]), CAST(:starts AS bigint[]))
                AS given (topic, partition, start)
            ON CONFLICT (group_id, topic, partition) DO NOTHING
        """),
        {
            "group_id": group_id,
            "worker_id": clean(worker_id),
            "topics": [topic for topic, _ in ordered],
            "partitions": [number for _, number in ordered],
            "starts": [starts[one] for one in ordered],
        },
    )


def reading_points(
    c: Connection, group_id: str, partitions: Collection[Partition]
) -> dict[Partition, ReadingPoint]:
    """Where the group reads on, of the partitions that it has begun."""
    offsets = start_offsets(c, group_id, partitions)
    waiting = waiting_halves(c, group_id, offsets.keys())
    read = spans_read(c, group_id, offsets.keys())
    return {
        partition: ReadingPoint(
            next_offset=offset,
            waiting=waiting.get(partition, {}),
            read=tuple(span for span in read.get(partition, ()) if span[1] > offset),
        )
        for partition, offset in offsets.items()
    }


def know_topic(c: Connection, group_id: str, topic: str, topic_id: UUID) -> None:
    """Keep the id of a topic that was begun without one."""
    c.execute(
        text("""
            INSERT INTO monitor_data.topics AS kept (group_id, topic, topic_id)
            VALUES (:group_id, :topic, :topic_id)
            ON CONFLICT (group_id, topic) DO UPDATE SET topic_id = excluded.topic_id
            WHERE kept.topic_id IS NULL
        """),
        {"group_id": group_id, "topic": topic, "topic_id": topic_id},
    )


def spans_read(
    c: Connection, group_id: str, partitions: Collection[Partition]
) -> dict[Partition, tuple[Span, ...]]:
    """What was read of each partition before its reading point was moved, in order."""
    rows = c.execute(
        text("""
            SELECT topic, partition, array_agg(ARRAY[first_offset, end_offset] ORDER BY first_offset)
                AS spans
            FROM monitor_data.read_spans
            JOIN unnest(CAST(:topics AS text[]), CAST(:partitions AS int[]))
                AS asked (topic, partition) USING (topic, partition)
            WHERE group_id = :group_id
            GROUP BY topic, partition
        """),
        {
            "group_id": group_id,
            "topics": [topic for topic, _ in partitions],
            "partitions": [partition for _, partition in partitions],
        },
    )
    return {
        (row.topic, row.partition): tuple((first, end) for first, end in row.spans) for row in rows
    }
