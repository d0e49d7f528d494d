"""What the watcher stores and asks: packs, baselines, drift history, detectors, canaries.

Buckets and windows are in buckets.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

import numpy as np
from sqlalchemy import Connection, RowMapping, bindparam, text
from sqlalchemy.dialects.postgresql import JSONB

from monitor.errors import BadInput
from monitor.store.border import clean, clean_json
from monitor.store.buckets import EVERY_SOURCE, new_buckets, read_windows, roll_up
from monitor.values.checks import utc
from monitor.values.drift import (
    Baseline,
    BaselineStatus,
    BaselineStream,
    DetectorState,
    Drift,
    Window,
)
from monitor.values.scores import CanaryRun, Lineage

__all__ = [
    "EVERY_SOURCE",
    "PackFeature",
    "active_pack",
    "approve_baseline",
    "latest_canaries",
    "lineages_between",
    "list_baselines",
    "load_baseline",
    "load_detectors",
    "new_buckets",
    "pack_features",
    "read_windows",
    "retire_baseline",
    "roll_up",
    "save_baseline",
    "save_detectors",
    "save_drifts",
    "served_models",
]

# --- packs ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class PackFeature:
    """What the database knows of a feature: all of `records.Feature` but weights and calibration."""

    ordinal: int
    """Its index in readings, scores and buckets."""
    name: str
    kind: str
    site: int
    region: str
    pooling: str
    tags: tuple[str, ...]
    expected: Literal["rises", "falls"]
    description: str
    tail_threshold: float


def pack_features(c: Connection, pack_id: str) -> list[PackFeature]:
    """The features of a pack in its order; empty for an unknown pack."""
    rows = c.execute(
        text("""
            SELECT ordinal, name, kind, site, region, pooling, tags, expected, description,
                tail_threshold
            FROM monitor_data.pack_features
            WHERE pack_id = :pack_id
            ORDER BY ordinal
        """),
        {"pack_id": pack_id},
    )
    return [PackFeature(**{**row, "tags": tuple(row["tags"])}) for row in rows.mappings()]


def active_pack(c: Connection) -> str | None:
    """The pack of the worker seen last; before any worker was seen, the pack registered last."""
    pack_id: str | None = c.scalar(
        text("""
            SELECT coalesce(
                (SELECT pack_id FROM monitor_data.workers ORDER BY seen_at DESC LIMIT 1),
                (SELECT pack_id FROM monitor_data.packs ORDER BY registered_at DESC LIMIT 1))
        """)
    )
    return pack_id


def lineages_between(c: Connection, pack_id: str, start: datetime, end: datetime) -> list[Lineage]:
    """The lineages that scores of the interval come from: the fingerprint of a baseline."""
    rows = c.execute(
        text("""
            SELECT pack_id, model_id, model_hash, dtype, attention, device, engine, rules
            FROM monitor_data.lineages
            WHERE pack_id = :pack_id AND (
                EXISTS (
                    SELECT FROM monitor_data.buckets
                    WHERE buckets.lineage_id = lineages.lineage_id
                        AND bucket_start >= :start AND bucket_start < :end)
                OR EXISTS (
                    SELECT FROM monitor_data.buckets_hourly
                    WHERE buckets_hourly.lineage_id = lineages.lineage_id
                        AND bucket_start >= :start AND bucket_start < :end))
            ORDER BY lineage_id
        """),
        {"pack_id": pack_id, "start": start, "end": end},
    )
    return [Lineage(**row) for row in rows.mappings()]


MOST_SERVED_MODELS: Final = 50


def served_models(c: Connection, pack_id: str, start: datetime, end: datetime) -> tuple[str, ...]:
    """The served models that records of the interval named, as ``model@revision``, sorted.

    What a record did not name is empty; white space becomes ``_``. At most `MOST_SERVED_MODELS`.
    """
    rows = c.scalars(
        text("""
            SELECT DISTINCT regexp_replace(
                coalesce(model, '') || '@' || coalesce(model_revision, ''), '\\s', '_', 'g')
            FROM monitor_data.scores
            WHERE recorded_at >= :start AND recorded_at < :end
                AND lineage_id = ANY(
                    ARRAY(SELECT lineage_id FROM monitor_data.lineages WHERE pack_id = :pack_id))
            LIMIT :most
        """),
        {"pack_id": pack_id, "start": start, "end": end, "most": MOST_SERVED_MODELS},
    )
    return tuple(sorted(rows))


# --- baselines -----------------------------------------------------------------------------------


def save_baseline(c: Connection, baseline: Baseline) -> None:
    """Store a new baseline with all its streams. `BadInput` when its id is taken."""
    new = c.execute(
        text("""
            INSERT INTO monitor_data.baselines
                (baseline_id, pack_id, name, status, window_start, window_end, n, fingerprint,
                 created_at, approved_at, approved_by, retired_at)
            VALUES
                (:baseline_id, :pack_id, :name, :status, :window_start, :window_end, :n,
                 :fingerprint, :created_at, :approved_at, :approved_by, :retired_at)
            ON CONFLICT (baseline_id) DO NOTHING
        """).bindparams(bindparam("fingerprint", type_=JSONB)),
        {
            "baseline_id": clean(baseline.baseline_id),
            "pack_id": baseline.pack_id,
            "name": clean(baseline.name),
            "status": BaselineStatus(baseline.status).value,
            "window_start": baseline.window_start,
            "window_end": baseline.window_end,
            "n": baseline.n,
            "fingerprint": clean_json(baseline.fingerprint),
            "created_at": baseline.created_at,
            "approved_at": baseline.approved_at,
            "approved_by": baseline.approved_by,
            "retired_at": baseline.retired_at,
        },
    )
    if not new.rowcount:
        raise BadInput(f"baseline {baseline.baseline_id!r} exists already")
    _insert_streams(c, baseline)


def _insert_streams(c: Connection, baseline: Baseline) -> None:
    if not baseline.streams:
        return
    c.execute(
        text("""
            INSERT INTO monitor_data.baseline_windows
                (baseline_id, feature, segment, n, tail_count, total, total_squares, histogram,
                 design_effect, tail_design_effect)
            VALUES
                (:baseline_id, :feature, :segment, :n, :tail_count, :total, :total_squares,
                 :histogram, :design_effect, :tail_design_effect)
        """),
        [
            {
                "baseline_id": clean(baseline.baseline_id),
                "feature": feature,
                "segment": clean(segment),
                "n": stream.window.n,
                "tail_count": int(stream.window.tail_count),
                "total": float(stream.window.total),
                "total_squares": float(stream.window.total_squares),
                "histogram": stream.window.histogram.tolist(),
                "design_effect": stream.design_effect,
                "tail_design_effect": stream.tail_design_effect,
            }
            for (feature, segment), stream in baseline.streams.items()
        ],
    )


_BASELINE: Final = """baseline_id, pack_id, name, status, window_start, window_end, n, fingerprint,
    created_at, approved_at, approved_by, retired_at"""


def load_baseline(
    c: Connection, baseline_id: str | None = None, pack_id: str | None = None
) -> Baseline | None:
    """The baseline of that id; without an id, the approved one of the pack. None: there is none."""
    row = (
        c.execute(
            text(f"""
                SELECT {_BASELINE} FROM monitor_data.baselines
                WHERE baseline_id = :baseline_id
                    OR CAST(:baseline_id AS text) IS NULL
                        AND pack_id = :pack_id AND status = 'approved'
            """),
            {"baseline_id": baseline_id, "pack_id": pack_id},
        )
        .mappings()
        .first()
    )
    return _baseline(c, row) if row else None


def _baseline(c: Connection, row: RowMapping) -> Baseline:
    streams = c.execute(
        text("""
            SELECT feature, segment, n, tail_count, total, total_squares, histogram,
                design_effect, tail_design_effect
            FROM monitor_data.baseline_windows
            WHERE baseline_id = :baseline_id
            ORDER BY feature, segment
        """),
        {"baseline_id": row["baseline_id"]},
    )
    return Baseline(
        **{**row, "status": BaselineStatus(row["status"])},
        streams={
            (stream.feature, stream.segment): BaselineStream(
                window=Window(
                    feature=stream.feature,
                    segment=stream.segment,
                    start=row["window_start"],
                    end=row["window_end"],
                    n=stream.n,
                    tail_count=stream.tail_count,
                    total=stream.total,
                    total_squares=stream.total_squares,
                    histogram=np.array(stream.histogram, dtype=np.int64),
                ),
                design_effect=stream.design_effect,
                tail_design_effect=stream.tail_design_effect,
            )
            for stream in streams
        },
    )


def list_baselines(c: Connection, pack_id: str | None = None) -> list[dict[str, Any]]:
    """All baselines, newest first, without their streams; of one pack or of all."""
    rows = c.execute(
        text(f"""
            SELECT {_BASELINE}, retired_by,
                (SELECT count(*) FROM monitor_data.baseline_windows AS stream
                 WHERE stream.baseline_id = baselines.baseline_id) AS streams
            FROM monitor_data.baselines
            WHERE CAST(:pack_id AS text) IS NULL OR pack_id = :pack_id
            ORDER BY created_at DESC, baseline_id
        """),
        {"pack_id": pack_id},
    )
    return [dict(row) for row in rows.mappings()]


def approve_baseline(c: Connection, baseline_id: str, by: str, at: datetime) -> None:
    """Approve a draft and retire the approved one of the same pack. `BadInput` if it is no draft."""
    row = _lock_baseline(c, baseline_id)
    if row["status"] != BaselineStatus.DRAFT:
        raise BadInput(f"baseline {baseline_id!r} is {row['status']}; only a draft can be approved")
    c.execute(
        text("""
            UPDATE monitor_data.baselines
            SET status = 'retired', retired_at = :at, retired_by = :by
            WHERE pack_id = :pack_id AND status = 'approved'
        """),
        {"pack_id": row["pack_id"], "at": at, "by": clean(by)},
    )
    c.execute(
        text("""
            UPDATE monitor_data.baselines
            SET status = 'approved', approved_at = :at, approved_by = :by
            WHERE baseline_id = :baseline_id
        """),
        {"baseline_id": baseline_id, "at": at, "by": clean(by)},
    )


def retire_baseline(c: Connection, baseline_id: str, by: str, at: datetime) -> None:
    """Retire a draft or the approved baseline. `BadInput` if it is unknown or retired already."""
    if _lock_baseline(c, baseline_id)["status"] == BaselineStatus.RETIRED:
        raise BadInput(f"baseline {baseline_id!r} is retired already")
    c.execute(
        text("""
            UPDATE monitor_data.baselines
            SET status = 'retired', retired_at = :at, retired_by = :by
            WHERE baseline_id = :baseline_id
        """),
        {"baseline_id": baseline_id, "at": at, "by": clean(by)},
    )


def _lock_baseline(c: Connection, baseline_id: str) -> RowMapping:
    """The baseline's row; all of its pack are locked, so that two approvals take turns."""
    rows = c.execute(
        text("""
            SELECT baseline_id, pack_id, status FROM monitor_data.baselines
            WHERE pack_id =
                (SELECT pack_id FROM monitor_data.baselines WHERE baseline_id = :baseline_id)
            ORDER BY baseline_id
            FOR UPDATE
        """),
        {"baseline_id": baseline_id},
    )
    for row in rows.mappings():
        if row["baseline_id"] == baseline_id:
            return row
    raise BadInput(f"there is no baseline {baseline_id!r}; `monitor baseline list` shows them")


