"""Parts of exchanges are put together whatever lies between them, and never half read."""

from __future__ import annotations

import tracemalloc
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.ingest.joining import Joined, Joins
from monitor.settings import IngestSettings, JoinSettings
from monitor.values.progress import LogEnd
from monitor.values.prompts import (
    Chunk,
    DeadLetter,
    DeadReason,
    OffsetSpan,
    Prompt,
    RawRecord,
    Recalled,
    RecordKey,
    Skip,
    SkipReason,
)
from tests.ingest.conftest import APPENDED
from tests.ingest.halves import ANSWER, KSERVE, QUESTION, kserve, logs, message, raw

SETTINGS = IngestSettings()
NOW = APPENDED + timedelta(hours=1)
MINUTE = timedelta(minutes=1)


def chunk(*records: RawRecord, assignment: int = 1, recalled: tuple[Recalled, ...] = ()) -> Chunk:
    places = {(record.topic, record.partition) for record in records}
    offsets = [record.offset for record in records]
    return Chunk(
        records=records,
        spans=tuple(
            OffsetSpan(
                topic=topic,
                partition=partition,
                start=min(offsets),
                end=max(offsets) + 1,
                assignment=assignment,
            )
            for topic, partition in sorted(places)
        ),
        recalled=recalled,
    )


def read(joins: Joins, *records: RawRecord, **more: Any) -> Joined:
    return joins.read(chunk(*records), now=NOW, **more)


def key(offset: int, partition: int = 0, index: int = 0) -> RecordKey:
    return RecordKey(topic="t", partition=partition, offset=offset, index=index)


def reasons(joined: Joined) -> list[tuple[int, SkipReason]]:
    assert all(isinstance(one, Skip) for one in joined.outcomes), joined.outcomes
    return [(one.key.offset, one.reason) for one in joined.outcomes]


def the_exchange(joined: Joined) -> Prompt:
    (prompt,) = joined.outcomes
    assert isinstance(prompt, Prompt), prompt
    assert prompt.messages[-1].content == QUESTION
    assert prompt.response == ANSWER
    return prompt


@pytest.mark.parametrize("sides", [("request", "response"), ("response", "request")])
@pytest.mark.parametrize("partition", [0, 1])
def test_request_and_response_meet_in_any_order_and_partition(
    sides: tuple[str, str], partition: int
) -> None:
    joins = Joins(SETTINGS)
    first = read(joins, raw(kserve(sides[0])))
    assert (first.outcomes, first.waiting, first.settled) == ([], (key(0),), ())
    second = read(joins, raw(kserve(sides[1]), 1, partition=partition))
    prompt = the_exchange(second)
    assert (prompt.key, prompt.prompt_id, prompt.model) == (key(1, partition), "call-1", "m")
    assert (second.waiting, second.settled) == ((), (key(0),))
    assert joins.waits == 0


def test_in_one_chunk_nothing_waits() -> None:
    joined = read(Joins(SETTINGS), raw(kserve("request")), raw(kserve("response"), 1))
    the_exchange(joined)
    assert (joined.waiting, joined.settled) == ((), ())


def test_the_same_id_of_another_model_is_another_exchange() -> None:
    other = kserve("response", inferenceservicename="ham")
    assert read(Joins(SETTINGS), raw(kserve("request")), raw(other, 1)).outcomes == []


def test_binary_events_and_a_streamed_response() -> None:
    def headers(side: str) -> tuple[tuple[str, bytes], ...]:
        named = {"ce_specversion": "1.0", "ce_id": "call-1", "ce_type": KSERVE + side}
        return tuple((name, value.encode()) for name, value in named.items())

    stream = (
        b'data: {"model": "m", "choices": [{"index": 0, "delta": {"content": "Ten minutes in"}}]}\n\n'
        b'data: {"choices": [{"index": 0, "delta": {"content": " boiling water."}}]}\n\n'
        b"data: [DONE]\n\n"
    )
    request = raw(kserve("request")["data"], headers=headers("request"))
    the_exchange(read(Joins(SETTINGS), request, raw(stream, 1, headers=headers("response"))))


def test_messages_and_choice_of_a_span_are_one_exchange() -> None:
    joins = Joins(SETTINGS)
    first = read(
        joins,
        raw(logs(message("system", "Be brief."))),
        raw(logs(message("user"), message("user", "Other?", span=2)), 1),
    )
    assert first.waiting == (key(0), key(1), key(1, index=1))
    second = read(joins, raw(logs(message("choice", ANSWER)), 2))
    prompt = the_exchange(second)
    assert [m.role for m in prompt.messages] == ["system", "user"]
    assert prompt.prompt_id == f"{1:032x}/{1:016x}"
    assert prompt.sampling is not None
    assert prompt.sampling.finish_reason == "stop"
    assert second.settled == (key(0), key(1))
    assert joins.waits == 1


