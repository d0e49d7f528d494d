"""What the worker stores and asks: packs, chunks (exactly once), canaries, presence, ingest health."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import psycopg
from sqlalchemy import Connection, bindparam, text
from sqlalchemy.dialects.postgresql import JSONB

from monitor.errors import StaleChunk
from monitor.store.border import TEXT_CHARACTERS, clean, clean_json, clean_or_none
from monitor.store.buckets import add_buckets
from monitor.store.partitions import drop_partitions, ensure_partitions
from monitor.values.arrays import Floats
from monitor.values.checks import utc
from monitor.values.features import Feature
from monitor.values.prompts import DeadLetter, OffsetSpan
from monitor.values.scores import Bucket, CanaryRun, ChunkResult, IngestCount, Lineage, ScoredPrompt

__all__ = [
    "drop_partitions",
    "ensure_partitions",
    "heartbeat",
    "ingest_health",
    "record_canary_run",
    "register_pack",
    "start_offsets",
    "store_chunk",
    "strongest_prompts",
]

# --- packs and lineages --------------------------------------------------------------------------


def register_pack(
    c: Connection,
    pack_id: str,
    name: str,
    manifest: Mapping[str, Any],
    features: Sequence[Feature],
) -> None:
    """Make the pack and its features known; nothing changes when it is (an id is a content hash)."""
    new = c.execute(
        text("""
            INSERT INTO monitor_data.packs (pack_id, name, manifest)
            VALUES (:pack_id, :name, :manifest)
            ON CONFLICT (pack_id) DO NOTHING
        """).bindparams(bindparam("manifest", type_=JSONB)),
        {"pack_id": pack_id, "name": clean(name), "manifest": clean_json(manifest)},
    )
    if new.rowcount:
        _insert_features(c, pack_id, features)


def _insert_features(c: Connection, pack_id: str, features: Sequence[Feature]) -> None:
    c.execute(
        text("""
            INSERT INTO monitor_data.pack_features
                (pack_id, ordinal, name, kind, site, region, pooling, tags, expected, description,
                 tail_threshold)
            VALUES
                (:pack_id, :ordinal, :name, :kind, :site, :region, :pooling, :tags, :expected,
                 :description, :tail_threshold)
        """),
        [
            {
                "pack_id": pack_id,
                "ordinal": ordinal,
                "name": clean(feature.name),
                "kind": feature.kind,
                "site": feature.site,
                "region": feature.region,
                "pooling": feature.pooling,
                "tags": [clean(tag) for tag in feature.tags],
                "expected": feature.expected,
                "description": clean(feature.description, TEXT_CHARACTERS),
                "tail_threshold": feature.tail_threshold,
            }
            for ordinal, feature in enumerate(features)
        ],
    )


def lineage_id_of(c: Connection, lineage: Lineage) -> int:
    """The lineage's number, given out on first use."""
    values = _lineage_values(lineage)
    found = _find_lineage(c, values)
    if found is None:
        c.execute(
            text("""
                INSERT INTO monitor_data.lineages
                    (pack_id, model_id, model_hash, dtype, attention, device, engine, rules)
                VALUES
                    (:pack_id, :model_id, :model_hash, :dtype, :attention, :device, :engine, :rules)
                ON CONFLICT DO NOTHING
            """),
            values,
        )
        found = _find_lineage(c, values)
    assert found is not None
    return found


def _lineage_values(lineage: Lineage) -> dict[str, str]:
    names = ("pack_id", "model_id", "model_hash", "dtype", "attention", "device", "engine", "rules")
    return {name: clean(getattr(lineage, name)) for name in names}


def _find_lineage(c: Connection, values: Mapping[str, str]) -> int | None:
    lineage_id: int | None = c.scalar(
        text("""
            SELECT lineage_id FROM monitor_data.lineages
            WHERE (pack_id, model_id, model_hash, dtype, attention, device, engine, rules)
                = (:pack_id, :model_id, :model_hash, :dtype, :attention, :device, :engine, :rules)
        """),
        values,
    )
    return lineage_id


