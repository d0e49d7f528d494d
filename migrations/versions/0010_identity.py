"""Identity: what weighed answers add up to, where its test stands, and what each cause rests on.

Revision ID: 0010
Revises: 0009
"""

from types import ModuleType

from alembic import context, op

revision = "0010"
down_revision = "0009"

# Null in all that was stored before, and in what workers of the releases before go on to store.
COLUMNS = {
    "scores": {
        "weighing": "TEXT",
        "surprise": "REAL",
        "surprise_peak": "REAL",
        "off_support": "INTEGER",
        "given_away": "INTEGER",
    },
    "drifts": {"witnesses": "JSONB"},
}

TABLES = {
    "identity_buckets": """
        CREATE TABLE monitor_data.identity_buckets (
            bucket_start timestamptz NOT NULL,
            lineage_id INTEGER NOT NULL,
            segment TEXT NOT NULL,
            source TEXT NOT NULL,
            served TEXT NOT NULL,
            n BIGINT NOT NULL,
            left_out BIGINT NOT NULL,
            tokens BIGINT NOT NULL,
            excess DOUBLE PRECISION NOT NULL,
            variance DOUBLE PRECISION NOT NULL,
            off_support BIGINT NOT NULL,
            greedy_tokens BIGINT NOT NULL,
            given_away BIGINT NOT NULL,
            wagers DOUBLE PRECISION[] NOT NULL,
            CONSTRAINT identity_buckets_pkey
                PRIMARY KEY (bucket_start, lineage_id, segment, source, served)
        ) PARTITION BY RANGE (bucket_start)
    """,
    "identity_detectors": """
        CREATE TABLE monitor_data.identity_detectors (
            pack_id TEXT NOT NULL,
            segment TEXT NOT NULL,
            served TEXT NOT NULL,
            started_at timestamptz NOT NULL,
            last_bucket timestamptz NOT NULL,
            n BIGINT NOT NULL,
            log_values DOUBLE PRECISION[] NOT NULL,
            evidence DOUBLE PRECISION NOT NULL,
            evidence_limit DOUBLE PRECISION NOT NULL,
            CONSTRAINT identity_detectors_pkey PRIMARY KEY (pack_id, segment, served),
            CONSTRAINT identity_detectors_pack_id_fkey
                FOREIGN KEY (pack_id) REFERENCES monitor_data.packs (pack_id)
        )
    """,
}
DEFAULT = """
    CREATE TABLE monitor_partitions.identity_buckets_default
    PARTITION OF monitor_data.identity_buckets DEFAULT
"""

VIEWS = {
    "weighed_answers": """
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
            score.response_tokens,
            score.weighing,
            score.surprise,
            score.surprise_peak,
            score.off_support,
            score.given_away
        FROM monitor_data.scores AS score
        JOIN monitor_data.lineages AS lineage USING (lineage_id)
        WHERE score.weighing IS NOT NULL
    """,
    # z: of all answers of the row together; about N(0, 1) while the served model is the copy.
    "identity_windows": """
        SELECT
            bucket.bucket_start,
            lineage.pack_id,
            bucket.segment,
            bucket.served,
            sum(bucket.n)::bigint AS n,
            sum(bucket.left_out)::bigint AS left_out,
            sum(bucket.tokens)::bigint AS tokens,
            sum(bucket.excess) / nullif(sum(bucket.tokens), 0)::float8 AS surprise,
            sum(bucket.excess) / nullif(sqrt(sum(bucket.variance)), 0) AS z,
            sum(bucket.off_support)::bigint AS off_support,
            sum(bucket.greedy_tokens)::bigint AS greedy_tokens,
            sum(bucket.given_away)::bigint AS given_away
        FROM monitor_data.identity_buckets AS bucket
        JOIN monitor_data.lineages AS lineage USING (lineage_id)
        GROUP BY bucket.bucket_start, lineage.pack_id, bucket.segment, bucket.served
    """,
    "identity": """
        SELECT
            detector.pack_id,
            detector.segment,
            detector.served,
            detector.started_at,
            detector.last_bucket,
            detector.n,
            detector.evidence,
            detector.evidence_limit,
            detector.evidence >= detector.evidence_limit AS crossed
        FROM monitor_data.identity_detectors AS detector
    """,
}
# Where the revision before ends the view of drifts.
HISTORY_END = "drift.raw_shift_high\n"
HISTORY_MORE = """drift.raw_shift_high,
            drift.witnesses,
            (drift.witnesses -> 'identity' ->> 'evidence')::float8 AS identity_evidence,
            (drift.witnesses -> 'identity' ->> 'limit')::float8 AS identity_limit
"""


def upgrade() -> None:
    for table, columns in COLUMNS.items():
        for name, kind in columns.items():
            op.execute(f"ALTER TABLE monitor_data.{table} ADD COLUMN {name} {kind}")
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
    op.execute("DELETE FROM monitor_data.retention WHERE table_name = 'identity_buckets'")
    # The release before knows no such cause.
    op.execute("UPDATE monitor_data.drifts SET cause = 'unknown' WHERE cause = 'undecided'")
    for table, columns in COLUMNS.items():
        for name in columns:
            op.execute(f"ALTER TABLE monitor_data.{table} DROP COLUMN {name}")
    _grant()


def _history_before() -> str:
    query: str = (
        _module("0002")
        .VIEWS["drift_history"]
        .replace(_module("0008").HISTORY_END, _module("0008").HISTORY_MORE)
    )
    return query


def _module(of: str) -> ModuleType:
    """A revision that made or last changed a view, or knows the role that reads them."""
    return context.script.get_revision(of).module


def _grant() -> None:
    if role := context.config.attributes.get("reader_role"):
        op.execute(_module("0002").reader(role))
