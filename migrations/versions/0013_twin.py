"""Twins: the difference between served answers and the copy's own, feature by feature, and where its tests stand.

A difference is no feature of a pack, whose features are hashed into its id, but another score of one. So it has
a lineage of its own, as adjusted scores have: a number below 0, from the same sequence. Its buckets stand
beside the others and are rolled up, read as windows and dropped like them.

Revision ID: 0013
Revises: 0012
"""

from types import ModuleType

from alembic import context, op

revision = "0013"
down_revision = "0012"

# Null in all that was stored before, and in what workers of the releases before go on to store.
COLUMNS = {"twinning": "TEXT", "twin": "REAL[]"}

TABLES = {
    "twin_lineages": """
        CREATE TABLE monitor_data.twin_lineages (
            twin_id INTEGER NOT NULL
                DEFAULT nextval('monitor_data.adjusted_lineages_adjusted_id_seq'),
            lineage_id INTEGER NOT NULL,
            CONSTRAINT twin_lineages_pkey PRIMARY KEY (twin_id),
            CONSTRAINT twin_lineages_lineage_id_key UNIQUE (lineage_id),
            CONSTRAINT twin_lineages_lineage_id_fkey
                FOREIGN KEY (lineage_id) REFERENCES monitor_data.lineages (lineage_id)
        )
    """,
    "twin_detectors": """
        CREATE TABLE monitor_data.twin_detectors (
            pack_id TEXT NOT NULL,
            feature SMALLINT NOT NULL,
            segment TEXT NOT NULL,
            started_at timestamptz NOT NULL,
            last_bucket timestamptz NOT NULL,
            n BIGINT NOT NULL,
            log_values DOUBLE PRECISION[] NOT NULL,
            evidence DOUBLE PRECISION NOT NULL,
            evidence_limit DOUBLE PRECISION NOT NULL,
            CONSTRAINT twin_detectors_pkey PRIMARY KEY (pack_id, feature, segment),
            CONSTRAINT twin_detectors_pack_id_fkey
                FOREIGN KEY (pack_id) REFERENCES monitor_data.packs (pack_id)
        )
    """,
}

VIEWS = {
    "twin_scores": """
        SELECT
            score.recorded_at,
            lineage.pack_id,
            score.prompt_id,
            score.topic,
            score.partition,
            score.record_offset,
            score.record_index,
            score.segments,
            score.model,
            score.model_revision,
            score.twinning,
            feature.name AS feature,
            score.scores[feature.ordinal + 1] AS score,
            score.twin[feature.ordinal + 1] AS difference,
            feature.sign * score.twin[feature.ordinal + 1] AS toward
        FROM monitor_data.scores AS score
        JOIN monitor_data.lineages AS lineage USING (lineage_id)
        LEFT JOIN monitor_data.pack_features AS feature
            ON feature.pack_id = lineage.pack_id AND score.twin[feature.ordinal + 1] IS NOT NULL
        WHERE score.twinning IS NOT NULL
    """,
    "twins": """
        SELECT
            detector.pack_id,
            feature.name AS feature,
            detector.segment,
            detector.started_at,
            detector.last_bucket,
            detector.n,
            detector.evidence,
            detector.evidence_limit,
            detector.evidence >= detector.evidence_limit AS crossed
        FROM monitor_data.twin_detectors AS detector
        JOIN monitor_data.pack_features AS feature
            ON feature.pack_id = detector.pack_id AND feature.ordinal = detector.feature
    """,
}
TWIN_LINEAGE = """JOIN monitor_data.twin_lineages AS twin ON twin.twin_id = part.lineage_id
        JOIN monitor_data.lineages AS lineage ON lineage.lineage_id = twin.lineage_id"""
TWIN_END = """twin.lineage_id
        FROM ("""


def upgrade() -> None:
    for name, kind in COLUMNS.items():
        op.execute(f"ALTER TABLE monitor_data.scores ADD COLUMN {name} {kind}")
    for table in TABLES.values():
        op.execute(table)
    first, third, eighth = _module("0002"), _module("0003"), _module("0008")
    windows = (
        third.VIEWS["feature_windows"]
        .replace(eighth.WINDOW_LINEAGE, TWIN_LINEAGE)
        .replace(eighth.WINDOW_END, TWIN_END)
        .format(histogram=f"ARRAY[{first.HISTOGRAM}]::int[]", kept_from=first.KEPT_FROM)
    )
    op.execute(f"CREATE VIEW monitor.twin_windows AS {windows}")
    for name, query in VIEWS.items():
        op.execute(f"CREATE VIEW monitor.{name} AS {query}")
    _grant(first)


def downgrade() -> None:
    for name in (*reversed(VIEWS), "twin_windows"):
        op.execute(f"DROP VIEW monitor.{name}")
    # Their numbers are given out anew by the next upgrade.
    for table in ("buckets", "buckets_hourly", "touched_hours"):
        op.execute(
            f"DELETE FROM monitor_data.{table}"
            " WHERE lineage_id IN (SELECT twin_id FROM monitor_data.twin_lineages)"
        )
    for table in reversed(TABLES):
        op.execute(f"DROP TABLE monitor_data.{table}")
    for name in COLUMNS:
        op.execute(f"ALTER TABLE monitor_data.scores DROP COLUMN {name}")


def _module(of: str) -> ModuleType:
    """A revision that made or last changed a view, or knows the role that reads them."""
    return context.script.get_revision(of).module


def _grant(first: ModuleType) -> None:
    if role := context.config.attributes.get("reader_role"):
        op.execute(first.reader(role))
