"""What became of records: counts, dead letters, lag, progress."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from sqlalchemy import Connection, text

from monitor.store.border import TEXT_CHARACTERS, clean
from monitor.store.packs import ALIVE
from monitor.store.progress import progress_of
from monitor.store.workers import live_workers
from monitor.values.checks import utc
from monitor.values.presence import IngestHealth
from monitor.values.prompts import DeadLetter
from monitor.values.scores import IngestCount


def add_counts(c: Connection, group_id: str, counts: Iterable[IngestCount]) -> None:
    """Add to what became of the group's records, in key order."""
    merged: dict[tuple[datetime, str, str], int] = {}
    for count in counts:
        key = (utc(count.bucket_start), clean(count.source), clean(count.outcome))
        merged[key] = merged.get(key, 0) + count.n
    rows = sorted(merged.items())
    if not rows:
        return
    c.execute(
        text("""
            INSERT INTO monitor_data.ingest_counts AS kept (bucket_start, group_id, source, outcome, n)
            SELECT start, :group_id, source, outcome, n
            FROM unnest(
                CAST(:starts AS timestamptz[]), CAST(:sources AS text[]),
                CAST(:outcomes AS text[]), CAST(:ns AS bigint[])) AS given (start, source, outcome, n)
            ON CONFLICT (bucket_start, group_id, source, outcome)
            DO UPDATE SET n = kept.n + excluded.n
        """),
        {
            "group_id": group_id,
            "starts": [key[0] for key, _ in rows],
            "sources": [key[1] for key, _ in rows],
            "outcomes": [key[2] for key, _ in rows],
            "ns": [n for _, n in rows],
        },
    )


def insert_dead_letters(c: Connection, letters: Sequence[DeadLetter]) -> None:
    """One row per dead letter; a record that two groups read is kept once."""
    if not letters:
        return
    c.execute(
        text("""
            INSERT INTO monitor_data.dead_letters
                (recorded_at, topic, partition, record_offset, record_index, reason, detail, content)
            VALUES
                (:recorded_at, :topic, :partition, :offset, :index, :reason, :detail, :content)
            ON CONFLICT DO NOTHING
        """),
        [
            {
                "recorded_at": letter.recorded_at,
                "topic": clean(letter.key.topic),
                "partition": letter.key.partition,
                "offset": letter.key.offset,
                "index": letter.key.index,
                "reason": letter.reason.value,
                "detail": clean(letter.detail, TEXT_CHARACTERS),
                "content": letter.content,
            }
            for letter in sorted(letters, key=lambda letter: letter.key)
        ],
    )


def ingest_health(
    c: Connection,
    since: datetime,
    now: datetime,
    *,
    group_id: str | None = None,
    alive: timedelta = ALIVE,
) -> IngestHealth:
    """The health of a consumer group (None: of all groups), with the outcomes since ``since`` and the
    workers seen within ``alive``."""
    return IngestHealth(
        progress=progress_of(c, now, group_id),
        outcomes=outcomes_between(c, since, now, group_id=group_id),
        last_scored_at=last_progress(c, group_id),
        workers=live_workers(c, now - alive),
    )


def outcomes_between(
    c: Connection, since: datetime, before: datetime, *, group_id: str | None = None
) -> dict[str, int]:
    """What became of the records of the interval: ``scored``, ``dead:<reason>``, ``skipped:<reason>``."""
    rows = c.execute(
        text("""
            SELECT outcome, sum(n)::bigint AS n
            FROM monitor_data.ingest_counts
            WHERE bucket_start >= :since AND bucket_start <= :before
                AND (CAST(:group_id AS text) IS NULL OR group_id = :group_id)
            GROUP BY outcome
            ORDER BY outcome
        """),
        {"since": since, "before": before, "group_id": group_id},
    )
    return {row.outcome: row.n for row in rows}


def last_progress(c: Connection, group_id: str | None = None) -> datetime | None:
    """When a chunk was last stored, by the server's clock."""
    moment: datetime | None = c.scalar(
        text("""
            SELECT max(updated_at) FROM monitor_data.offsets
            WHERE CAST(:group_id AS text) IS NULL OR group_id = :group_id
        """),
        {"group_id": group_id},
    )
    return moment
