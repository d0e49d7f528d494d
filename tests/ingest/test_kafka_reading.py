"""The bookkeeping of spans, without a broker: whatever happens, spans follow one another."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from monitor.ingest.kafka import reading
from monitor.ingest.kafka.reading import Readings, without
from monitor.values.prompts import RawRecord

NOW = datetime(2026, 1, 1, tzinfo=UTC)
A, B = ("prompts", 0), ("prompts", 1)


def records(partition: tuple[str, int], *offsets: int, value: bytes = b"x") -> list[RawRecord]:
    topic, number = partition
    return [
        RawRecord(topic=topic, partition=number, offset=offset, timestamp=NOW, value=value)
        for offset in offsets
    ]


def reading_both() -> Readings:
    readings = Readings()
    readings.begin(A, 5, assignment=1)
    readings.begin(B, 9, assignment=2)
    return readings


def test_a_span_covers_offsets_that_have_no_record() -> None:
    readings = reading_both()
    readings.add(A, records(A, 7, 8), position=12, log_end=20, now=1.0)
    chunk = readings.cut()
    assert chunk
    assert [record.offset for record in chunk.records] == [7, 8]
    (span,) = chunk.spans
    assert (span.start, span.end, span.log_end, span.assignment) == (5, 12, 20, 1)
    assert readings.cut() is None


def test_a_gap_alone_is_a_span_without_records() -> None:
    readings = reading_both()
    readings.add(B, [], position=9, log_end=9, now=1.0)
    assert readings.waited(2.0) == 0.0
    readings.add(B, [], position=11, log_end=11, now=2.0)
    assert readings.waited(2.5) == 0.5
    chunk = readings.cut()
    assert chunk
    assert chunk.records == ()
    assert [(span.partition, span.start, span.end) for span in chunk.spans] == [(1, 9, 11)]


def test_dropped_partitions_leave_nothing_behind() -> None:
    readings = reading_both()
    readings.add(A, records(A, 5), position=6, log_end=None, now=1.0)
    readings.drop([A])
    assert readings.waited(9.0) == 0.0
    readings.add(A, records(A, 6), position=7, log_end=None, now=1.0)
    assert (readings.records, readings.cut(), A in readings) == (0, None, False)


def test_the_end_of_a_log_is_not_known_before_it_is_told() -> None:
    readings = reading_both()
    assert readings.log_ends == {}
    readings.add(A, records(A, 5), position=6, log_end=20, now=1.0)
    readings.add(A, records(A, 6), position=7, log_end=None, now=1.0)
    assert readings.log_ends == {A: 20}, "logs only grow: what was told holds"


def test_a_few_large_records_fill_a_chunk() -> None:
    readings = reading_both()
    large = bytes(reading.CHUNK_BYTES // 2)
    readings.add(A, records(A, 5, value=large), position=6, log_end=None, now=1.0)
    assert not readings.full
    readings.add(B, records(B, 9, value=large), position=10, log_end=None, now=1.0)
    assert readings.full


def test_a_revoked_partition_is_cut_out_of_a_waiting_chunk() -> None:
    readings = reading_both()
    readings.add(A, records(A, 5), position=6, log_end=None, now=1.0)
    readings.add(B, records(B, 9), position=10, log_end=None, now=1.0)
    chunk = readings.cut()
    assert chunk
    kept = without(chunk, [A])
    assert kept
    assert {record.partition for record in kept.records} == {1}
    assert [span.partition for span in kept.spans] == [1]
    assert without(chunk, [A, B]) is None
    assert without(chunk, []) is chunk


steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sampled_from([A, B]), st.integers(0, 5), st.integers(0, 3)),
        st.tuples(st.just("cut"), st.just(A), st.just(0), st.just(0)),
    ),
    max_size=40,
)


@given(steps)
def test_spans_are_contiguous_and_every_record_is_in_its_span(
    script: list[tuple[str, tuple[str, int], int, int]],
) -> None:
    readings, position = reading_both(), {A: 5, B: 9}
    ends, read, given_out = dict(position), [], []
    for step, partition, count, gap in [*script, ("cut", A, 0, 0)]:
        if step == "add":
            offsets = range(position[partition], position[partition] + count)
            position[partition] += count + gap
            read += [(partition, offset) for offset in offsets]
            readings.add(
                partition,
                records(partition, *offsets),
                position=position[partition],
                log_end=None,
                now=0.0,
            )
            continue
        chunk = readings.cut()
        for span in chunk.spans if chunk else ():
            key = (span.topic, span.partition)
            assert span.start == ends[key]
            ends[key] = span.end
        for record in chunk.records if chunk else ():
            key = (record.topic, record.partition)
            assert record.offset < ends[key]
            given_out.append((key, record.offset))
    assert ends == position
    assert sorted(given_out) == sorted(read)


def test_records_below_the_start_are_read_again_only_where_they_are_wanted() -> None:
    readings = Readings()
    places = {2: frozenset({0}), 3: frozenset({1, 4})}
    readings.begin(A, 5, assignment=1, wanted=places)
    readings.add(A, records(A, 1, 2), position=3, log_end=9, now=1.0)
    first = readings.cut()
    assert first
    assert [(one.offset, one.indexes) for one in first.recalled] == [(2, frozenset({0}))]
    assert (first.records, [(span.start, span.end) for span in first.spans]) == ((), [(5, 5)])
    readings.add(A, records(A, 4, 5, 6), position=7, log_end=9, now=2.0)
    second = readings.cut()
    assert second
    assert [(one.offset, one.record) for one in second.recalled] == [(3, None)]  # no longer there
    assert [record.offset for record in second.records] == [5, 6]
    assert [(span.start, span.end) for span in second.spans] == [(5, 7)]
    assert without(second, [A]) is None
