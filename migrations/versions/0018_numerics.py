"""Numerics: how far a baseline's answers lie off what the copy would have said.

Revision ID: 0018
Revises: 0017
"""

from types import ModuleType

from alembic import context, op

revision = "0018"
down_revision = "0017"

# Zero in rows of before: such answers do not count as counted.
SUMS = {
    "counted_tokens": "BIGINT",
    "counted_excess": "DOUBLE PRECISION",
    "counted_variance": "DOUBLE PRECISION",
}
# Null in baselines of before, and where no answer was weighed that had been drawn.
COLUMN = "ALTER TABLE monitor_data.baselines ADD COLUMN numerics JSONB"
VIEW = """
    CREATE VIEW monitor.baseline_numerics AS
    SELECT
        baseline.baseline_id,
        baseline.pack_id,
        baseline.status,
        (baseline.numerics ->> 'surprise')::float8 AS surprise,
        (baseline.numerics ->> 'bound')::float8 AS surprise_high,
        (baseline.numerics ->> 'tokens')::bigint AS tokens,
        nullif(baseline.numerics ->> 'reason', '') AS reason
    FROM monitor_data.baselines AS baseline
    WHERE baseline.numerics IS NOT NULL
"""


def upgrade() -> None:
    for name, kind in SUMS.items():
        op.execute(
            f"ALTER TABLE monitor_data.identity_buckets ADD COLUMN {name} {kind} NOT NULL DEFAULT 0"
        )
    op.execute(COLUMN)
    op.execute(VIEW)
    _grant()


def downgrade() -> None:
    op.execute("DROP VIEW monitor.baseline_numerics")
    op.execute("ALTER TABLE monitor_data.baselines DROP COLUMN numerics")
    for name in SUMS:
        op.execute(f"ALTER TABLE monitor_data.identity_buckets DROP COLUMN {name}")


def _module(of: str) -> ModuleType:
    """The revision that knows the role that reads views."""
    return context.script.get_revision(of).module


def _grant() -> None:
    if role := context.config.attributes.get("reader_role"):
        op.execute(_module("0002").reader(role))
