"""Baselines: drafted, approved, retired; one approved per pack."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any, Final

import numpy as np
from sqlalchemy import Connection, RowMapping, bindparam, text
from sqlalchemy.dialects.postgresql import JSONB

from monitor.errors import BadInput
from monitor.store.adjustments import load_expectations, save_expectations
from monitor.store.border import clean, clean_json
from monitor.values.drift import Baseline, BaselineStatus, BaselineStream, TailLevel, Window
from monitor.values.identity import BaselineFingerprint
from monitor.values.likelihood import law_from
from monitor.values.numerics import Numerics


def save_baseline(c: Connection, baseline: Baseline) -> None:
    """Store a new baseline with all its streams. `BadInput` when its id is taken."""
    new = c.execute(
        text("""
            INSERT INTO monitor_data.baselines
                (baseline_id, pack_id, name, status, window_start, window_end, n, fingerprint,
                 created_at, approved_at, approved_by, retired_at, law, numerics)
            VALUES
                (:baseline_id, :pack_id, :name, :status, :window_start, :window_end, :n,
                 :fingerprint, :created_at, :approved_at, :approved_by, :retired_at, :law,
                 :numerics)
            ON CONFLICT (baseline_id) DO NOTHING
        """).bindparams(
            bindparam("fingerprint", type_=JSONB),
            bindparam("law", type_=JSONB(none_as_null=True)),
            bindparam("numerics", type_=JSONB(none_as_null=True)),
        ),
        {
            "baseline_id": clean(baseline.baseline_id),
            "pack_id": baseline.pack_id,
            "name": clean(baseline.name),
            "status": BaselineStatus(baseline.status).value,
            "window_start": baseline.window_start,
            "window_end": baseline.window_end,
            "n": baseline.n,
            "fingerprint": clean_json(baseline.fingerprint.stored()),
            "created_at": baseline.created_at,
            "approved_at": baseline.approved_at,
            "approved_by": baseline.approved_by,
            "retired_at": baseline.retired_at,
            "law": baseline.law.entry() if baseline.law else None,
            "numerics": baseline.numerics.entry() if baseline.numerics else None,
        },
    )
    if not new.rowcount:
        raise BadInput(f"baseline {baseline.baseline_id!r} exists already")
    _insert_streams(c, _RAW, baseline.baseline_id, baseline.streams)
    _insert_streams(c, _ADJUSTED, baseline.baseline_id, baseline.adjusted)
    save_expectations(c, baseline.baseline_id, baseline.expectations)


_RAW: Final = "monitor_data.baseline_windows"
_ADJUSTED: Final = "monitor_data.adjusted_baseline_windows"
_Streams = Mapping[tuple[int, str], BaselineStream]


def _insert_streams(c: Connection, table: str, baseline_id: str, streams: _Streams) -> None:
    if not streams:
        return
    c.execute(
        text(f"""
            INSERT INTO {table}
                (baseline_id, feature, segment, n, tail_count, tail_n, total, total_squares, histogram,
                 design_effect, tail_design_effect, tails)
            VALUES
                (:baseline_id, :feature, :segment, :n, :tail_count, :tail_n, :total, :total_squares,
                 :histogram, :design_effect, :tail_design_effect, :tails)
        """).bindparams(bindparam("tails", type_=JSONB(none_as_null=True))),
        [
            {
                "baseline_id": clean(baseline_id),
                "feature": feature,
                "segment": clean(segment),
                "n": stream.window.n,
                "tail_count": int(stream.window.tail_count or 0),
                "tail_n": None if stream.window.tail_count is None else stream.window.n,
                "total": float(stream.window.total),
                "total_squares": float(stream.window.total_squares),
                "histogram": stream.window.histogram.tolist(),
                "design_effect": stream.design_effect,
                "tail_design_effect": stream.tail_design_effect,
                "tails": None if stream.tails is None else [asdict(one) for one in stream.tails],
            }
            for (feature, segment), stream in streams.items()
        ],
    )


_BASELINE: Final = """baseline_id, pack_id, name, status, window_start, window_end, n, fingerprint,
    created_at, approved_at, approved_by, retired_at, law, numerics"""


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
    return Baseline(
        **{
            **row,
            "status": BaselineStatus(row["status"]),
            "fingerprint": BaselineFingerprint.read(row["fingerprint"]),
            "law": law_from(row["law"]) if row["law"] else None,
            "numerics": Numerics(**row["numerics"]) if row["numerics"] else None,
        },
        streams=_streams(c, _RAW, row),
        expectations=load_expectations(c, row["baseline_id"]),
        adjusted=_streams(c, _ADJUSTED, row),
    )


def _streams(c: Connection, table: str, row: RowMapping) -> _Streams:
    """The streams of the baseline in ``row``."""
    streams = c.execute(
        text(f"""
            SELECT feature, segment, n, total, total_squares, histogram, design_effect,
                tail_design_effect, tails,
                CASE WHEN tail_n = n OR feature <> ALL(ARRAY(
                    SELECT ordinal FROM monitor_data.pack_features
                    WHERE pack_id = :pack_id AND sign = -1)) THEN tail_count END AS tail_count
            FROM {table}
            WHERE baseline_id = :baseline_id
            ORDER BY feature, segment
        """),
        {"baseline_id": row["baseline_id"], "pack_id": row["pack_id"]},
    )
    return {
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
            tails=None
            if stream.tails is None
            else tuple(TailLevel(**level) for level in stream.tails),
        )
        for stream in streams
    }


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
    return [
        {
            **row,
            "law": str(law_from(row["law"])) if row["law"] else None,
            "numerics": str(Numerics(**row["numerics"])) if row["numerics"] else None,
        }
        for row in rows.mappings()
    ]


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
