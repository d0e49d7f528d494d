"""Discoveries: an e-process beside every detector, and which streams have changed.

Revision ID: 0017
Revises: 0016
"""

from types import ModuleType

from alembic import context, op

revision = "0017"
down_revision = "0016"

DETECTORS = ("detectors", "identity_detectors", "alternative_detectors", "twin_detectors")
# Null in rows that a release before began: their e-processes begin with the next bucket.
PROCESS = {
    "process_since": "timestamptz",
    "process_steps": "BIGINT",
    "process_values": "DOUBLE PRECISION[]",
    "log_e": "DOUBLE PRECISION",
}
DRIFTS = {"log_e": "DOUBLE PRECISION", "log_e_line": "DOUBLE PRECISION"}
TABLE = """
    CREATE TABLE monitor_data.discoveries (
        pack_id TEXT NOT NULL,
        family TEXT NOT NULL,
        segment TEXT NOT NULL,
        feature TEXT NOT NULL,
        served TEXT NOT NULL,
        alternative TEXT NOT NULL,
        since timestamptz NOT NULL,
        found_at timestamptz NOT NULL,
        evaluated_at timestamptz NOT NULL,
        log_e DOUBLE PRECISION NOT NULL,
        log_e_line DOUBLE PRECISION NOT NULL,
        streams BIGINT NOT NULL,
        false_discovery DOUBLE PRECISION NOT NULL,
        CONSTRAINT discoveries_pkey
            PRIMARY KEY (pack_id, family, segment, feature, served, alternative),
        CONSTRAINT discoveries_pack_id_fkey
            FOREIGN KEY (pack_id) REFERENCES monitor_data.packs (pack_id)
    )
"""
VIEW = """
    SELECT
        found.pack_id,
        found.family,
        found.segment,
        nullif(found.feature, '') AS feature,
        CASE WHEN found.family IN ('identity', 'alternative') THEN found.served END AS served,
        nullif(found.alternative, '') AS alternative,
        found.since,
        found.found_at,
        found.evaluated_at,
        found.log_e,
        found.log_e_line,
        found.streams,
        found.false_discovery
    FROM monitor_data.discoveries AS found
"""
# Where revision 16 ends the view of drifts.
HISTORY_END = "AS looks_like\n"
HISTORY_MORE = """AS looks_like,
            drift.log_e,
            drift.log_e_line,
            drift.log_e >= drift.log_e_line AS discovery
"""


def upgrade() -> None:
    for table in DETECTORS:
        for name, kind in PROCESS.items():
            op.execute(f"ALTER TABLE monitor_data.{table} ADD COLUMN {name} {kind}")
    for name, kind in DRIFTS.items():
        op.execute(f"ALTER TABLE monitor_data.drifts ADD COLUMN {name} {kind}")
    op.execute(TABLE)
    history = _history_before().replace(HISTORY_END, HISTORY_MORE)
    op.execute(f"CREATE OR REPLACE VIEW monitor.drift_history AS {history}")
    op.execute(f"CREATE VIEW monitor.discoveries AS {VIEW}")
    _grant()


def downgrade() -> None:
    for name in ("discoveries", "drift_history"):
        op.execute(f"DROP VIEW monitor.{name}")  # a column cannot be taken from a view otherwise
    op.execute(f"CREATE VIEW monitor.drift_history AS {_history_before()}")
    op.execute("DROP TABLE monitor_data.discoveries")
    for name in DRIFTS:
        op.execute(f"ALTER TABLE monitor_data.drifts DROP COLUMN {name}")
    for table in DETECTORS:
        for name in PROCESS:
            op.execute(f"ALTER TABLE monitor_data.{table} DROP COLUMN {name}")
    _grant()


def _history_before() -> str:
    sixteenth = _module("0016")
    before: str = sixteenth._history_before()
    return before.replace(sixteenth.HISTORY_END, sixteenth.HISTORY_MORE)


def _module(of: str) -> ModuleType:
    """A revision that made or last changed a view, or knows the role that reads them."""
    return context.script.get_revision(of).module


def _grant() -> None:
    if role := context.config.attributes.get("reader_role"):
        op.execute(_module("0002").reader(role))