def test_content_as_json_in_an_attribute() -> None:
    def event(name: str, content: str) -> dict[str, Any]:
        one = message("user") | {"eventName": name}
        del one["body"]
        value = {"key": "gen_ai.event.content", "value": {"stringValue": content}}
        return one | {"attributes": [value]}

    asked = event("gen_ai.user.message", f'{{"role": "user", "content": "{QUESTION}"}}')
    said = event("gen_ai.choice", f'{{"index": 0, "message": {{"content": "{ANSWER}"}}}}')
    the_exchange(read(Joins(SETTINGS), raw(logs(asked, said))))


def test_half_a_chat_never_passes_for_a_whole_one() -> None:
    """Messages are not numbered: spread over partitions they could be read without their first half."""
    joins = Joins(SETTINGS)
    apart = read(
        joins,
        raw(logs(message("system", "Be brief."))),
        raw(logs(message("user")), 1, partition=1),
        raw(logs(message("choice", ANSWER)), 2),
    )
    assert reasons(apart) == [(2, SkipReason.UNPAIRED)]
    assert joins.waits == 1


def test_a_choice_before_its_messages_is_given_up() -> None:
    joined = read(Joins(SETTINGS), raw(logs(message("choice", ANSWER), message("user"))))
    assert reasons(joined) == [(0, SkipReason.UNPAIRED)]


def test_messages_without_a_kafka_key_are_refused_with_the_setting_that_helps() -> None:
    joined = read(Joins(SETTINGS), raw(logs(message("user")), key=None))
    (letter,) = joined.outcomes
    assert isinstance(letter, DeadLetter)
    assert letter.reason is DeadReason.DIALECT_NOT_READ
    assert "partition_logs_by_trace_id" in letter.detail
    assert "ingest.join.unkeyed" in letter.detail
    unkeyed = IngestSettings(join=JoinSettings(unkeyed=True))
    records = [
        raw(logs(one), at, key=None)
        for at, one in enumerate([message("user"), message("choice", ANSWER)])
    ]
    the_exchange(read(Joins(unkeyed), *records))


def test_a_part_is_given_up_when_its_partition_is_a_window_further() -> None:
    joins = Joins(SETTINGS)
    read(joins, raw(kserve("request")), raw(kserve("request", 2), 1, after=30))
    assert read(joins, raw({"prompt": "x"}, 2, after=119)).settled == ()
    joined = read(joins, raw(b"{", 3, after=121))
    assert (key(0),) == joined.settled
    assert Skip(key=key(0), recorded_at=APPENDED, reason=SkipReason.UNPAIRED) in joined.outcomes
    assert joins.waits == 1


def test_a_backlog_is_joined_in_its_own_time() -> None:
    """However slowly it is read: what counts is when the records were appended."""
    joins = Joins(SETTINGS)
    read(joins, raw(kserve("request")))
    late = joins.read(chunk(raw(kserve("response"), 1, after=60)), now=NOW + timedelta(hours=9))
    the_exchange(late)


def test_an_idle_partition_ends_the_wait_once_the_broker_says_that_nothing_came() -> None:
    joins = Joins(SETTINGS)
    read(joins, raw(kserve("request")))

    def end(log_end: int, after: timedelta) -> LogEnd:
        return LogEnd(topic="t", partition=0, begins_at=0, log_end=log_end, asked_at=NOW + after)

    nothing = Chunk(records=(), spans=())
    later = NOW + timedelta(hours=9)
    for ends in ([], [end(2, 5 * MINUTE)], [end(1, MINUTE)]):  # away; more to read; too early
        assert joins.read(nothing, now=later, ends=ends).outcomes == []
    joined = joins.read(nothing, now=later, ends=[end(1, 3 * MINUTE)])
    assert reasons(joined) == [(0, SkipReason.UNPAIRED)]
    assert joined.settled == (key(0),)


def test_a_record_with_a_time_far_ahead_ends_no_wait() -> None:
    joins = Joins(SETTINGS)
    read(joins, raw(kserve("request"), at=NOW))
    ahead = read(joins, raw(b"{", 1, at=NOW + timedelta(days=300)))
    assert len(ahead.outcomes) == 1


def test_what_comes_twice_is_joined_once() -> None:
    joins = Joins(SETTINGS)
    twice = read(joins, raw(kserve("request")), raw(kserve("request"), 1))
    assert reasons(twice) == [(1, SkipReason.UNPAIRED)]
    the_exchange(read(joins, raw(kserve("response"), 2)))
    assert read(joins, raw(kserve("response"), 3)).outcomes == []


