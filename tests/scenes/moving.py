"""Reading points that are moved by hand."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import Engine

from monitor.offsets import move, planned
from monitor.settings import Settings

STORED = "SELECT count(*) FROM monitor_data.scores"


def moved(database: Engine, settings: Settings, to: int | datetime | str, *partitions: int) -> list:
    topics, now = list(settings.kafka.topics), datetime.now(UTC)
    moves, logs = planned(database, settings, topics, set(partitions), to, now)
    move(database, settings, moves, logs, "test", now)
    return moves
