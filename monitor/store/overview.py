"""What the web face shows. Every query here reads, is bounded, and uses an index."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, Engine, text

from monitor.errors import MonitorError
from monitor.store.database import transaction
from monitor.store.packs import ALIVE, pack_presence
from monitor.store.workers import live_workers
from monitor.values.presence import said_by, several_live

Database = Engine
Reader = Connection
"""The web face is given these and hands them on; it never speaks SQL itself."""

STATEMENT_SECONDS: Final = 10
LOOKED_AT: Final = timedelta(minutes=15)
"""Evaluations rarer than this leave gaps in a drawn line."""


@contextmanager
def reading(database: Database) -> Iterator[Connection]:
    """A transaction that can only read, each statement within `STATEMENT_SECONDS`."""
    with transaction(database) as c:
        c.execute(text("SET TRANSACTION READ ONLY"))
        c.execute(text(f"SET LOCAL statement_timeout = '{STATEMENT_SECONDS}s'"))
        yield c


def remarks(database: Database, clock: Callable[[], datetime]) -> list[str]:
    """Sentences that whoever looks should know; none when the database does not answer."""
    try:
        with reading(database) as c:
            now = clock()
            packs = several_live(pack_presence(c, now))
            said = said_by(live_workers(c, now - ALIVE))
    except MonitorError:
        return []
    return [packs, *said] if packs else said


def approved_baseline(c: Connection, pack_id: str) -> dict[str, Any] | None:
    """Keys: baseline_id, name, n, window_start, window_end, approved_at, approved_by."""
    rows = c.execute(
        text("""
            SELECT baseline_id, name, n, window_start, window_end, approved_at, approved_by
            FROM monitor_data.baselines
            WHERE pack_id = :pack_id AND status = 'approved'
        """),
        {"pack_id": pack_id},
    )
    row = rows.mappings().first()
    return dict(row) if row else None


def canary_states(c: Connection, since: datetime) -> list[dict[str, Any]]:
    """The latest canary run of every worker since then.

    Keys: worker_id, ran_at, model_id, dtype, device, largest_deviation, noise_floor, reproduced.
    """
    rows = c.execute(
        text("""
            SELECT DISTINCT ON (run.worker_id) run.worker_id, run.ran_at, lineage.model_id,
                lineage.dtype, lineage.device,
                CASE WHEN run.largest_deviation < 'Infinity' THEN run.largest_deviation END
                    AS largest_deviation,
                run.noise_floor, run.reproduced
            FROM monitor_data.canary_runs AS run
            JOIN monitor_data.lineages AS lineage USING (lineage_id)
            WHERE run.ran_at >= :since
            ORDER BY run.worker_id, run.ran_at DESC
        """),
        {"since": since},
    )
    return [dict(row) for row in rows.mappings()]


def drift_views(c: Connection, pack_id: str, since: datetime) -> dict[str, list[Any]]:
    """Which segments and which window lengths (seconds) were evaluated since then."""
    rows = c.execute(
        text("""
            SELECT DISTINCT segment, extract(epoch FROM window_end - window_start)::bigint AS seconds
            FROM monitor_data.drifts
            WHERE evaluated_at >= :since AND pack_id = :pack_id
        """),
        {"pack_id": pack_id, "since": since},
    ).all()
    return {
        "segments": sorted({row.segment for row in rows}),
        "window_seconds": sorted({int(row.seconds) for row in rows}),
    }


_FACTS: Final = (
    *("evaluated_at", "window_start", "window_end"),
    *("n", "baseline_n", "pooled_baseline", "cause", "adjusted"),
)
_FIGURES: Final = (
    *("mean", "baseline_mean", "shift", "shift_low", "shift_high", "psi", "ks", "tail_rate"),
    *(
        "baseline_tail_rate",
        "tail_ratio",
        "tail_ratio_low",
        "tail_ratio_high",
        "evidence",
        "raw_shift",
    ),
)
_LOOKS_LIKE: Final = "drift.witnesses -> 'identity' -> 'looks_like' ->> 'name' AS looks_like"
DRIFT_KEYS: Final = (*_FACTS, *_FIGURES, "looks_like", "discovery")


def _finite(key: str) -> str:
    """JSON has no infinity: a bound that is infinite, or not a number, is shown as absent."""
    inside = f"drift.{key} > '-Infinity' AND drift.{key} < 'Infinity'"
    return f"CASE WHEN {inside} THEN drift.{key} END AS {key}"


_DRIFT_SERIES: Final = text(f"""
    SELECT feature.name AS feature, {", ".join(_FACTS)}, {", ".join(map(_finite, _FIGURES))},
        {_LOOKS_LIKE}, drift.log_e >= drift.log_e_line AS discovery
    FROM unnest(CAST(:features AS text[])) WITH ORDINALITY AS feature (name, place)
    CROSS JOIN generate_series(
        CAST(:since AS timestamptz), CAST(:until AS timestamptz) - CAST(:step AS interval),
        CAST(:step AS interval)) AS slice
    CROSS JOIN LATERAL (
        SELECT *
        FROM monitor_data.drifts
        WHERE feature = feature.name AND segment = :segment AND pack_id = :pack_id
            AND evaluated_at >= slice
                + greatest(CAST(:step AS interval) - CAST(:looked_at AS interval), interval '0')
            AND evaluated_at < slice + CAST(:step AS interval)
            AND window_end - window_start = CAST(:window AS interval)
        ORDER BY evaluated_at DESC
        LIMIT 1
    ) AS drift
    ORDER BY feature.place, slice
