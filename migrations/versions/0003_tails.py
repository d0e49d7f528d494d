"""The tail of a falling feature: counted on its own side, and known only where it was.

Until now the worker counted the tail of a falling feature on the wrong side: nearly every benign prompt.
``tail_n`` says of how many prompts of a row the tail was counted rightly. The releases before this one
leave it NULL, in the rows that are there and in those that they go on to write, so nothing is rewritten
and old workers may run on for a while: a falling feature's tail is known where ``tail_n = n``. Tail
figures of falling features in the drift history are taken out.

Revision ID: 0003
Revises: 0002
"""

from types import ModuleType

from alembic import context, op

revision = "0003"
down_revision = "0002"

COUNTED = ("buckets", "buckets_hourly", "baseline_windows")

# The one spelling of a feature's direction in SQL; in Python it is Directed (values/features.py).
SIGN = """
    ALTER TABLE monitor_data.pack_features ADD COLUMN sign SMALLINT
        GENERATED ALWAYS AS (CASE WHEN expected = 'falls' THEN -1 ELSE 1 END) STORED
"""

HISTORY = """
    UPDATE monitor_data.drifts AS drift
    SET tail_rate = NULL, baseline_tail_rate = NULL,
        tail_ratio = NULL, tail_ratio_low = NULL, tail_ratio_high = NULL
    FROM monitor_data.pack_features AS feature
    WHERE feature.pack_id = drift.pack_id AND feature.name = drift.feature AND feature.sign = -1
"""

VIEWS = {
    "feature_scores": """
        SELECT
            score.recorded_at,
            score.prompt_id,
            feature.name AS feature,
            score.scores[feature.ordinal + 1] AS score,
            score.readings[feature.ordinal + 1] AS reading,
            coalesce(
                feature.sign * score.scores[feature.ordinal + 1] > feature.tail_threshold, false
            ) AS in_tail,
            score.segments,
            score.model,
            score.model_revision,
            score.prompt_tokens,
            score.response_tokens,
            score.cut,
            score.generated,
            score.inclusion_probability,
            encode(score.conversation_hash, 'hex') AS conversation_hash,
            encode(score.content_hash, 'hex') AS content_hash,
            score.topic,
            score.partition,
            score.record_offset,
            score.record_index,
            lineage.pack_id,
            pack.name AS pack,
            score.lineage_id,
            lineage.model_id AS replay_model,
            lineage.dtype AS replay_dtype,
            feature.sign * score.scores[feature.ordinal + 1] AS toward
        FROM monitor_data.scores AS score
        JOIN monitor_data.lineages AS lineage USING (lineage_id)
        JOIN monitor_data.packs AS pack USING (pack_id)
        JOIN monitor_data.pack_features AS feature USING (pack_id)
    """,
    # Whole hours from the rollup; an hour that changed since, from its buckets (store/buckets.py).
    "feature_windows": """
        SELECT
            part.window_start,
            part.window_start + interval '1 hour' AS window_end,
            feature.name AS feature,
            part.segment,
            part.n,
            part.total / part.n AS mean,
            sqrt(greatest(part.total_squares / part.n - (part.total / part.n) ^ 2, 0)) AS deviation,
            known.tail_count,
            known.tail_count::float8 / part.n AS tail_rate,
            part.histogram,
            feature.pack_id,
            pack.name AS pack,
            part.lineage_id
        FROM (
            SELECT bucket_start AS window_start, lineage_id, feature, segment,
                n, tail_count, tail_n, total, total_squares, histogram
            FROM monitor_data.buckets_hourly AS hourly
            WHERE NOT EXISTS (
                SELECT FROM monitor_data.touched_hours AS touched
                WHERE touched.hour = hourly.bucket_start
                    AND touched.lineage_id = hourly.lineage_id
                    AND touched.hour >= {kept_from})
            UNION ALL
            SELECT touched.hour, touched.lineage_id, bucket.feature, bucket.segment,
                sum(bucket.n)::bigint, sum(bucket.tail_count)::bigint, sum(bucket.tail_n)::bigint,
                sum(bucket.total), sum(bucket.total_squares), {histogram}
            FROM (SELECT DISTINCT hour, lineage_id FROM monitor_data.touched_hours) AS touched
            JOIN (
                SELECT bucket_start, lineage_id, feature, segment,
                    n, tail_count, tail_n, total, total_squares, histogram
                FROM monitor_data.buckets
            ) AS bucket
                ON bucket.bucket_start >= touched.hour
                AND bucket.bucket_start < touched.hour + interval '1 hour'
                AND bucket.lineage_id = touched.lineage_id
            WHERE touched.hour >= {kept_from}
            GROUP BY touched.hour, touched.lineage_id, bucket.feature, bucket.segment
        ) AS part
        JOIN monitor_data.lineages AS lineage USING (lineage_id)
        JOIN monitor_data.packs AS pack USING (pack_id)
        JOIN monitor_data.pack_features AS feature
            ON feature.pack_id = lineage.pack_id AND feature.ordinal = part.feature
        CROSS JOIN LATERAL (
            SELECT CASE WHEN feature.sign = 1 OR part.tail_n = part.n THEN part.tail_count END
                AS tail_count
        ) AS known
        WHERE part.n > 0
    """,
    "features": """
        SELECT
            feature.name AS feature,
            feature.ordinal,
            feature.kind,
            feature.site,
            feature.region,
            feature.pooling,
            feature.tags,
            feature.expected,
            feature.tail_threshold,
            feature.description,
            feature.pack_id,
            pack.name AS pack,
            pack.registered_at,
            feature.sign
        FROM monitor_data.pack_features AS feature
        JOIN monitor_data.packs AS pack USING (pack_id)
    """,
}


def upgrade() -> None:
    for table in COUNTED:
        op.execute(f"ALTER TABLE monitor_data.{table} ADD COLUMN tail_n BIGINT")
    op.execute(SIGN)
    op.execute(HISTORY)
    _views(VIEWS, _before())


def downgrade() -> None:
    before = _before()
    for name in ("feature_scores", "features"):
        op.execute(f"DROP VIEW monitor.{name}")  # a column cannot be taken from a view otherwise
    _views({name: before.VIEWS[name] for name in VIEWS}, before)
    op.execute("ALTER TABLE monitor_data.pack_features DROP COLUMN sign")
    for table in COUNTED:
        op.execute(f"ALTER TABLE monitor_data.{table} DROP COLUMN tail_n")


def _before() -> ModuleType:
    """The revision that made the views: it knows their common parts and the role that reads them."""
    return context.script.get_revision(down_revision).module


def _views(queries: dict[str, str], before: ModuleType) -> None:
    """Put these queries in the place of the views, which keeps what others built on them and were
    granted; the reader is granted them anew."""
    for name, query in queries.items():
        body = query.format(
            histogram=f"ARRAY[{before.HISTOGRAM}]::int[]", kept_from=before.KEPT_FROM
        )
        op.execute(f"CREATE OR REPLACE VIEW monitor.{name} AS {body}")
    if role := context.config.attributes.get("reader_role"):
        op.execute(before.reader(role))
