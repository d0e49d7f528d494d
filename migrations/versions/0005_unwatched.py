"""Alerts that nothing watches any more: ended, and not called resolved.

Revision ID: 0005
Revises: 0004
"""

from alembic import op

revision = "0005"
down_revision = "0004"

# The table keeps 'resolved' in `state`, which the release before reads (monitor/store/alert_rows.py).
STATE = "CASE WHEN unwatched_at IS NULL THEN state ELSE 'unwatched' END"
VIEW = """
    SELECT
        alert_id,
        {state} AS state,
        severity,
        kind,
        rule,
        summary,
        labels ->> 'feature' AS feature,
        labels ->> 'segment' AS segment,
        pending_since,
        fired_at,
        {resolved_at} AS resolved_at,
        coalesce(resolved_at, last_active_at) - fired_at AS firing_for,
        acknowledged_at,
        acknowledged_by,
        last_announced_at,
        sequence AS announcements,
        dedupe_key,
        labels,
        details{more}
    FROM monitor_data.alerts
"""


def upgrade() -> None:
    op.execute("ALTER TABLE monitor_data.alerts ADD COLUMN unwatched_at timestamptz")
    op.execute(
        "CREATE INDEX alerts_shown_open_idx ON monitor_data.alerts (pending_since)"
        f" WHERE {STATE} IN ('pending', 'firing')"
    )
    view = VIEW.format(
        state=STATE,
        resolved_at="CASE WHEN unwatched_at IS NULL THEN resolved_at END",
        more=",\n        unwatched_at,\n        labels ->> 'pack' AS pack_id",
    )
    op.execute(f"CREATE OR REPLACE VIEW monitor.alerts AS {view}")


def downgrade() -> None:
    # A view can be given columns in place, and not lose them.
    op.execute("DROP VIEW monitor.alerts")
    op.execute(
        f"CREATE VIEW monitor.alerts AS {VIEW.format(state='state', resolved_at='resolved_at', more='')}"
    )
    op.execute("DROP INDEX monitor_data.alerts_shown_open_idx")
    op.execute("ALTER TABLE monitor_data.alerts DROP COLUMN unwatched_at")
