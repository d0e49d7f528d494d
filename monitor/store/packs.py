"""Packs, their features, and the lineages that scores were made with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, bindparam, text
from sqlalchemy.dialects.postgresql import JSONB

from monitor.store.border import TEXT_CHARACTERS, clean, clean_json
from monitor.values.features import PROMPT_SIDE, Directed, Feature
from monitor.values.presence import PackPresence
from monitor.values.scores import Lineage
from monitor.values.verdicts import Decision, tags_by

ALIVE: Final = timedelta(minutes=2)
"""A worker that showed itself within this time lives, unless it said that it stopped."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class PackFeature(Directed):
    """What the database knows of a feature: all of `Feature` but weights and calibration."""

    ordinal: int
    """Its index in readings, scores and buckets."""
    name: str
    kind: str
    site: int
    region: str
    pooling: str
    tags: tuple[str, ...]
    """Those by which rules select: what was judged and does not ship has `WATCH_ONLY` too."""
    description: str
    verdict: Decision | None = None
    """The judge's, from the pack's report; None for a feature that it holds none on."""

    @property
    def of_prompt(self) -> bool:
        return self.region in PROMPT_SIDE


def pack_features(c: Connection, pack_id: str) -> list[PackFeature]:
    """The features of a pack in its order; empty for an unknown pack."""
    rows = c.execute(
        text("""
            WITH judged AS (
                -- As `monitor.values.verdicts` has it: a joined pack's own report, which comes first, is
                -- held to rather than those of its sources.
                SELECT DISTINCT ON (feature.key)
                    feature.key AS name, feature.value ->> 'decision' AS verdict
                FROM monitor_data.packs,
                    jsonb_path_query(manifest -> 'report', 'lax $.**.judge.features')
                        WITH ORDINALITY AS report (features, place),
                    jsonb_each(report.features) AS feature
                WHERE pack_id = :pack_id
                ORDER BY feature.key, report.place
            )
            SELECT ordinal, name, kind, site, region, pooling, tags, expected, description,
                tail_threshold, judged.verdict
            FROM monitor_data.pack_features
            LEFT JOIN judged USING (name)
            WHERE pack_id = :pack_id
            ORDER BY ordinal
        """),
        {"pack_id": pack_id},
    )
    return [
        PackFeature(**{**row, "tags": tags_by(row["verdict"], row["tags"])})
        for row in rows.mappings()
    ]


def stated_separations(c: Connection, pack_id: str) -> dict[str, float]:
    """How far the persona's own texts score from benign ones, in benign deviations, by the pack's report.

    The judge's figure where it judged the feature, else the builder's; a feature that has neither is left out.
    """
    rows = c.execute(
        text("""
            SELECT DISTINCT ON (feature.key) feature.key AS name,
                CAST(coalesce(
                    feature.value #>> '{separation,shift_in_benign_deviations}',
                    feature.value ->> 'shift') AS float8) AS separation
            FROM monitor_data.packs,
                jsonb_path_query(manifest -> 'report', 'lax $.**.features ? (@.type() == "object")')
                    AS report (features),
                jsonb_each(report.features) AS feature
            WHERE pack_id = :pack_id AND coalesce(
                jsonb_typeof(feature.value #> '{separation,shift_in_benign_deviations}'),
                jsonb_typeof(feature.value -> 'shift')) = 'number'
            ORDER BY feature.key, feature.value -> 'separation' IS NULL
        """),
        {"pack_id": pack_id},
    )
    return {row.name: row.separation for row in rows}


def pack_presence(c: Connection, now: datetime) -> list[PackPresence]:
    """Every registered pack, in the order of registration, with who is at work with it at ``now``."""
    rows = c.execute(
        text("""
            SELECT pack.pack_id, pack.name, pack.registered_at, worker.last_seen_at,
                coalesce(worker.live_workers, 0) AS live_workers, baseline.baseline_id
            FROM monitor_data.packs AS pack
            LEFT JOIN (
                SELECT pack_id, max(seen_at) AS last_seen_at,
                    count(*) FILTER (WHERE seen_at >= :since AND state <> 'stopped') AS live_workers
                FROM monitor_data.workers
                GROUP BY pack_id
            ) AS worker USING (pack_id)
            LEFT JOIN monitor_data.baselines AS baseline
                ON baseline.pack_id = pack.pack_id AND baseline.status = 'approved'
            ORDER BY pack.registered_at, pack.pack_id
        """),
        {"since": now - ALIVE},
    )
    return [PackPresence(**row) for row in rows.mappings()]


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
