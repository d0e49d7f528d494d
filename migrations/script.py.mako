"""${message}

Revision ID: ${up_revision}
Revises: ${down_revision | comma,n}

Expand, never break: a column that is added is nullable or has a default, and nothing that the
previous release reads or writes is dropped or renamed before the release after next.
"""

from alembic import op
${imports if imports else ""}
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}


def upgrade() -> None:
    ${upgrades if upgrades else "op.execute(...)"}


def downgrade() -> None:
    ${downgrades if downgrades else "op.execute(...)"}
