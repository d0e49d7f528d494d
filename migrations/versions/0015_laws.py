"""How likely answers are of which nobody says how they were drawn, and the law that a baseline makes of it.

Revision ID: 0015
Revises: 0014
"""

from types import ModuleType

from alembic import context, op

revision = "0015"
down_revision = "0014"

TABLE = """
    CREATE TABLE monitor_data.law_buckets (
        bucket_start timestamptz NOT NULL,
        lineage_id INTEGER NOT NULL,
        source TEXT NOT NULL,
        served TEXT NOT NULL,
        n BIGINT NOT NULL,
        tokens BIGINT NOT NULL,
        logs REAL[] NOT NULL,
        squares REAL[] NOT NULL,
        CONSTRAINT law_buckets_pkey PRIMARY KEY (bucket_start, lineage_id, source, served)
    ) PARTITION BY RANGE (bucket_start)
"""
DEFAULT = """
    CREATE TABLE monitor_partitions.law_buckets_default
    PARTITION OF monitor_data.law_buckets DEFAULT
"""
# Null in baselines of before, and where every answer's law was told.
COLUMN = "ALTER TABLE monitor_data.baselines ADD COLUMN law JSONB"

VIEW = """
    CREATE VIEW monitor.baseline_laws AS
    SELECT
        baseline.baseline_id,
        baseline.pack_id,
        baseline.status,
        (baseline.law ->> 'temperature')::float8 AS temperature,
        (baseline.law ->> 'low')::float8 AS temperature_low,
        (baseline.law ->> 'high')::float8 AS temperature_high,
        (baseline.law ->> 'top_p')::float8 AS top_p,
        (baseline.law ->> 'top_p_high')::float8 AS top_p_high,
        (baseline.law ->> 'spread')::float8 AS spread,
        (baseline.law ->> 'n')::bigint AS n,
        (baseline.law ->> 'tokens')::bigint AS tokens,
        baseline.law ->> 'reason' AS reason
    FROM monitor_data.baselines AS baseline
    WHERE baseline.law IS NOT NULL
"""


def upgrade() -> None:
    op.execute(TABLE)
    op.execute(DEFAULT)
    op.execute(COLUMN)
    op.execute(VIEW)
    _grant()


def downgrade() -> None:
    op.execute("DROP VIEW monitor.baseline_laws")
    op.execute("ALTER TABLE monitor_data.baselines DROP COLUMN law")
    op.execute("DROP TABLE monitor_data.law_buckets")
    op.execute("DELETE FROM monitor_data.retention WHERE table_name = 'law_buckets'")


def _module(of: str) -> ModuleType:
    """The revision that knows the role that reads views."""
    return context.script.get_revision(of).module


def _grant() -> None:
    if role := context.config.attributes.get("reader_role"):
        op.execute(_module("0002").reader(role))
