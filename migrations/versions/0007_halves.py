"""Where the parts of exchanges stand that wait for the rest: places in the log, no content.

Revision ID: 0007
Revises: 0006
"""

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.execute("""
        CREATE TABLE monitor_data.halves (
            group_id TEXT NOT NULL,
            topic TEXT NOT NULL,
            partition INTEGER NOT NULL,
            record_offset BIGINT NOT NULL,
            record_index INTEGER NOT NULL,
            CONSTRAINT halves_pkey
                PRIMARY KEY (group_id, topic, partition, record_offset, record_index)
        )
    """)


def downgrade() -> None:
    op.execute("DROP TABLE monitor_data.halves")
