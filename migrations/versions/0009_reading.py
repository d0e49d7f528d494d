"""Where a group began to read: topics with the broker's id of them, and where each partition began.

Workers say in ``remarks`` what is wrong with what they read and tell.

Revision ID: 0009
Revises: 0008
"""

from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.execute("""
        CREATE TABLE monitor_data.topics (
            group_id TEXT NOT NULL,
            topic TEXT NOT NULL,
            topic_id UUID,
            begun_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
            CONSTRAINT topics_pkey PRIMARY KEY (group_id, topic)
        )
    """)
    op.execute("""
        CREATE TABLE monitor_data.read_spans (
            group_id TEXT NOT NULL,
            topic TEXT NOT NULL,
            partition INTEGER NOT NULL,
            first_offset BIGINT NOT NULL,
            end_offset BIGINT NOT NULL,
            CONSTRAINT read_spans_pkey PRIMARY KEY (group_id, topic, partition, first_offset)
        )
    """)
    # Where reading began is not known of what was read before: all below counts as read.
    op.execute("ALTER TABLE monitor_data.offsets ADD COLUMN begins_at BIGINT DEFAULT 0 NOT NULL")
    op.execute("ALTER TABLE monitor_data.workers ADD COLUMN remarks TEXT[] DEFAULT '{}' NOT NULL")


def downgrade() -> None:
    op.execute("ALTER TABLE monitor_data.workers DROP COLUMN remarks")
    op.execute("ALTER TABLE monitor_data.offsets DROP COLUMN begins_at")
    op.execute("DROP TABLE monitor_data.read_spans")
    op.execute("DROP TABLE monitor_data.topics")
