"""Alternatives: what weighed answers say for each registered model, and where the bets on it stand.

Revision ID: 0016
Revises: 0015
"""

from types import ModuleType

from alembic import context, op

revision = "0016"
down_revision = "0015"

TABLES = {
    "alternative_buckets": """
        CREATE TABLE monitor_data.alternative_buckets (
            bucket_start timestamptz NOT NULL,
            lineage_id INTEGER NOT NULL,
            segment TEXT NOT NULL,
            source TEXT NOT NULL,
            served TEXT NOT NULL,
            alternative TEXT NOT NULL,
            n BIGINT NOT NULL,
            nearer BIGINT NOT NULL,
            tokens BIGINT NOT NULL,
            excess DOUBLE PRECISION NOT NULL,
            variance DOUBLE PRECISION NOT NULL,
            likelihoods DOUBLE PRECISION[] NOT NULL,
            wagers DOUBLE PRECISION[] NOT NULL,
            CONSTRAINT alternative_buckets_pkey
                PRIMARY KEY (bucket_start, lineage_id, segment, source, served, alternative)
        ) PARTITION BY RANGE (bucket_start)
    """,
    "alternative_detectors": """
        CREATE TABLE monitor_data.alternative_detectors (
            pack_id TEXT NOT NULL,
            segment TEXT NOT NULL,
            served TEXT NOT NULL,
            alternative TEXT NOT NULL,
            started_at timestamptz NOT NULL,
            last_bucket timestamptz NOT NULL,
            n BIGINT NOT NULL,
            log_values DOUBLE PRECISION[] NOT NULL,
            evidence DOUBLE PRECISION NOT NULL,
            evidence_limit DOUBLE PRECISION NOT NULL,
            CONSTRAINT alternative_detectors_pkey
                PRIMARY KEY (pack_id, segment, served, alternative),
            CONSTRAINT alternative_detectors_pack_id_fkey
                FOREIGN KEY (pack_id) REFERENCES monitor_data.packs (pack_id)
        )
    """,
}
DEFAULT = """
    CREATE TABLE monitor_partitions.alternative_buckets_default
    PARTITION OF monitor_data.alternative_buckets DEFAULT
"""

VIEWS = {
    # surprise: under the alternative's own law, about 0 where it is what answered.
    "alternative_windows": """
        SELECT
            bucket.bucket_start,
            lineage.pack_id,
            bucket.segment,
            bucket.served,
            bucket.alternative,
            sum(bucket.n)::bigint AS n,
            sum(bucket.nearer)::bigint AS nearer,
            sum(bucket.tokens)::bigint AS tokens,
            sum(bucket.excess) / nullif(sum(bucket.tokens), 0)::float8 AS surprise
        FROM monitor_data.alternative_buckets AS bucket
        JOIN monitor_data.lineages AS lineage USING (lineage_id)
        GROUP BY bucket.bucket_start, lineage.pack_id, bucket.segment, bucket.served,
            bucket.alternative
    """,
    "alternatives": """
        SELECT
            detector.pack_id,
            detector.segment,
            detector.served,
            detector.alternative,
            detector.started_at,
            detector.last_bucket,
            detector.n,
            detector.evidence,
            detector.evidence_limit,
            detector.evidence >= detector.evidence_limit AS crossed
        FROM monitor_data.alternative_detectors AS detector
    """,
}
# Where revision 10 ends the view of drifts.
HISTORY_END = "AS identity_limit\n"
HISTORY_MORE = """AS identity_limit,
            drift.witnesses -> 'identity' -> 'looks_like' ->> 'name' AS looks_like
"""


def upgrade() -> None:
    for table in TABLES.values():
        op.execute(table)
    op.execute(DEFAULT)
    history = _history_before().replace(HISTORY_END, HISTORY_MORE)
    op.execute(f"CREATE OR REPLACE VIEW monitor.drift_history AS {history}")
    for name, query in VIEWS.items():
        op.execute(f"CREATE VIEW monitor.{name} AS {query}")
    _grant()


def downgrade() -> None:
    for name in (*reversed(VIEWS), "drift_history"):
        op.execute(f"DROP VIEW monitor.{name}")  # a column cannot be taken from a view otherwise
    op.execute(f"CREATE VIEW monitor.drift_history AS {_history_before()}")
    for table in reversed(TABLES):
        op.execute(f"DROP TABLE monitor_data.{table}")
    op.execute("DELETE FROM monitor_data.retention WHERE table_name = 'alternative_buckets'")
    _grant()


def _history_before() -> str:
    tenth = _module("0010")
    history: str = tenth._history_before().replace(tenth.HISTORY_END, tenth.HISTORY_MORE)
    return history


def _module(of: str) -> ModuleType:
    """A revision that made or last changed a view, or knows the role that reads them."""
    return context.script.get_revision(of).module


def _grant() -> None:
    if role := context.config.attributes.get("reader_role"):
        op.execute(_module("0002").reader(role))
