"""Scores of single prompts: written by COPY, asked for the strongest."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import psycopg
from sqlalchemy import Connection, text

from monitor.store.border import clean, clean_or_none
from monitor.store.packs import PackFeature
from monitor.store.reals import dumped, write_reals
from monitor.store.texts import stored_texts, write_texts
from monitor.values.prompts import GENERATED, ServedCounts
from monitor.values.scores import ScoredPrompt
from monitor.values.surprise import NotWeighed, Surprise, Weighed, outcome_of_weighing
from monitor.values.twin import NotPaired, outcome_of_twin

_COPY_SCORES: Final = """
    COPY monitor_data.scores (
        recorded_at, topic, partition, record_offset, record_index, lineage_id, prompt_id,
        content_hash, conversation_hash, segments, model, model_revision, prompt_tokens,
        response_tokens, cut, generated, inclusion_probability, readings, scores,
        served_prompt_tokens, served_answer_tokens, prompt_difference, answer_difference, fidelity,
        left_out, covariates, adjusted, adjusted_id, weighing, surprise, surprise_peak, off_support,
        given_away, twinning, twin)
    FROM STDIN (FORMAT BINARY)
"""

_NOT_COUNTED: Final = ServedCounts()

_SCORE_TYPES: Final = (
    *("timestamptz", "text", "int4", "int8", "int4", "int4", "text", "bytea", "bytea", "text[]"),
    *("text", "text", "int4", "int4", "bool", "bool", "float4", "float4[]", "float4[]"),
    *("int8", "int8", "int8", "int8", "text", "text[]"),
    *("float4[]", "float4[]", "int4", "text", "float4", "float4", "int4", "int4"),
    *("text", "float4[]"),
)


def copy_scores(
    c: Connection, lineage_id: int, scored: Sequence[ScoredPrompt], adjusted_id: int | None = None
) -> None:
    """COPY one row per prompt, on the driver connection of the same transaction. NaN becomes NULL.

    ``adjusted_id`` is the lineage of the adjusted scores, where there are any.
    """
    driver: Any = c.connection.driver_connection
    connection: psycopg.Connection = driver
    with connection.cursor() as cursor:
        write_reals(cursor)
        write_texts(cursor)
        with cursor.copy(_COPY_SCORES) as copy:
            copy.set_types(_SCORE_TYPES)
            readings = dumped([row.readings for row in scored])
            scores = dumped([row.scores for row in scored])
            for row, read, score in zip(scored, readings, scores, strict=True):
                copy.write_row(_row(row, read, score, lineage_id, adjusted_id))


def _row(
    row: ScoredPrompt, readings: bytes, scores: bytes, lineage_id: int, adjusted_id: int | None
) -> tuple[Any, ...]:
    return (
        row.recorded_at,
        clean(row.key.topic),
        row.key.partition,
        row.key.offset,
        row.key.index,
        lineage_id,
        clean(row.prompt_id),
        row.content_hash,
        row.conversation_hash,
        stored_texts(row.segments),
        clean_or_none(row.model),
        clean_or_none(row.model_revision),
        row.prompt_tokens,
        row.response_tokens,
        row.cut,
        row.generated,
        row.inclusion_probability,
        readings,
        scores,
        *_compared(row),
        stored_texts(row.left_out) if row.left_out else None,
        row.covariates,
        row.adjusted,
        None if row.adjusted is None else adjusted_id,
        *_weighed(row.weighed),
        None if row.twin is None else outcome_of_twin(row.twin),
        None if isinstance(row.twin, NotWeighed | NotPaired) else row.twin,
    )


def _compared(
    row: ScoredPrompt,
) -> tuple[int | None, int | None, int | None, int | None, str | None]:
    """The server's counts, and the replay's against them."""
    found, served = row.fidelity, row.served or _NOT_COUNTED
    if found is None:
        return served.prompt_tokens, served.completion_tokens, None, None, None
    return (
        served.prompt_tokens,
        served.completion_tokens,
        found.prompt_difference,
        found.answer_difference,
        found.verdict,
    )


def _weighed(
    weighed: Weighed | None,
) -> tuple[str | None, float | None, float | None, int | None, int | None]:
    """How the answer was weighed or why not, its z and peak, and the tokens that stand out."""
    if weighed is None:
        return None, None, None, None, None
    outcome = outcome_of_weighing(weighed)
    if not isinstance(weighed, Surprise):
        return outcome, None, None, None, None
    if weighed.law == "greedy":
        return outcome, None, None, None, weighed.given_away
    return outcome, weighed.z, weighed.peak, weighed.off_support, None


def strongest_prompts(
    c: Connection,
    pack_id: str,
    feature: PackFeature,
    segment: str,
    start: datetime,
    end: datetime,
    limit: int,
    *,
    adjusted_by: str | None = None,
) -> list[dict[str, Any]]:
    """The prompts of [start, end) whose scores lie furthest towards the feature's persona.

    Of those whose score counts in ``segment`` (see `ScoredPrompt.counted_in`). With ``adjusted_by``, a
    baseline, the scores given the prompt decide, of the prompts that it adjusted.

    Keys: prompt_id, recorded_at, topic, partition, record_offset, record_index, score, adjusted, reading,
    response_tokens, segments.
    """
    by = "scores" if adjusted_by is None else "adjusted"
    rows = c.execute(
        text(f"""
            SELECT prompt_id, recorded_at, topic, partition, record_offset, record_index,
                scores[:ordinal] AS score, adjusted[:ordinal] AS adjusted, readings[:ordinal] AS reading, response_tokens, segments
            {_COUNTED} AND {by}[:ordinal] IS NOT NULL
            ORDER BY :sign * {by}[:ordinal] DESC, recorded_at, record_offset
            LIMIT :limit
        """),
        {**_counted(pack_id, feature, segment, start, end, adjusted_by), "limit": limit},
    )
    return [dict(row) for row in rows.mappings()]


def contents_beyond(
    c: Connection,
    pack_id: str,
    feature: PackFeature,
    segment: str,
    start: datetime,
    end: datetime,
    threshold: float,
    limit: int,
    *,
    adjusted_by: str | None = None,
) -> list[tuple[bytes, float]]:
    """Keyed hash of the content, and score towards the persona, of the newest ``limit`` prompts of [start, end) at or
    beyond ``threshold``; counted as in `strongest_prompts`."""
    by = "scores" if adjusted_by is None else "adjusted"
    rows = c.execute(
        text(f"""
            SELECT content_hash, :sign * {by}[:ordinal] AS score
            {_COUNTED} AND :sign * {by}[:ordinal] >= :threshold
            ORDER BY recorded_at DESC, record_offset DESC
            LIMIT :limit
        """),
        {
            **_counted(pack_id, feature, segment, start, end, adjusted_by),
            "threshold": threshold,
            "limit": limit,
        },
    )
    return [(row.content_hash, row.score) for row in rows]


_COUNTED: Final = """
    FROM monitor_data.scores
    WHERE recorded_at >= :start AND recorded_at < :end
        AND lineage_id = ANY(
            ARRAY(SELECT lineage_id FROM monitor_data.lineages WHERE pack_id = :pack_id))
        AND :segment = ANY(segments)
        AND (NOT generated OR :of_generated)
        AND (CAST(:adjusted_by AS text) IS NULL OR adjusted_id = ANY(ARRAY(
            SELECT adjusted_id FROM monitor_data.adjusted_lineages
            WHERE baseline_id = CAST(:adjusted_by AS text))))"""
"""The prompts of an interval whose score of a feature counts in a segment."""


def _counted(
    pack_id: str,
    feature: PackFeature,
    segment: str,
    start: datetime,
    end: datetime,
    adjusted_by: str | None,
) -> dict[str, Any]:
    """What `_COUNTED`, and who reads the feature's score beside it, has to know."""
    return {
        "pack_id": pack_id,
        "ordinal": feature.ordinal + 1,
        "sign": feature.sign,
        "segment": clean(segment),
        "of_generated": feature.of_prompt is not (segment == GENERATED),
        "adjusted_by": adjusted_by,
        "start": start,
        "end": end,
    }
