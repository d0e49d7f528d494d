"""A chunk of the worker: stored once, in one transaction, with the offsets that it moves."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import datetime

from sqlalchemy import Connection, text

from monitor.errors import StaleChunk
from monitor.store.adjustments import adjusted_lineage_of
from monitor.store.alternatives import add_likenesses
from monitor.store.buckets import add_buckets
from monitor.store.halves import keep_halves, settle_halves
from monitor.store.identity import add_identity
from monitor.store.ingest import add_counts, insert_dead_letters
from monitor.store.laws import add_laws
from monitor.store.packs import lineage_id_of
from monitor.store.scores import copy_scores
from monitor.store.twins import twin_lineage_of
from monitor.values.prompts import OffsetSpan
from monitor.values.scores import ChunkResult


def start_offsets(
    c: Connection, group_id: str, partitions: Collection[tuple[str, int]]
) -> dict[tuple[str, int], int]:
    """The next offset of each (topic, partition) that the group has stored one for."""
    rows = c.execute(
        text("""
            SELECT topic, partition, next_offset
            FROM monitor_data.offsets
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
    return {(row.topic, row.partition): row.next_offset for row in rows}


def store_chunk(c: Connection, result: ChunkResult) -> None:
    """Store everything of one chunk, within the caller's transaction.

    Raises `StaleChunk`, and the transaction must be rolled back, when the stored offset of one of the
    spans is not the span's start: another worker has stored it, or this very chunk was stored before
    (a commit whose answer was lost). A partition without a stored offset may start anywhere. The same
    when a half that the chunk settles does not wait any more.
    """
    advance_offsets(c, result.group_id, result.worker_id, result.spans, result.watermarks)
    if result.scored or result.buckets:
        lineage_id = lineage_id_of(c, result.lineage)
        add_buckets(c, lineage_id, result.buckets)
        adjusted_id = None
        if result.adjusted_by is not None:
            adjusted_id = adjusted_lineage_of(c, lineage_id, result.adjusted_by)
            add_buckets(c, adjusted_id, result.adjusted_buckets)
        if result.twins:
            add_buckets(c, twin_lineage_of(c, lineage_id), result.twins)
        copy_scores(c, lineage_id, result.scored, adjusted_id)
        add_identity(c, lineage_id, result.identity)
        add_likenesses(c, lineage_id, result.likenesses)
        add_laws(c, lineage_id, result.laws)
    settle_halves(c, result.group_id, result.settled)
    keep_halves(c, result.group_id, result.waiting)
    add_counts(c, result.group_id, result.counts)
    insert_dead_letters(c, result.dead_letters)


def advance_offsets(
    c: Connection,
    group_id: str,
    worker_id: str,
    spans: Iterable[OffsetSpan],
    watermarks: Mapping[tuple[str, int], datetime],
) -> None:
    """Compare and swap the offset of each span, in key order; `StaleChunk` when one is not the start.

    ``watermarks`` gives the time of each partition's newest record; without one the last stays.

    First in the transaction: a zombie waits here for the worker that took over, and then loses.
    """
    for span in sorted(spans, key=lambda span: (span.topic, span.partition, span.start)):
        moved = c.scalar(
            text("""
                INSERT INTO monitor_data.offsets AS kept
                    (group_id, topic, partition, next_offset, begins_at, log_end, worker_id,
                    watermark)
                VALUES
                    (:group_id, :topic, :partition, :end, :start, :log_end, :worker_id, :watermark)
                ON CONFLICT (group_id, topic, partition) DO UPDATE SET
                    next_offset = excluded.next_offset, log_end = excluded.log_end,
                    worker_id = excluded.worker_id, updated_at = now(),
                    watermark = coalesce(excluded.watermark, kept.watermark)
                WHERE kept.next_offset = :start
                RETURNING next_offset
            """),
            {
                "group_id": group_id,
                "topic": span.topic,
                "partition": span.partition,
                "start": span.start,
                "end": span.end,
                "log_end": span.log_end,
                "worker_id": worker_id,
                "watermark": watermarks.get((span.topic, span.partition)),
            },
        )
        if moved is None:
            stored = start_offsets(c, group_id, [(span.topic, span.partition)])
            raise StaleChunk(
                f"{span.topic}/{span.partition}: the chunk starts at {span.start},"
                f" stored up to {stored.get((span.topic, span.partition))}"
            )