# --- chunks --------------------------------------------------------------------------------------


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
    (a commit whose answer was lost). A partition without a stored offset may start anywhere.
    """
    advance_offsets(c, result.group_id, result.worker_id, result.spans)
    if result.scored or result.buckets:
        lineage_id = lineage_id_of(c, result.lineage)
        add_buckets(c, lineage_id, result.buckets)
        copy_scores(c, lineage_id, result.scored)
    add_counts(c, result.group_id, result.counts)
    insert_dead_letters(c, result.dead_letters)


def advance_offsets(
    c: Connection, group_id: str, worker_id: str, spans: Iterable[OffsetSpan]
) -> None:
    """Compare and swap the offset of each span, in key order; `StaleChunk` when one is not the start.

    First in the transaction: a zombie waits here for the worker that took over, and then loses.
    """
    for span in sorted(spans, key=lambda span: (span.topic, span.partition, span.start)):
        moved = c.scalar(
            text("""
                INSERT INTO monitor_data.offsets AS kept
                    (group_id, topic, partition, next_offset, log_end, worker_id)
                VALUES (:group_id, :topic, :partition, :end, :log_end, :worker_id)
                ON CONFLICT (group_id, topic, partition) DO UPDATE SET
                    next_offset = excluded.next_offset, log_end = excluded.log_end,
                    worker_id = excluded.worker_id, updated_at = now()
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
            },
        )
        if moved is None:
            stored = start_offsets(c, group_id, [(span.topic, span.partition)])
            raise StaleChunk(
                f"{span.topic}/{span.partition}: the chunk starts at {span.start},"
                f" stored up to {stored.get((span.topic, span.partition))}"
            )


_COPY_SCORES: Final = """
    COPY monitor_data.scores (
        recorded_at, topic, partition, record_offset, record_index, lineage_id, prompt_id,
        content_hash, conversation_hash, segments, model, model_revision, prompt_tokens,
        response_tokens, cut, generated, inclusion_probability, readings, scores)
    FROM STDIN (FORMAT BINARY)
"""
_SCORE_TYPES: Final = (
    *("timestamptz", "text", "int4", "int8", "int4", "int4", "text", "bytea", "bytea", "text[]"),
    *("text", "text", "int4", "int4", "bool", "bool", "float4", "float4[]", "float4[]"),
)


def copy_scores(c: Connection, lineage_id: int, scored: Iterable[ScoredPrompt]) -> None:
    """COPY one row per prompt, on the driver connection of the same transaction. NaN becomes NULL."""
    driver: Any = c.connection.driver_connection
    connection: psycopg.Connection = driver
    with connection.cursor() as cursor, cursor.copy(_COPY_SCORES) as copy:
        copy.set_types(_SCORE_TYPES)
        for row in scored:
            copy.write_row(
                (
                    row.recorded_at,
                    clean(row.key.topic),
                    row.key.partition,
                    row.key.offset,
                    row.key.index,
                    lineage_id,
                    clean(row.prompt_id),
                    row.content_hash,
                    row.conversation_hash,
                    [clean(segment) for segment in row.segments],
                    clean_or_none(row.model),
                    clean_or_none(row.model_revision),
                    row.prompt_tokens,
                    row.response_tokens,
                    row.cut,
                    row.generated,
                    row.inclusion_probability,
                    _reals(row.readings),
                    _reals(row.scores),
                )
            )


def _reals(values: Floats) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values.tolist()]


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


# --- presence and canaries -----------------------------------------------------------------------


def heartbeat(
    c: Connection, worker_id: str, group_id: str, pack_id: str, state: str, at: datetime
) -> None:
    """Say that the worker lives, with which pack, and in which state (``running``, ``stopped`` …)."""
    c.execute(
        text("""
            INSERT INTO monitor_data.workers (worker_id, group_id, pack_id, state, started_at, seen_at)
            VALUES (:worker_id, :group_id, :pack_id, :state, :at, :at)
            ON CONFLICT (worker_id) DO UPDATE SET
                group_id = excluded.group_id, pack_id = excluded.pack_id, state = excluded.state,
                seen_at = greatest(workers.seen_at, excluded.seen_at)
        """),
        {
            "worker_id": clean(worker_id),
            "group_id": clean(group_id),
            "pack_id": pack_id,
            "state": clean(state),
            "at": at,
        },
    )


