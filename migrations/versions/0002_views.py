"""The documented views (docs/sql.md), and the role that may read them and nothing else.

Revision ID: 0002
Revises: 0001
"""

from alembic import context, op

revision = "0002"
down_revision = "0001"

VIEWS = {
    "feature_scores": """
        SELECT
            score.recorded_at,
            score.prompt_id,
            feature.name AS feature,
            score.scores[feature.ordinal + 1] AS score,
            score.readings[feature.ordinal + 1] AS reading,
            score.scores[feature.ordinal + 1] IS NOT NULL AND CASE feature.expected
                WHEN 'falls' THEN
                    score.scores[feature.ordinal + 1] < -abs(feature.tail_threshold)
                ELSE score.scores[feature.ordinal + 1] > feature.tail_threshold
            END AS in_tail,
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
            lineage.dtype AS replay_dtype
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
            part.tail_count,
            part.tail_count::float8 / part.n AS tail_rate,
            part.histogram,
            feature.pack_id,
            pack.name AS pack,
            part.lineage_id
        FROM (
            SELECT bucket_start AS window_start, lineage_id, feature, segment,
                n, tail_count, total, total_squares, histogram
            FROM monitor_data.buckets_hourly AS hourly
            WHERE NOT EXISTS (
                SELECT FROM monitor_data.touched_hours AS touched
                WHERE touched.hour = hourly.bucket_start
                    AND touched.lineage_id = hourly.lineage_id
                    AND touched.hour >= {kept_from})
            UNION ALL
            SELECT touched.hour, touched.lineage_id, bucket.feature, bucket.segment,
                sum(bucket.n)::bigint, sum(bucket.tail_count)::bigint, sum(bucket.total),
                sum(bucket.total_squares), {histogram}
            FROM (SELECT DISTINCT hour, lineage_id FROM monitor_data.touched_hours) AS touched
            JOIN (
                SELECT bucket_start, lineage_id, feature, segment,
                    n, tail_count, total, total_squares, histogram
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
        WHERE part.n > 0
    """,
    "drift_history": """
        SELECT
            drift.evaluated_at,
            drift.feature,
            drift.segment,
            drift.window_name,
            drift.window_start,
            drift.window_end,
            drift.window_end - drift.window_start AS window_length,
            drift.n,
            drift.mean,
            drift.baseline_mean,
            drift.shift,
            drift.shift_low,
            drift.shift_high,
            drift.psi,
            drift.psi_low,
            drift.ks,
            drift.ks_low,
            drift.tail_rate,
            drift.baseline_tail_rate,
            drift.tail_ratio,
            drift.tail_ratio_low,
            drift.tail_ratio_high,
            drift.evidence,
            drift.evidence_limit,
            drift.cause,
            drift.baseline_id,
            baseline.name AS baseline,
            drift.baseline_n,
            drift.pooled_baseline,
            drift.pack_id
        FROM monitor_data.drifts AS drift
        LEFT JOIN monitor_data.baselines AS baseline USING (baseline_id)
    """,
    "alerts": """
        SELECT
            alert_id,
            state,
            severity,
            kind,
            rule,
            summary,
            labels ->> 'feature' AS feature,
            labels ->> 'segment' AS segment,
            pending_since,
            fired_at,
            resolved_at,
            coalesce(resolved_at, last_active_at) - fired_at AS firing_for,
            acknowledged_at,
            acknowledged_by,
            last_announced_at,
            sequence AS announcements,
            dedupe_key,
            labels,
            details
        FROM monitor_data.alerts
    """,
    "alert_deliveries": """
        SELECT
            delivery.delivery_id,
            event.event_id AS webhook_id,
            delivery.alert_id,
            event.type,
            delivery.sequence,
            delivery.endpoint,
            delivery.state,
            delivery.attempts,
            event.created_at AS announced_at,
            delivery.finished_at,
            delivery.finished_at - event.created_at AS took,
            delivery.next_attempt_at,
            last.attempted_at AS last_attempted_at,
            last.outcome AS last_outcome,
            last.status AS last_status,
            last.latency_seconds AS last_latency_seconds,
            last.error AS last_error
        FROM monitor_data.deliveries AS delivery
        JOIN monitor_data.events AS event USING (event_id)
        LEFT JOIN monitor_data.delivery_attempts AS last
            ON last.delivery_id = delivery.delivery_id AND last.number = delivery.attempts
    """,
    "dead_letters": """
        SELECT
            recorded_at,
            reason,
            detail,
            topic,
            partition,
            record_offset,
            record_index,
            content IS NOT NULL AS has_content,
            stored_at
        FROM monitor_data.dead_letters
    """,
    "ingest_lag": """
        SELECT
            group_id,
            topic,
            partition,
            next_offset,
            log_end,
            greatest(log_end - next_offset, 0) AS lag,
            updated_at,
            now() - updated_at AS idle_for,
            worker_id
        FROM monitor_data.offsets
    """,
    "ingest_counts": """
        SELECT
            bucket_start AS recorded_at,
            group_id,
            source,
            split_part(outcome, ':', 1) AS outcome,
            nullif(split_part(outcome, ':', 2), '') AS reason,
            n
        FROM monitor_data.ingest_counts
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
            pack.registered_at
        FROM monitor_data.pack_features AS feature
        JOIN monitor_data.packs AS pack USING (pack_id)
    """,
    "baselines": """
        SELECT baseline_id, name, status, window_start, window_end, n, pack_id, fingerprint,
            created_at, approved_at, approved_by, retired_at, retired_by
        FROM monitor_data.baselines
    """,
    "canary_runs": """
        SELECT run.ran_at, run.worker_id, run.reproduced, run.largest_deviation, run.noise_floor,
            lineage.pack_id, lineage.model_id, lineage.dtype, lineage.device, lineage.engine,
            run.lineage_id
        FROM monitor_data.canary_runs AS run
        JOIN monitor_data.lineages AS lineage USING (lineage_id)
    """,
}
BINS = 58
HISTOGRAM = ", ".join(f"sum(bucket.histogram[{bin}])" for bin in range(1, BINS + 1))
KEPT_FROM = """coalesce(
    (SELECT kept_from FROM monitor_data.retention WHERE table_name = 'buckets'), '-infinity')"""


