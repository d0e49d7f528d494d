"""Which streams have changed, as the last evaluation of each pack found them."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, text

from monitor.store.border import clean
from monitor.values.evidence import Discoveries, StreamEvidence

_STREAM: Final = ("family", "segment", "feature", "served", "alternative")


def save_discoveries(c: Connection, pack_id: str, made: Discoveries, now: datetime) -> None:
    """Let the pack's list be what was found at ``now``; ``found_at`` of what stands there already stays."""
    rows = [
        {
            "pack_id": pack_id,
            **_key(stream),
            "since": stream.since,
            "now": now,
            "log_e": stream.log_e,
            "log_e_line": made.line,
            "streams": len(made.streams),
            "false_discovery": made.rate,
        }
        for stream in sorted(made.found, key=lambda one: tuple(_key(one).values()))
    ]
    if rows:
        c.execute(
            text(f"""
                INSERT INTO monitor_data.discoveries AS kept
                    (pack_id, {", ".join(_STREAM)}, since, found_at, evaluated_at, log_e, log_e_line,
                     streams, false_discovery)
                VALUES
                    (:pack_id, {", ".join(f":{name}" for name in _STREAM)}, :since, :now, :now, :log_e,
                     :log_e_line, :streams, :false_discovery)
                ON CONFLICT (pack_id, {", ".join(_STREAM)}) DO UPDATE SET
                    found_at = CASE WHEN kept.since = excluded.since
                        THEN kept.found_at ELSE excluded.found_at END,
                    since = excluded.since, evaluated_at = excluded.evaluated_at,
                    log_e = excluded.log_e, log_e_line = excluded.log_e_line,
                    streams = excluded.streams, false_discovery = excluded.false_discovery
            """),
            rows,
        )
    c.execute(
        text("""
            DELETE FROM monitor_data.discoveries
            WHERE pack_id = :pack_id AND evaluated_at < :now
        """),
        {"pack_id": pack_id, "now": now},
    )


def _key(stream: StreamEvidence) -> dict[str, Any]:
    return {name: clean(getattr(stream, name)) for name in _STREAM}


def read_discoveries(c: Connection, pack_id: str, since: datetime) -> list[dict[str, Any]]:
    """What the pack's last evaluation found, if it was since then; the strongest first.

    Keys: family, segment, feature, served, alternative (null where the family has none), since, found_at,
    evaluated_at, log_e, log_e_line, streams, false_discovery.
    """
    rows = c.execute(
        text("""
            SELECT family, segment, nullif(feature, '') AS feature,
                CASE WHEN family IN ('identity', 'alternative') THEN served END AS served,
                nullif(alternative, '') AS alternative, since, found_at, evaluated_at, log_e, log_e_line,
                streams, false_discovery
            FROM monitor_data.discoveries
            WHERE pack_id = :pack_id AND evaluated_at >= :since
            ORDER BY log_e DESC, family, segment, feature, served, alternative
        """),
        {"pack_id": pack_id, "since": since},
    )
    return [dict(row) for row in rows.mappings()]