def test_a_restart_reads_the_places_again_and_nothing_else() -> None:
    request = raw([{"prompt": "x"}, kserve("request"), kserve("request", 2)])
    again = Recalled(topic="t", partition=0, offset=0, indexes=frozenset({1}), record=request)
    joined = Joins(SETTINGS).read(
        chunk(raw(kserve("response"), 9), raw(kserve("response", 2), 10), recalled=(again,)),
        now=NOW,
    )
    prompt = the_exchange(joined)
    assert (prompt.key, joined.settled, joined.waiting) == (key(9), (key(0, index=1),), (key(10),))


def test_a_place_whose_record_is_gone_is_given_up() -> None:
    gone = Recalled(topic="t", partition=0, offset=4, indexes=frozenset({0, 2}), record=None)
    joined = Joins(SETTINGS).read(chunk(recalled=(gone,)), now=NOW)
    assert reasons(joined) == [(4, SkipReason.UNPAIRED)] * 2
    assert joined.settled == (key(4), key(4, index=2))


def test_parts_of_a_lost_partition_are_left_to_whoever_reads_it_now() -> None:
    joins = Joins(SETTINGS)
    read(joins, raw(kserve("request")))
    response = raw(kserve("response"), 1, partition=1)
    joined = joins.read(chunk(response), now=NOW, assigned=[("t", 1)])
    assert (joined.outcomes, joined.settled, joined.waiting) == ([], (), (key(1, 1),))


def test_a_partition_that_is_read_anew_forgets_what_it_had() -> None:
    joins = Joins(SETTINGS)
    read(joins, raw(kserve("request")))
    joined = joins.read(chunk(raw(kserve("request")), assignment=2), now=NOW)
    assert (joined.outcomes, joined.waiting, joins.waits) == ([], (key(0),), 1)


@pytest.mark.slow
def test_a_hundred_thousand_halves_that_never_meet_take_bounded_memory() -> None:
    limits = JoinSettings(halves=2_000, bytes=1024 * 1024)
    joins = Joins(IngestSettings(join=limits))
    given_up = waiting = settled = held = 0
    for first in range(0, 100_000, 1_000):
        if first == 95_000:
            tracemalloc.start()
        numbers = range(first, first + 1_000)
        joined = read(joins, *(raw(kserve("request", n), n) for n in numbers))
        given_up += len(joined.outcomes)
        waiting += len(joined.waiting)
        settled += len(joined.settled)
        assert {reason for _, reason in reasons(joined)} <= {SkipReason.JOIN_FULL}
        assert len(joins._places) == len(joins._exchanges) == joins.waits
        held = max(held, joins.waits)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert given_up + joins.waits == 100_000
    assert waiting - settled == joins.waits
    assert held < 1_000  # bytes are the tighter bound here
    assert peak < 24 * 1024 * 1024


def test_a_part_larger_than_all_that_may_wait_is_given_up_at_once() -> None:
    joins = Joins(IngestSettings(join=JoinSettings(bytes=1024)))
    joined = read(joins, raw(kserve("request")))
    assert reasons(joined) == [(0, SkipReason.JOIN_FULL)]
    assert (joined.waiting, joined.settled, joins.waits) == ((), (), 0)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["request", "response", "user", "choice"]),
            st.integers(1, 3),
            st.integers(0, 200),
            st.integers(0, 1),
        ),
        max_size=25,
    ),
    st.sampled_from([1, 3, 100]),
)
def test_every_part_has_one_outcome_and_the_store_is_told_of_each_place_once(
    sent: list[tuple[str, int, int, int]], most: int
) -> None:
    """Whatever comes: places that begin to wait and places that are settled match, to the last."""
    joins = Joins(IngestSettings(join=JoinSettings(halves=most)))
    places: set[RecordKey] = set()
    ended = 0
    for offset, (what, number, after, partition) in enumerate(sent):
        document = (
            kserve(what, number)
            if what in ("request", "response")
            else logs(message(what, span=number))
        )
        joined = read(joins, raw(document, offset, after=after, partition=partition))
        assert places >= set(joined.settled)
        places -= set(joined.settled)
        assert not places & set(joined.waiting)
        places |= set(joined.waiting)
        assert len(places) == joins.waits <= most
        ended += len(joined.outcomes)
        assert not any(isinstance(one, DeadLetter) for one in joined.outcomes)
    ended += len(joins.end())
    assert ended <= len(sent)
    assert joins.waits == 0
