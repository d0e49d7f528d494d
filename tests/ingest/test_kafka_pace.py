"""How large chunks become: with the worker's pace, between bounds."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta

import pytest

from monitor.ingest.kafka.holdings import Holdings
from monitor.ingest.kafka.pace import Pace
from monitor.settings import IngestSettings
from monitor.values.prompts import Chunk, RawRecord
from monitor.values.reading import ReadingPoint

NOW = datetime(2026, 7, 1, tzinfo=UTC)
A = ("prompts", 0)


def sizes(pace: Pace, seconds_a_record: float, chunks: int) -> list[int]:
    """Of the chunks that a worker takes which needs that long for a record."""
    now, found = 0.0, []
    for _ in range(chunks):
        found.append(pace.records)
        pace.took(pace.records, now)
        now += found[-1] * seconds_a_record
    return found


def test_chunks_grow_to_what_the_worker_goes_through_while_one_may_wait() -> None:
    grown = sizes(Pace(IngestSettings()), 1 / 1_000, 60)
    assert grown[0] == 256
    assert grown[-1] == pytest.approx(1_000, abs=20)


def test_a_chunk_at_most_doubles_and_never_holds_more_than_chunk_records() -> None:
    grown = sizes(Pace(IngestSettings()), 1e-6, 20)
    assert grown[-1] == 2_048
    assert all(later <= 2 * earlier for earlier, later in itertools.pairwise(grown))


def test_a_slow_copy_never_has_more_in_hand_than_before() -> None:
    assert set(sizes(Pace(IngestSettings()), 1 / 7, 60)) == {256}


def test_the_first_chunks_that_a_worker_takes_at_once_tell_no_pace() -> None:
    pace = Pace(IngestSettings())
    for now in (0.0, 0.01, 0.02):  # parsed, replayed and stored at the same time
        pace.took(256, now)
    for chunk in range(1, 20):
        pace.took(256, chunk * 36.0)
        assert pace.records == 256


def test_chunks_shrink_when_the_worker_becomes_slow_or_records_become_few() -> None:
    pace = Pace(IngestSettings())
    assert sizes(pace, 1e-4, 30)[-1] == 2_048
    assert sizes(pace, 1.0, 10)[-1] == 256


def test_what_an_operator_set_is_the_most() -> None:
    assert set(sizes(Pace(IngestSettings(chunk_records=40)), 1e-6, 30)) == {40}
    grown = sizes(Pace(IngestSettings(chunk_wait=timedelta(milliseconds=500))), 1 / 1_000, 60)
    assert grown[-1] == pytest.approx(500, abs=20)


def test_a_chunk_is_handed_over_when_it_holds_what_the_pace_says() -> None:
    seconds = [0.0]
    holdings = Holdings(IngestSettings(), monotonic=lambda: seconds[0])
    holdings.assign([A])
    _, state = holdings.unplaced()
    assert holdings.begin({A: ReadingPoint(next_offset=0)}, state=state, seek=lambda *_: None)
    end, found = 0, []
    while end < 20_000:
        read, end = end, end + holdings.room()
        records = [record(offset) for offset in range(read, end)]
        holdings.add(A, records, position=end, log_end=20_000, now=seconds[0])
        assert holdings.room() == 0
        holdings.hand_over(seconds[0])
        chunk = holdings.take_chunk(0.0, lambda: False)
        assert chunk is not None
        found.append(chunk)
        seconds[0] += len(chunk.records) / 5_000
    assert [len(chunk.records) for chunk in found[:5]] == [256] * 5
    assert max(len(chunk.records) for chunk in found) == 2_048
    assert contiguous(found)


def record(offset: int) -> RawRecord:
    return RawRecord(topic=A[0], partition=A[1], offset=offset, timestamp=NOW, value=b"{}")


def contiguous(chunks: list[Chunk]) -> bool:
    spans = [span for chunk in chunks for span in chunk.spans]
    return spans[0].start == 0 and all(a.end == b.start for a, b in itertools.pairwise(spans))
