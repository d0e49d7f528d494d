"""What a member knows of its partitions, and what it does not know yet."""

from __future__ import annotations

from datetime import UTC, datetime

from monitor.ingest.kafka.holdings import Holdings
from monitor.settings import IngestSettings
from monitor.values.reading import Partition, ReadingPoint

A, B = ("prompts", 0), ("prompts", 1)
NOW = datetime(2026, 7, 1, tzinfo=UTC)


def holding(points: dict[Partition, int]) -> Holdings:
    holdings = Holdings(IngestSettings())
    holdings.assign(points)
    _, state = holdings.unplaced()
    starts = {one: ReadingPoint(next_offset=at) for one, at in points.items()}
    assert holdings.begin(starts, state=state, seek=lambda *_: None)
    return holdings


def test_a_partition_whose_end_nobody_told_has_no_lag() -> None:
    holdings = holding({A: 7, B: 7})
    assert holdings.lag() == {}
    holdings.ends_told({A: 50}, NOW)
    holdings.add(B, (), position=7, log_end=9, now=1.0)
    assert holdings.lag() == {A: 43, B: 2}


def test_what_was_known_of_a_partition_that_is_read_anew_is_forgotten() -> None:
    holdings = holding({A: 7})
    holdings.ends_told({A: 50}, NOW)
    holdings.rewind()
    assert holdings.lag() == {}
