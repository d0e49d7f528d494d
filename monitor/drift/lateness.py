"""Up to when windows and detectors can see: they wait for the partition that is read least far. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from monitor.drift.histogram import floor_time
from monitor.settings import DriftSettings
from monitor.values.progress import Progress

NEVER: Final = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """Where the windows of an evaluation end, and why they end there."""

    until: datetime
    by_the_clock: datetime
    """Where they would end if nothing were late."""
    waiting_for: Progress | None = None
    """The partition that is read least far, where it holds the windows back."""
    given_up: bool = False
    """It lies further behind than ``drift.wait_for_late``: its late minutes are not waited for."""
    longest: timedelta = timedelta(0)

    @property
    def behind(self) -> timedelta:
        return self.by_the_clock - self.until

    @property
    def sentence(self) -> str:
        """How far the evaluation is behind and why; empty when it is not."""
        slowest = self.waiting_for
        if slowest is None:
            return ""
        read = (
            f"is read up to {slowest.watermark:%H:%M} UTC" if slowest.watermark else "is not read"
        )
        told = (
            f"evaluation is {_minutes(self.behind)} behind: {slowest.source} {read}, "
            f"{slowest.lag} records behind its end"
        )
        if not self.given_up:
            return told
        return (
            f"{told}; it is waited for no longer (drift.wait_for_late is {_minutes(self.longest)})"
        )


def reach(progress: Iterable[Progress], settings: DriftSettings, now: datetime) -> Reach:
    """Where windows end at ``now``: at the last bucket that closed ``settle`` ago and is read whole.

    Read whole means by every partition of whose progress something is known. A partition that is
    behind by no more than ``settle`` is not late. Nobody is waited for longer than
    ``wait_for_late``; a partition whose watermark is not known holds back for so long.
    """
    clock = floor_time(now - settings.settle, settings.bucket)
    known = [one for one in progress if one.known_since is not None]
    slowest = min(known, key=lambda one: one.watermark or NEVER, default=None)
    watermark = now if slowest is None else slowest.watermark or NEVER
    if now - watermark <= settings.settle:
        return Reach(until=clock, by_the_clock=clock)
    bound = now - settings.wait_for_late
    until = floor_time(max(watermark, bound) - settings.settle, settings.bucket)
    if until >= clock and watermark >= bound:
        return Reach(until=clock, by_the_clock=clock)
    return Reach(
        until=min(until, clock),
        by_the_clock=clock,
        waiting_for=slowest,
        given_up=watermark < bound,
        longest=settings.wait_for_late,
    )


def _minutes(length: timedelta) -> str:
    seconds = length.total_seconds()
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"
