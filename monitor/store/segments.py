"""Which segments of traffic a consumer group tells apart: a bounded number, the same for all its workers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import timedelta
from typing import Final

from sqlalchemy import Connection, text

from monitor.store.border import clean

LOCK_SECONDS: Final = 5


def known_segments(c: Connection, group_id: str) -> frozenset[str]:
    """The segments that the group tells apart, as they are stored (see `border.clean`)."""
    return frozenset(
        c.scalars(
            text("SELECT segment FROM monitor_data.segments WHERE group_id = :group_id"),
            {"group_id": clean(group_id)},
        )
    )


def admit_segments(
    c: Connection, group_id: str, wanted: Sequence[str], most: int, forgotten_after: timedelta
) -> frozenset[str]:
    """Tell the ``wanted`` segments apart from now on, the first ones first, while there are fewer than
    ``most``; all that are told apart then.

    Where there is no room, those give theirs up that no worker saw for ``forgotten_after``.
    """
    group = clean(group_id)
    c.execute(text(f"SET LOCAL lock_timeout = '{LOCK_SECONDS}s'"))
    # Workers that count at the same time must not fill the last place twice.
    c.execute(text("LOCK TABLE monitor_data.segments IN SHARE ROW EXCLUSIVE MODE"))
    known = known_segments(c, group)
    new = [one for one in dict.fromkeys(map(clean, wanted)) if one not in known]
    if new and len(known) + len(new) > most:
        c.execute(
            text("""
                DELETE FROM monitor_data.segments
                WHERE group_id = :group_id AND last_seen_at < clock_timestamp() - :forgotten_after
                    AND segment <> ALL(CAST(:wanted AS text[]))
            """),
            {
                "group_id": group,
                "forgotten_after": forgotten_after,
                "wanted": [clean(one) for one in wanted],
            },
        )
        known = known_segments(c, group)
    admitted = new[: max(0, most - len(known))]
    if admitted:
        c.execute(
            text("""
                INSERT INTO monitor_data.segments (group_id, segment)
                SELECT :group_id, unnest(CAST(:segments AS text[]))
            """),
            {"group_id": group, "segments": admitted},
        )
    return known | frozenset(admitted)


def saw_segments(c: Connection, group_id: str, seen: Collection[str]) -> None:
    """Keep the places of segments that were seen just now."""
    c.execute(
        text("""
            UPDATE monitor_data.segments SET last_seen_at = clock_timestamp()
            WHERE group_id = :group_id AND segment = ANY(CAST(:segments AS text[]))
        """),
        {"group_id": clean(group_id), "segments": sorted(map(clean, seen))},
    )
