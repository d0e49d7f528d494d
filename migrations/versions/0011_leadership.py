"""Who leads: a lease in a table, where it was an advisory lock that anyone who may connect could take.

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


def downgrade() -> None:
    op.execute("DROP TABLE monitor_data.leadership")
