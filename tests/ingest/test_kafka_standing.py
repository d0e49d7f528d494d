"""Partitions that stand still are named, counted, and cured once by a new consumer."""

from __future__ import annotations

import gc
import threading
from datetime import UTC, datetime

import pytest
from kafka import KafkaConsumer, TopicPartition

from monitor.ingest.kafka import KafkaSource, ends, standing
from monitor.ingest.kafka.ends import Ends
from monitor.ingest.kafka.standing import CURE_SECONDS, STAND_SECONDS, Standing
from monitor.metrics import METRICS
from tests.scenes.kafka_source import (
    Offsets,
    drain,
    holding,
    ingest,
    produce,
    settings,
    wait_for,
)

A, B = ("prompts", 0), ("prompts", 1)
MINUTE = STAND_SECONDS


def told(
    positions: dict[tuple[str, int], int], log: dict[tuple[str, int], int], **readable: int
) -> Ends:
    names = {"a": A, "b": B}
    stable = {**log, **{names[name]: end for name, end in readable.items()}}
    return Ends(
        log=log, readable=stable, positions=positions, asked_at=datetime(2026, 1, 1, tzinfo=UTC)
    )


def test_what_moves_or_has_nothing_to_read_does_not_stand_still() -> None:
    watch = Standing()
    for step in range(10):
        found = watch.look(told({A: 10 * step, B: 7}, {A: 1_000, B: 7}), step * MINUTE)
        assert (found, watch.said()) == (frozenset(), ())


def test_a_partition_that_stands_for_a_minute_below_what_may_be_read_is_found_once() -> None:
    watch = Standing()
    found = [watch.look(told({A: 5}, {A: 9 + at}), float(at)) for at in range(0, 121, 15)]
    assert [set(one) for one in found] == [
        set(),
        set(),
        set(),
        set(),
        {A},
        set(),
        set(),
        set(),
        set(),
    ]
    (said,) = watch.said()
    assert "prompts/0 is not read for a minute" in said
    watch.look(told({A: 130}, {A: 130}), 135.0)
    assert watch.said() == ()


def test_a_minute_counts_from_when_there_was_something_to_read() -> None:
    watch = Standing()
    watch.look(told({A: 5}, {A: 5}), 0.0)
    assert not watch.look(told({A: 5}, {A: 9}), 2 * MINUTE)
    assert watch.look(told({A: 5}, {A: 9}), 3 * MINUTE) == {A}


def test_time_in_which_reading_was_held_up_does_not_count() -> None:
    watch = Standing()
    watch.look(told({A: 5}, {A: 9}), 0.0)
    watch.held_up()
    assert not watch.look(told({A: 5}, {A: 9}), MINUTE)
    assert watch.look(told({A: 5}, {A: 9}), 2 * MINUTE) == {A}


def test_behind_an_open_transaction_is_another_thing() -> None:
    watch = Standing()
    for at in range(0, 121, 15):
        assert not watch.look(told({A: 5, B: 2}, {A: 9 + at, B: 2}, a=5), float(at))
    assert watch.behind_transactions == {A: 124}
    (said,) = watch.said()
    assert "prompts/0 is read up to a transaction" in said
    assert "124 records wait" in said
    # It ends, and then nothing is read: the minute begins anew.
    assert not watch.look(told({A: 5}, {A: 200}), 135.0)
    assert not watch.look(told({A: 5}, {A: 200}), 135.0 + MINUTE / 2)
    assert watch.look(told({A: 5}, {A: 200}), 135.0 + MINUTE) == {A}


def test_a_cure_is_tried_once_while_a_partition_stands_and_seldom_altogether() -> None:
    watch = Standing()
    watch.look(told({A: 5}, {A: 9}), 0.0)
    assert watch.cure(0.0) == frozenset()
    watch.look(told({A: 5}, {A: 9}), MINUTE)
    assert watch.cure(MINUTE) == {A}
    watch.restart()
    late = MINUTE + CURE_SECONDS
    watch.look(told({A: 5, B: 1}, {A: 9, B: 3}), late)
    watch.look(told({A: 5, B: 1}, {A: 9, B: 3}), late + MINUTE)
    assert watch.stalled == {A, B}
    assert watch.cure(late + MINUTE) == {B}, "what was cured in vain is only named"


def test_a_partition_that_the_client_library_forgets_is_read_by_a_new_consumer(
    kafka_bootstrap: str, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in kafka-python #3106: the position waits for ever for its leader epoch to be validated."""
    monkeypatch.setattr(standing, "STAND_SECONDS", 1.0)
    monkeypatch.setattr(ends, "ASK_SECONDS", 0.3)
    produce(kafka_bootstrap, topic, range(10))
    before = METRICS.partitions_stalled.labels(topic=topic)._value.get()
    running = set(threading.enumerate())
    offsets = Offsets()
    with KafkaSource(settings(kafka_bootstrap, topic), ingest(), offsets) as source:
        for chunk in drain(source, holding(10)):
            offsets.store(chunk)
        forget(topic)
        produce(kafka_bootstrap, topic, range(10, 20))
        for chunk in drain(source, holding(10)):
            offsets.store(chunk)
        wait_for(lambda: source.remarks() == (), "nothing stands still any more")
    assert offsets.values[topic, 0] == list(range(20))
    assert METRICS.partitions_stalled.labels(topic=topic)._value.get() - before == 1
    left = set(threading.enumerate()) - running
    assert not [one for one in left if one.name.startswith("kafka-io")]


def forget(topic: str) -> None:
    (consumer,) = (
        one
        for one in gc.get_objects()
        if type(one) is KafkaConsumer
        and not getattr(one, "_closed", True)
        and one.subscription() == {topic}
    )
    state = consumer._subscription.assignment[TopicPartition(topic, 0)]
    state._awaiting_validation = True
    state.next_allowed_retry_time = float("inf")
