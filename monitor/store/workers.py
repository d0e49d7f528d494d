"""Workers: that they live, and that their copy reproduces the canaries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, RowMapping, text

from monitor.store.border import TEXT_CHARACTERS, clean
from monitor.store.buckets import add_buckets
from monitor.store.packs import lineage_id_of
from monitor.values.presence import WorkerPresence
from monitor.values.scores import Bucket, CanaryRun, Lineage


def heartbeat(
    c: Connection,
    worker_id: str,
    group_id: str,
    pack_id: str,
    state: str,
    at: datetime,
    remarks: Sequence[str] = (),
) -> None:
    """Say that the worker lives, with which pack, and in which state (``running``, ``stopped`` …).

    ``remarks`` are sentences about what is wrong around it and does not stop it.
    """
    c.execute(
        text("""
            INSERT INTO monitor_data.workers
                (worker_id, group_id, pack_id, state, started_at, seen_at, remarks)
            VALUES (:worker_id, :group_id, :pack_id, :state, :at, :at, CAST(:remarks AS text[]))
            ON CONFLICT (worker_id) DO UPDATE SET
                group_id = excluded.group_id, pack_id = excluded.pack_id, state = excluded.state,
                remarks = excluded.remarks,
                seen_at = greatest(workers.seen_at, excluded.seen_at)
        """),
        {
            "worker_id": clean(worker_id),
            "group_id": clean(group_id),
            "pack_id": pack_id,
            "state": clean(state),
            "at": at,
            "remarks": [clean(said, TEXT_CHARACTERS) for said in remarks],
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


def live_workers(c: Connection, since: datetime) -> list[WorkerPresence]:
    """Workers that showed themselves since then and did not say that they stopped."""
    rows = c.execute(
        text("""
            SELECT worker_id, group_id, pack_id, state, started_at, seen_at, remarks
            FROM monitor_data.workers
            WHERE seen_at >= :since AND state <> 'stopped'
            ORDER BY worker_id
        """),
        {"since": since},
    )
    return [WorkerPresence(**{**row, "remarks": tuple(row["remarks"])}) for row in rows.mappings()]


def latest_canaries(
    c: Connection, since: datetime, until: datetime | None = None
) -> list[CanaryRun]:
    """The latest run of every worker that ran its canaries since then, and up to ``until`` where it is given."""
    rows = c.execute(
        text("""
            SELECT DISTINCT ON (worker_id) worker_id, ran_at, largest_deviation, noise_floor,
                reproduced, pack_id, model_id, model_hash, dtype, attention, device, engine, rules
            FROM monitor_data.canary_runs
            JOIN monitor_data.lineages USING (lineage_id)
            WHERE ran_at >= :since AND ran_at <= coalesce(CAST(:until AS timestamptz), 'infinity')
            ORDER BY worker_id, ran_at DESC
        """),
        {"since": since, "until": until},
    )
    return [_canary_run(row) for row in rows.mappings()]


_LINEAGE_FIELDS: Final[Sequence[str]] = (
    *("pack_id", "model_id", "model_hash", "dtype", "attention", "device", "engine", "rules"),
)


def _canary_run(row: RowMapping) -> CanaryRun:
    run = {name: value for name, value in row.items() if name not in _LINEAGE_FIELDS}
    return CanaryRun(**run, lineage=Lineage(**{name: row[name] for name in _LINEAGE_FIELDS}))