""")


def drift_series(
    c: Connection,
    pack_id: str,
    features: list[str],
    *,
    segment: str,
    window: timedelta,
    since: datetime,
    until: datetime,
    points: int,
) -> dict[str, list[dict[str, Any]]]:
    """By feature, the last drift of each of ``points`` equal slices of [since, until), oldest first.

    Of a slice only its last `LOOKED_AT` is read, so a long period costs what a short one does;
    slices without an evaluation there are left out. Keys: `DRIFT_KEYS`; figures that are not finite
    are None.
    """
    rows = c.execute(
        _DRIFT_SERIES,
        {
            "pack_id": pack_id,
            "features": features,
            "segment": segment,
            "window": window,
            "since": since,
            "until": until,
            "step": (until - since) / points,
            "looked_at": LOOKED_AT,
        },
    )
    series: dict[str, list[dict[str, Any]]] = {name: [] for name in features}
    for row in rows.mappings():
        series[row["feature"]].append({key: row[key] for key in DRIFT_KEYS})
    return series


def alerts_now(c: Connection, ended_since: datetime, limit: int) -> list[dict[str, Any]]:
    """Firing and pending alerts, and those ended since then; firing ones first, newest first."""
    rows = c.execute(
        text("""
            SELECT alert_id, rule, kind, severity,
                CASE WHEN unwatched_at IS NULL THEN state ELSE 'unwatched' END AS state, summary,
                labels, pending_since, fired_at,
                CASE WHEN unwatched_at IS NULL THEN resolved_at END AS resolved_at, unwatched_at,
                acknowledged_at, acknowledged_by
            FROM monitor_data.alerts AS alert
            WHERE alert.state <> 'resolved' OR alert.resolved_at >= :ended_since
            ORDER BY array_position(ARRAY['firing', 'pending', 'resolved'], alert.state),
                coalesce(alert.resolved_at, fired_at, pending_since) DESC
            LIMIT :limit
        """),
        {"ended_since": ended_since, "limit": limit},
    )
    return [dict(row) for row in rows.mappings()]


def deliveries_waiting(c: Connection) -> list[dict[str, Any]]:
    """By endpoint: deliveries that wait, the due time of the oldest, and whether it is disabled."""
    rows = c.execute(
        text("""
            SELECT coalesce(waiting.endpoint, endpoint.name) AS endpoint,
                coalesce(waiting.n, 0) AS waiting, waiting.oldest, endpoint.disabled_at
            FROM (
                SELECT endpoint, count(*) AS n, min(next_attempt_at) AS oldest
                FROM monitor_data.deliveries
                WHERE state = 'waiting'
                GROUP BY endpoint
            ) AS waiting
            FULL JOIN (SELECT * FROM monitor_data.endpoints WHERE disabled_at IS NOT NULL) AS endpoint
                ON endpoint.name = waiting.endpoint
            ORDER BY 1
        """)
    )
    return [dict(row) for row in rows.mappings()]