def upgrade() -> None:
    for name, query in VIEWS.items():
        body = query.format(histogram=f"ARRAY[{HISTOGRAM}]::int[]", kept_from=KEPT_FROM)
        op.execute(f"CREATE VIEW monitor.{name} AS {body}")
    if role := context.config.attributes.get("reader_role"):
        op.execute(reader(role))


def downgrade() -> None:
    for name in reversed(VIEWS):
        op.execute(f"DROP VIEW monitor.{name}")


def reader(role: str) -> str:
    """Make the role, where the user may, and let it read the views: those here and those to come.

    A user without CREATEROLE gets a notice: someone else makes the role, and grants are repeated by
    the next migration or by hand (docs/storage.md).
    """
    quoted = '"' + role.replace('"', '""') + '"'
    literal = "'" + role.replace("'", "''") + "'"
    return f"""
        DO $$
        BEGIN
            IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = {literal}) THEN
                BEGIN
                    CREATE ROLE {quoted} NOLOGIN;
                EXCEPTION
                    WHEN insufficient_privilege THEN
                        RAISE NOTICE 'the role % is missing and may not be made by this user', {literal};
                        RETURN;
                    WHEN duplicate_object OR unique_violation THEN
                        NULL;  -- another database of this server was migrated at the same time
                END;
            END IF;
            GRANT USAGE ON SCHEMA monitor TO {quoted};
            GRANT SELECT ON ALL TABLES IN SCHEMA monitor TO {quoted};
            ALTER DEFAULT PRIVILEGES IN SCHEMA monitor GRANT SELECT ON TABLES TO {quoted};
        END
        $$
    """
