"""How far partitions are read: what the broker says of their end, and what the store knows."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from monitor.values.checks import require, require_aware


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEnd:
    """What the broker said of the end of one partition."""

    topic: str
    partition: int
    begins_at: int
    """Where reading goes on while no offset of the partition is stored."""
    log_end: int
    """The offset that the next record will get."""
    asked_at: datetime

    def __post_init__(self) -> None:
        require_aware(self.asked_at, "asked_at")
        require(self.begins_at >= 0, "begins_at is an offset")


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far one partition is read, as the store knows it."""

    topic: str
    partition: int
    lag: int
    """Records behind the end of the log, as of ``asked_at``."""
    asked_at: datetime
    """When the broker last told the end of the log."""
    watermark: datetime | None
    """Everything up to here is read and stored; None while that is not known."""
    known_since: datetime | None
    """When nothing was left unread for the last time, else when a worker first asked about the
    partition; None where none ever did: then nothing is known of its delay."""

    @property
    def source(self) -> str:
        return f"{self.topic}/{self.partition}"

    def delay(self, now: datetime) -> float | None:
        """Seconds by which what is read lies behind ``now``; at least so many while nothing is read.

        None where it is not known.
        """
        since = self.watermark or self.known_since
        return None if since is None else max(0.0, (now - since).total_seconds())
