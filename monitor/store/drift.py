"""Drift history, and where the sequential detectors stand."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Final

import numpy as np
from sqlalchemy import Connection, bindparam, text
from sqlalchemy.dialects.postgresql import JSONB

from monitor.store.border import clean, clean_json
from monitor.store.processes import PROCESS, PROCESS_PLACES, PROCESS_SET, process_of, process_row
from monitor.values.checks import utc
from monitor.values.drift import DetectorState, Drift
from monitor.values.witnesses import as_json

_DRIFT_FIELDS: Final = (
    *("evaluated_at", "baseline_id", "pack_id", "feature", "segment", "window_name"),
    *("window_start", "window_end", "n", "baseline_n", "pooled_baseline", "mean", "baseline_mean"),
    *("shift", "shift_low", "shift_high", "psi", "psi_low", "ks", "ks_low", "tail_rate"),
    *("baseline_tail_rate", "tail_ratio", "tail_ratio_low", "tail_ratio_high", "evidence"),
    *("evidence_limit", "cause", "tails", "adjusted", "raw_mean"),
    *("raw_baseline_mean", "raw_shift", "raw_shift_low", "raw_shift_high", "witnesses"),
    *("log_e", "log_e_line"),
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
            """).bindparams(
                bindparam("tails", type_=JSONB(none_as_null=True)),
                bindparam("witnesses", type_=JSONB(none_as_null=True)),
            ),
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
        "adjusted": drift.adjusted,
        "raw_mean": drift.raw_mean,
        "raw_baseline_mean": drift.raw_baseline_mean,
        "raw_shift": drift.raw_shift.value,
        "raw_shift_low": drift.raw_shift.low,
        "raw_shift_high": drift.raw_shift.high,
        "log_e": drift.log_e,
        "log_e_line": drift.log_e_line,
        "tails": clean_json(_tails(drift)) if drift.tails else None,
        "witnesses": clean_json(as_json(drift.witnesses, told=False)) if drift.witnesses else None,
    }
    return {name: _number(value) for name, value in row.items()}


def _tails(drift: Drift) -> list[dict[str, float]]:
    """One object per level; what is not finite becomes null on the way."""
    return [
        {
            "share": level.share,
            "threshold": level.threshold,
            "rate": level.rate,
            "baseline_rate": level.baseline_rate,
            "ratio": level.ratio.value,
            "ratio_low": level.ratio.low,
            "ratio_high": level.ratio.high,
        }
        for level in drift.tails
    ]


def _number(value: Any) -> Any:
    if isinstance(value, float | np.floating):
        return None if math.isnan(value) else float(value)
    return value


def load_detectors(c: Connection, baseline_id: str) -> dict[tuple[int, str], DetectorState]:
    """The detectors that run against the baseline, by feature and segment."""
    rows = c.execute(
        text(f"""
            SELECT baseline_id, feature, segment, started_at, last_bucket, steps, log_values,
                {", ".join(PROCESS)}
            FROM monitor_data.detectors
            WHERE baseline_id = :baseline_id
        """),
        {"baseline_id": baseline_id},
    )
    return {
        (row["feature"], row["segment"]): DetectorState(
            baseline_id=row["baseline_id"],
            feature=row["feature"],
            segment=row["segment"],
            started_at=utc(row["started_at"]),
            last_bucket=utc(row["last_bucket"]),
            steps=row["steps"],
            log_values=tuple(row["log_values"]),
            process=process_of(row),
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
            **process_row(state.process),
        }
        for state in sorted(states, key=lambda s: (s.baseline_id, s.feature, s.segment))
    ]
    if rows:
        c.execute(
            text(f"""
                INSERT INTO monitor_data.detectors AS kept
                    (baseline_id, feature, segment, started_at, last_bucket, steps, log_values,
                     {", ".join(PROCESS)})
                VALUES
                    (:baseline_id, :feature, :segment, :started_at, :last_bucket, :steps,
                     :log_values, {PROCESS_PLACES})
                ON CONFLICT (baseline_id, feature, segment) DO UPDATE SET
                    started_at = excluded.started_at, last_bucket = excluded.last_bucket,
                    steps = excluded.steps, log_values = excluded.log_values,
                    {PROCESS_SET}
                WHERE kept.last_bucket <= excluded.last_bucket
            """),
            rows,
        )
