"""How far partitions are read: log ends asked of the broker, watermarks, and both in the view.

Revision ID: 0004
Revises: 0003
"""

from alembic import context, op

revision = "0004"
down_revision = "0003"

# Everything up to `watermark` is read and stored. A partition that is read to the end of its log is up
# to date as long as somebody asks (monitor/store/progress.py has the same rule, for any time).
# least() and greatest() pass over nulls.
INGEST_LAG = """
    SELECT
        group_id,
        topic,
        partition,
        next_offset,
        log_end,
        greatest(log_end - next_offset, 0) AS lag,
        updated_at,
        now() - updated_at AS idle_for,
        worker_id,
        asked_at,
        now() - asked_at AS asked_ago,
        owner,
        watermark,
        CASE WHEN begun_at IS NOT NULL
            THEN greatest(
                now() - coalesce(watermark, caught_up_at, begun_at), interval '0') END AS delay
    FROM (
        SELECT
            seen.*,
            CASE
                WHEN next_offset >= log_end AND asked_at >= now() - interval '60 seconds' THEN now()
                WHEN read_until IS NOT NULL THEN least(read_until, now())
            END AS watermark
        FROM (
            SELECT
                known.*,
                CASE WHEN begun_at IS NOT NULL THEN greatest(
                    newest_record,
                    CASE WHEN next_offset >= log_end THEN asked_at END)
                END AS read_until
            FROM (
                SELECT
                    group_id,
                    topic,
                    partition,
                    coalesce(stored.next_offset, told.begins_at) AS next_offset,
                    greatest(stored.log_end, told.log_end) AS log_end,
                    stored.updated_at,
                    stored.worker_id,
                    told.asked_at,
                    told.worker_id AS owner,
                    told.begun_at,
                    told.caught_up_at,
                    stored.watermark AS newest_record
                FROM monitor_data.offsets AS stored
                FULL JOIN monitor_data.log_ends AS told USING (group_id, topic, partition)
            ) AS known
        ) AS seen
    ) AS read
"""

BEFORE = """
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
"""


def upgrade() -> None:
    op.execute("ALTER TABLE monitor_data.offsets ADD COLUMN watermark TIMESTAMP WITH TIME ZONE")
    op.execute("""
        CREATE TABLE monitor_data.log_ends (
            group_id TEXT NOT NULL,
            topic TEXT NOT NULL,
            partition INTEGER NOT NULL,
            begins_at BIGINT NOT NULL,
            log_end BIGINT NOT NULL,
            asked_at TIMESTAMP WITH TIME ZONE NOT NULL,
            assigned_at TIMESTAMP WITH TIME ZONE NOT NULL,
            begun_at TIMESTAMP WITH TIME ZONE NOT NULL,
            caught_up_at TIMESTAMP WITH TIME ZONE,
            worker_id TEXT NOT NULL,
            CONSTRAINT log_ends_pkey PRIMARY KEY (group_id, topic, partition)
        )
    """)
    op.execute(f"CREATE OR REPLACE VIEW monitor.ingest_lag AS {INGEST_LAG}")


def downgrade() -> None:
    op.execute("DROP VIEW monitor.ingest_lag")
    op.execute(f"CREATE VIEW monitor.ingest_lag AS {BEFORE}")
    if role := context.config.attributes.get("reader_role"):
        quoted = '"' + role.replace('"', '""') + '"'
        literal = "'" + role.replace("'", "''") + "'"
        op.execute(f"""
            DO $$
            BEGIN
                IF EXISTS (SELECT FROM pg_roles WHERE rolname = {literal}) THEN
                    GRANT SELECT ON monitor.ingest_lag TO {quoted};
                END IF;
            END
            $$
        """)
    op.execute("DROP TABLE monitor_data.log_ends")
    op.execute("ALTER TABLE monitor_data.offsets DROP COLUMN watermark")
