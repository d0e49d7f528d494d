"""Identity: what weighed answers add up to, where its test stands, and the view on both.

Revision ID: 0010
Revises: 0009
"""

from alembic import op

revision = "0010"
down_revision = "0009"

BUCKETS = """
    CREATE TABLE monitor_data.identity_buckets (
        bucket_start timestamptz NOT NULL,
        lineage_id INTEGER NOT NULL,
        segment TEXT NOT NULL,
        source TEXT NOT NULL,
        served TEXT NOT NULL,
        n BIGINT NOT NULL,
        tokens BIGINT NOT NULL,
        excess DOUBLE PRECISION NOT NULL,
        variance DOUBLE PRECISION NOT NULL,
        off_support BIGINT NOT NULL,
        given_away BIGINT NOT NULL,
        wagers DOUBLE PRECISION[] NOT NULL,
        CONSTRAINT identity_buckets_pkey
            PRIMARY KEY (bucket_start, lineage_id, segment, source, served),
        CONSTRAINT identity_buckets_lineage_id_fkey
            FOREIGN KEY (lineage_id) REFERENCES monitor_data.lineages (lineage_id)
    ) PARTITION BY RANGE (bucket_start)
"""
STATES = """
    CREATE TABLE monitor_data.identity_detectors (
        pack_id TEXT NOT NULL,
        segment TEXT NOT NULL,
        served TEXT NOT NULL,
        started_at timestamptz NOT NULL,
        last_bucket timestamptz NOT NULL,
        n BIGINT NOT NULL,
        log_values DOUBLE PRECISION[] NOT NULL,
        CONSTRAINT identity_detectors_pkey PRIMARY KEY (pack_id, segment, served),
        CONSTRAINT identity_detectors_pack_id_fkey
            FOREIGN KEY (pack_id) REFERENCES monitor_data.packs (pack_id)
    )
"""
# z: of all answers of the row together; about N(0, 1) while the served model is the copy.
VIEW = """
    CREATE VIEW monitor.identity_history AS
    SELECT
        bucket.bucket_start,
        lineage.pack_id,
        bucket.segment,
        bucket.served,
        sum(bucket.n) AS n,
        sum(bucket.tokens) AS tokens,
        sum(bucket.excess) / nullif(sum(bucket.tokens), 0) AS excess_per_token,
        sum(bucket.excess) / nullif(sqrt(sum(bucket.variance)), 0) AS z,
        sum(bucket.off_support) AS off_support,
        sum(bucket.given_away) AS given_away
    FROM monitor_data.identity_buckets AS bucket
    JOIN monitor_data.lineages AS lineage USING (lineage_id)
    GROUP BY bucket.bucket_start, lineage.pack_id, bucket.segment, bucket.served
"""


def upgrade() -> None:
    op.execute(BUCKETS)
    op.execute(
        "CREATE TABLE monitor_partitions.identity_buckets_default"
        " PARTITION OF monitor_data.identity_buckets DEFAULT"
    )
    op.execute(STATES)
    op.execute(VIEW)


def downgrade() -> None:
    op.execute("DROP VIEW monitor.identity_history")
    op.execute("DROP TABLE monitor_data.identity_detectors")
    op.execute("DROP TABLE monitor_data.identity_buckets")
