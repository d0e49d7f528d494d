"""What must outlive a process: who leads, and which segments are told apart.

Leading was an advisory lock, which anyone who may connect could take; the segments were each process's own, so
that every restart let as many more in.

Revision ID: 0011
Revises: 0010
"""

from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    op.execute("""
        CREATE TABLE monitor_data.leadership (
            name TEXT NOT NULL,
            token BIGINT NOT NULL,
            holder TEXT NOT NULL,
            taken_at TIMESTAMPTZ NOT NULL,
            expires_at TIMESTAMPTZ NOT NULL,
            worked_at TIMESTAMPTZ,
            CONSTRAINT leadership_pkey PRIMARY KEY (name)
        )
    """)
    op.execute("""
        CREATE TABLE monitor_data.segments (
            group_id TEXT NOT NULL,
            segment TEXT NOT NULL,
            first_seen_at TIMESTAMPTZ NOT NULL DEFAULT now(),
            last_seen_at TIMESTAMPTZ NOT NULL DEFAULT now(),
            CONSTRAINT segments_pkey PRIMARY KEY (group_id, segment)
        )
    """)


def downgrade() -> None:
    op.execute("DROP TABLE monitor_data.segments")
    op.execute("DROP TABLE monitor_data.leadership")
