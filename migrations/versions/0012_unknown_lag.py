"""A partition whose end nobody told yet has no lag; it had one of 0.

Reading begins with a row that has no end of the log (revision 0009), and Postgres' greatest() passes over nulls.

Revision ID: 0012
Revises: 0011
"""

from alembic import context, op

revision = "0012"
down_revision = "0011"

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
        CASE WHEN log_end IS NOT NULL THEN greatest(log_end - next_offset, 0) END AS lag,
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


def upgrade() -> None:
    # In its place, which keeps what its readers were granted.
    op.execute(f"CREATE OR REPLACE VIEW monitor.ingest_lag AS {INGEST_LAG}")


def downgrade() -> None:
    before = context.script.get_revision("0004").module.INGEST_LAG
    op.execute(f"CREATE OR REPLACE VIEW monitor.ingest_lag AS {before}")
