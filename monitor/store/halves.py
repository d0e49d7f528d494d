"""Where the parts of exchanges stand that wait for the rest: places in the log, never what they say.

A place is kept in the transaction of the chunk that read it, and dropped in that of the chunk that
settles it. So the offset moves on past a part that waits, and whoever reads the partition next reads
that one record again. Dropping is a compare-and-swap: two workers never settle the same part.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Connection, text

from monitor.errors import StaleChunk
from monitor.values.prompts import RecordKey


def waiting_halves(
    c: Connection, group_id: str, partitions: Collection[tuple[str, int]]
) -> dict[tuple[str, int], dict[int, frozenset[int]]]:
    """By (topic, partition): the offsets of records with parts that wait, and the parts' indexes."""
    rows = c.execute(
        text("""
            SELECT topic, partition, record_offset, record_index
            FROM monitor_data.halves
            JOIN unnest(CAST(:topics AS text[]), CAST(:partitions AS int[]))
                AS asked (topic, partition) USING (topic, partition)
            WHERE group_id = :group_id
        """),
        {
            "group_id": group_id,
            "topics": [topic for topic, _ in partitions],
            "partitions": [partition for _, partition in partitions],
        },
    )
    found: dict[tuple[str, int], dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
    for row in rows:
        found[row.topic, row.partition][row.record_offset].add(row.record_index)
    return {
        partition: {offset: frozenset(indexes) for offset, indexes in places.items()}
        for partition, places in found.items()
    }


def keep_halves(c: Connection, group_id: str, keys: Sequence[RecordKey]) -> None:
    """These begin to wait. Their chunk's offsets guard them: one that waits already goes on waiting."""
    if not keys:
        return
    c.execute(
        text("""
            INSERT INTO monitor_data.halves
                (group_id, topic, partition, record_offset, record_index)
            SELECT :group_id, topic, partition, record_offset, record_index
            FROM unnest(
                CAST(:topics AS text[]), CAST(:partitions AS int[]),
                CAST(:offsets AS bigint[]), CAST(:indexes AS int[]))
                AS given (topic, partition, record_offset, record_index)
            ON CONFLICT DO NOTHING
        """),
        _columns(group_id, keys),
    )


def settle_halves(c: Connection, group_id: str, keys: Sequence[RecordKey]) -> None:
    """These wait no longer. `StaleChunk` when one of them did not: another worker has settled it."""
    if not keys:
        return
    dropped = c.execute(
        text("""
            DELETE FROM monitor_data.halves AS kept
            USING unnest(
                CAST(:topics AS text[]), CAST(:partitions AS int[]),
                CAST(:offsets AS bigint[]), CAST(:indexes AS int[]))
                AS given (topic, partition, record_offset, record_index)
            WHERE kept.group_id = :group_id
                AND (kept.topic, kept.partition, kept.record_offset, kept.record_index)
                    = (given.topic, given.partition, given.record_offset, given.record_index)
        """),
        _columns(group_id, keys),
    )
    if dropped.rowcount != len(keys):
        raise StaleChunk(
            f"of {len(keys)} parts of exchanges that the chunk settles, {dropped.rowcount} still waited"
        )


def _columns(group_id: str, keys: Sequence[RecordKey]) -> dict[str, Any]:
    ordered = sorted(keys)
    return {
        "group_id": group_id,
        "topics": [key.topic for key in ordered],
        "partitions": [key.partition for key in ordered],
        "offsets": [key.offset for key in ordered],
        "indexes": [key.index for key in ordered],
    }
