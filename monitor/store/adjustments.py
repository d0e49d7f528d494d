"""Scores given the prompt: expectations frozen with baselines, and the lineages of adjusted scores."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Final

import numpy as np
from sqlalchemy import Connection, text

from monitor.store.border import clean
from monitor.values.adjustment import Adjustment, Expectation
from monitor.values.arrays import Floats
from monitor.values.checks import utc
from monitor.values.prompts import RecordKey
from monitor.values.scores import ScoredPrompt

_SHARES: Final = 1024


def adjusted_lineage_of(c: Connection, lineage_id: int, baseline_id: str) -> int:
    """The number, below 0, of this lineage's scores as the baseline adjusts them; given out on first use."""
    values = {"lineage_id": lineage_id, "baseline_id": clean(baseline_id)}
    find = text("""
        SELECT adjusted_id FROM monitor_data.adjusted_lineages
        WHERE lineage_id = :lineage_id AND baseline_id = :baseline_id
    """)
    found: int | None = c.scalar(find, values)
    if found is None:
        c.execute(
            text("""
                INSERT INTO monitor_data.adjusted_lineages (lineage_id, baseline_id)
                VALUES (:lineage_id, :baseline_id)
                ON CONFLICT DO NOTHING
            """),
            values,
        )
        found = c.scalar(find, values)
    assert found is not None
    return found


def save_expectations(
    c: Connection, baseline_id: str, expectations: Mapping[int, Expectation]
) -> None:
    """Freeze them with the baseline, which must be there."""
    if expectations:
        c.execute(
            text("""
                INSERT INTO monitor_data.adjustments
                    (baseline_id, feature, intercept, weights, penalty, explained, n)
                VALUES (:baseline_id, :feature, :intercept, :weights, :penalty, :explained, :n)
            """),
            [
                {
                    "baseline_id": clean(baseline_id),
                    "feature": feature,
                    "intercept": one.intercept,
                    "weights": list(one.weights),
                    "penalty": one.penalty,
                    "explained": one.explained,
                    "n": one.n,
                }
                for feature, one in expectations.items()
            ],
        )


def load_expectations(c: Connection, baseline_id: str) -> dict[int, Expectation]:
    """By feature index; empty for a baseline that adjusts nothing."""
    rows = c.execute(
        text("""
            SELECT feature, intercept, weights, penalty, explained, n
            FROM monitor_data.adjustments
            WHERE baseline_id = :baseline_id
            ORDER BY feature
        """),
        {"baseline_id": baseline_id},
    )
    return {
        row.feature: Expectation(
            intercept=row.intercept,
            weights=tuple(row.weights),
            penalty=row.penalty,
            explained=row.explained,
            n=row.n,
        )
        for row in rows
    }


def adjustment_in_force(c: Connection, pack_id: str, known: Adjustment | None) -> Adjustment | None:
    """That of the pack's approved baseline; None where there is none, or where it adjusts nothing.

    ``known`` is returned, and nothing more is read, while it is still that one.
    """
    approved: str | None = c.scalar(
        text("""
            SELECT baseline_id FROM monitor_data.baselines
            WHERE pack_id = :pack_id AND status = 'approved'
        """),
        {"pack_id": pack_id},
    )
    if approved is None or (known is not None and known.baseline_id == approved):
        return known if approved else None
    expectations = load_expectations(c, approved)
    return Adjustment(baseline_id=approved, expectations=expectations) if expectations else None


def prompts_between(
    c: Connection, pack_id: str, start: datetime, end: datetime, most: int
) -> list[ScoredPrompt]:
    """Prompts of [start, end) with scores and covariates: all, or of ``most`` about so many.

    Where there are more, a share of the conversations is drawn, whole and the same ones every time.
    Readings are left out.
    """
    given = {"pack_id": pack_id, "start": utc(start), "end": utc(end)}
    among = """
        FROM monitor_data.scores
        WHERE recorded_at >= :start AND recorded_at < :end
            AND lineage_id = ANY(
                ARRAY(SELECT lineage_id FROM monitor_data.lineages WHERE pack_id = :pack_id))
    """
    n = c.scalar(text(f"SELECT count(*) {among}"), given) or 0
    kept = _SHARES if n <= most else max(_SHARES * most // n, 1)
    rows = c.execute(
        text(f"""
            SELECT recorded_at, topic, partition, record_offset, record_index, prompt_id,
                content_hash, conversation_hash, segments, model, model_revision, prompt_tokens,
                response_tokens, cut, generated, inclusion_probability, scores, covariates
            {among}
                AND hashtext(encode(coalesce(conversation_hash, content_hash), 'hex'))
                    & {_SHARES - 1} < :kept
            ORDER BY recorded_at, topic, partition, record_offset, record_index
        """),
        {**given, "kept": kept},
    )
    return [
        ScoredPrompt(
            key=RecordKey(
                topic=row.topic,
                partition=row.partition,
                offset=row.record_offset,
                index=row.record_index,
            ),
            recorded_at=utc(row.recorded_at),
            prompt_id=row.prompt_id,
            content_hash=row.content_hash,
            conversation_hash=row.conversation_hash,
            segments=tuple(row.segments),
            model=row.model,
            model_revision=row.model_revision,
            prompt_tokens=row.prompt_tokens,
            response_tokens=row.response_tokens,
            cut=row.cut,
            generated=row.generated,
            inclusion_probability=row.inclusion_probability,
            readings=np.empty(0, dtype=np.float32),
            scores=_floats(row.scores),
            covariates=None if row.covariates is None else _floats(row.covariates),
        )
        for row in rows
    ]


def _floats(values: list[float | None]) -> Floats:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float32)