# --- drift ---------------------------------------------------------------------------------------

_DRIFT_FIELDS: Final = (
    *("evaluated_at", "baseline_id", "pack_id", "feature", "segment", "window_name"),
    *("window_start", "window_end", "n", "baseline_n", "pooled_baseline", "mean", "baseline_mean"),
    *("shift", "shift_low", "shift_high", "psi", "psi_low", "ks", "ks_low", "tail_rate"),
    *("baseline_tail_rate", "tail_ratio", "tail_ratio_low", "tail_ratio_high", "evidence"),
    *("evidence_limit", "cause"),
)


def save_drifts(c: Connection, drifts: Iterable[Drift]) -> None:
    """Keep the comparisons; one that is kept already stays as it is. NaN is kept as NULL."""
    rows = [_drift_row(drift) for drift in drifts]
    if rows:
        c.execute(
            text(f"""
                INSERT INTO monitor_data.drifts ({", ".join(_DRIFT_FIELDS)})
                VALUES ({", ".join(f":{name}" for name in _DRIFT_FIELDS)})
                ON CONFLICT DO NOTHING
            """),
            rows,
        )


def _drift_row(drift: Drift) -> dict[str, Any]:
    row = {
        "evaluated_at": drift.evaluated_at,
        "baseline_id": clean(drift.baseline_id),
        "pack_id": drift.pack_id,
        "feature": clean(drift.feature),
        "segment": clean(drift.segment),
        "window_name": clean(drift.window),
        "window_start": drift.window_start,
        "window_end": drift.window_end,
        "n": drift.n,
        "baseline_n": drift.baseline_n,
        "pooled_baseline": drift.pooled_baseline,
        "mean": drift.mean,
        "baseline_mean": drift.baseline_mean,
        "shift": drift.shift.value,
        "shift_low": drift.shift.low,
        "shift_high": drift.shift.high,
        "psi": drift.psi,
        "psi_low": drift.psi_low,
        "ks": drift.ks,
        "ks_low": drift.ks_low,
        "tail_rate": drift.tail_rate,
        "baseline_tail_rate": drift.baseline_tail_rate,
        "tail_ratio": drift.tail_ratio.value,
        "tail_ratio_low": drift.tail_ratio.low,
        "tail_ratio_high": drift.tail_ratio.high,
        "evidence": drift.evidence,
        "evidence_limit": drift.evidence_limit,
        "cause": drift.cause.value,
    }
    return {name: _number(value) for name, value in row.items()}