def record_canary_run(c: Connection, run: CanaryRun, buckets: Sequence[Bucket] = ()) -> None:
    """Keep the run; ``buckets`` are its scores in segment ``canary``, where there are any.

    A deviation that is not a number is kept as infinite.
    """
    lineage_id = lineage_id_of(c, run.lineage)
    deviation = run.largest_deviation
    c.execute(
        text("""
            INSERT INTO monitor_data.canary_runs
                (worker_id, ran_at, lineage_id, largest_deviation, noise_floor, reproduced)
            VALUES (:worker_id, :ran_at, :lineage_id, :deviation, :noise_floor, :reproduced)
        """),
        {
            "worker_id": clean(run.worker_id),
            "ran_at": run.ran_at,
            "lineage_id": lineage_id,
            "deviation": math.inf if math.isnan(deviation) else deviation,
            "noise_floor": run.noise_floor,
            "reproduced": run.reproduced,
        },
    )
    add_buckets(c, lineage_id, buckets)


# --- questions -----------------------------------------------------------------------------------


def strongest_prompts(
    c: Connection,
    pack_id: str,
    feature: int,
    segment: str,
    start: datetime,
    end: datetime,
    limit: int,
    falls: bool = False,
) -> list[dict[str, Any]]:
    """The prompts of [start, end) with the highest (``falls``: lowest) scores of a feature.

    Keys: prompt_id, recorded_at, topic, partition, record_offset, record_index, score, reading,
    response_tokens, segments.
    """
    rows = c.execute(
        text(f"""
            SELECT prompt_id, recorded_at, topic, partition, record_offset, record_index,
                scores[:ordinal] AS score, readings[:ordinal] AS reading, response_tokens, segments
            FROM monitor_data.scores
            WHERE recorded_at >= :start AND recorded_at < :end
                AND lineage_id = ANY(
                    ARRAY(SELECT lineage_id FROM monitor_data.lineages WHERE pack_id = :pack_id))
                AND :segment = ANY(segments)
                AND scores[:ordinal] IS NOT NULL
            ORDER BY scores[:ordinal] {"ASC" if falls else "DESC"}, recorded_at, record_offset
            LIMIT :limit
        """),
        {
            "pack_id": pack_id,
            "ordinal": feature + 1,
            "segment": clean(segment),
            "start": start,
            "end": end,
            "limit": limit,
        },
    )
    return [dict(row) for row in rows.mappings()]


def ingest_health(
    c: Connection,
    since: datetime,
    now: datetime,
    *,
    group_id: str | None = None,
    alive: timedelta = timedelta(minutes=2),
) -> dict[str, Any]:
    """What the watcher needs to know of the workers of a consumer group (None: of all groups).

    ``lag``: records behind the log's end, by ``topic/partition`` (None where no offset is stored);
    ``outcomes``: records since ``since`` (by their own time) by outcome; ``last_scored_at``: when an
    offset last moved; ``workers``: those seen within ``alive``, as dicts (worker_id, group_id,
    pack_id, state, seen_at); ``packs``: the pack ids they run.
    """
    workers = live_workers(c, now - alive)
    return {
        "lag": lag_by_partition(c, group_id),
        "outcomes": outcomes_between(c, since, now, group_id=group_id),
        "last_scored_at": last_progress(c, group_id),
        "workers": workers,
        "packs": sorted({worker["pack_id"] for worker in workers}),
    }


def lag_by_partition(c: Connection, group_id: str | None = None) -> dict[str, int] | None:
    """Records behind the log's end when the partition was last read, by ``topic/partition``."""
    rows = c.execute(
        text("""
            SELECT topic || '/' || partition AS source,
                sum(greatest(log_end - next_offset, 0))::bigint AS lag
            FROM monitor_data.offsets
            WHERE log_end IS NOT NULL
                AND (CAST(:group_id AS text) IS NULL OR group_id = :group_id)
            GROUP BY 1
            ORDER BY 1
        """),
        {"group_id": group_id},
    ).all()
    return {row.source: row.lag for row in rows} or None


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


def live_workers(c: Connection, since: datetime) -> list[dict[str, Any]]:
    """Workers that showed themselves since then and did not say that they stopped."""
    rows = c.execute(
        text("""
            SELECT worker_id, group_id, pack_id, state, started_at, seen_at
            FROM monitor_data.workers
            WHERE seen_at >= :since AND state <> 'stopped'
            ORDER BY worker_id
        """),
        {"since": since},
    )
    return [dict(row) for row in rows.mappings()]