def _number(value: Any) -> Any:
    if isinstance(value, float | np.floating):
        return None if math.isnan(value) else float(value)
    return value


# --- detectors -----------------------------------------------------------------------------------


def load_detectors(c: Connection, baseline_id: str) -> dict[tuple[int, str], DetectorState]:
    """The detectors that run against the baseline, by feature and segment."""
    rows = c.execute(
        text("""
            SELECT baseline_id, feature, segment, started_at, last_bucket, steps, log_values
            FROM monitor_data.detectors
            WHERE baseline_id = :baseline_id
        """),
        {"baseline_id": baseline_id},
    )
    return {
        (row["feature"], row["segment"]): DetectorState(
            **{
                **row,
                "started_at": utc(row["started_at"]),
                "last_bucket": utc(row["last_bucket"]),
                "log_values": tuple(row["log_values"]),
            }
        )
        for row in rows.mappings()
    }


def save_detectors(c: Connection, states: Iterable[DetectorState]) -> None:
    """Store the states, in key order; one that is behind what is stored is dropped."""
    rows = [
        {
            "baseline_id": clean(state.baseline_id),
            "feature": state.feature,
            "segment": clean(state.segment),
            "started_at": state.started_at,
            "last_bucket": state.last_bucket,
            "steps": state.steps,
            "log_values": [float(value) for value in state.log_values],
        }
        for state in sorted(states, key=lambda s: (s.baseline_id, s.feature, s.segment))
    ]
    if rows:
        c.execute(
            text("""
                INSERT INTO monitor_data.detectors AS kept
                    (baseline_id, feature, segment, started_at, last_bucket, steps, log_values)
                VALUES
                    (:baseline_id, :feature, :segment, :started_at, :last_bucket, :steps,
                     :log_values)
                ON CONFLICT (baseline_id, feature, segment) DO UPDATE SET
                    started_at = excluded.started_at, last_bucket = excluded.last_bucket,
                    steps = excluded.steps, log_values = excluded.log_values
                WHERE kept.last_bucket <= excluded.last_bucket
            """),
            rows,
        )


# --- canaries ------------------------------------------------------------------------------------


def latest_canaries(c: Connection, since: datetime) -> list[CanaryRun]:
    """The latest run of every worker that ran its canaries since then."""
    rows = c.execute(
        text("""
            SELECT DISTINCT ON (worker_id) worker_id, ran_at, largest_deviation, noise_floor,
                reproduced, pack_id, model_id, model_hash, dtype, attention, device, engine, rules
            FROM monitor_data.canary_runs
            JOIN monitor_data.lineages USING (lineage_id)
            WHERE ran_at >= :since
            ORDER BY worker_id, ran_at DESC
        """),
        {"since": since},
    )
    return [_canary_run(row) for row in rows.mappings()]


_LINEAGE_FIELDS: Final[Sequence[str]] = (
    *("pack_id", "model_id", "model_hash", "dtype", "attention", "device", "engine", "rules"),
)


def _canary_run(row: RowMapping) -> CanaryRun:
    run = {name: value for name, value in row.items() if name not in _LINEAGE_FIELDS}
    return CanaryRun(**run, lineage=Lineage(**{name: row[name] for name in _LINEAGE_FIELDS}))
