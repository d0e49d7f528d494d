"""A worker that is behind: windows and detectors wait for what it has not read, and somebody is told."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from kafka import KafkaProducer
from sqlalchemy import Engine, text

from monitor import operate, progress
from monitor.drift.histogram import floor_time
from monitor.ingest.kafka import ends
from monitor.metrics import METRICS
from monitor.settings import DriftSettings, Settings
from monitor.store.baselines import approve_baseline
from monitor.store.database import transaction
from monitor.store.drift import load_detectors
from monitor.watcher import Watcher
from tests.worker.working import HeldUp, at_work, lag_shown, settings_for, stored, wait_for, working

pytestmark = pytest.mark.slow

MINUTE = timedelta(minutes=1)
SETTLE = timedelta(seconds=30)
A_MINUTE = 20
"""Records a minute, both partitions together."""


@pytest.fixture(autouse=True)
def _told_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ends, "ASK_SECONDS", 0.3)
    monkeypatch.setattr(progress, "TELL_SECONDS", 0.2)


def settings_of(bootstrap: str, topic: str, **drift: Any) -> Settings:
    rules = [{"name": "delay", "limit": 600, "for": 0}]
    given = {"windows": {"15m": 15 * MINUTE, "1h": 60 * MINUTE}, "min_baseline_n": 500}
    return settings_for(bootstrap, topic).model_copy(
        update={"drift": DriftSettings(**{**given, "silence_rules": rules, **drift})}
    )


def produce(bootstrap: str, topic: str, start: datetime, end: datetime, *, partitions: int) -> int:
    """`A_MINUTE` records for every minute of [start, end), in turn for every partition."""
    producer = KafkaProducer(bootstrap_servers=bootstrap, acks="all")
    sent, at = 0, start
    while at < end:
        record = {
            "prompt": f"text {at.isoformat()}",
            "response": "yes",
            "timestamp": at.isoformat(),
        }
        producer.send(topic, json.dumps(record).encode(), partition=sent % partitions)
        sent, at = sent + 1, at + MINUTE / A_MINUTE
    producer.flush()
    producer.close()
    return sent


class Scene:
    """Two partitions with an approved baseline of the hour before `begun`, a watcher at `begun`."""

    def __init__(self, database: Engine, bootstrap: str, settings: Settings) -> None:
        self.database = database
        self.bootstrap = bootstrap
        self.settings = settings
        (self.topic,) = settings.kafka.topics
        self.begun = floor_time(datetime.now(UTC), MINUTE) - 45 * MINUTE
        self.watcher = Watcher(database, settings)

    def capture(self) -> None:
        """Once the hour before `begun` is read: its baseline, and the detectors' start."""
        with transaction(self.database) as c:
            made = operate.capture_baseline(
                c,
                self.settings,
                name="normal",
                start=self.begun - 60 * MINUTE,
                end=self.begun,
                now=self.begun,
            )
            approve_baseline(c, made.baseline_id, "a person", self.begun)
        self.baseline_id = made.baseline_id
        at = self.begun + SETTLE
        first = Watcher(self.database, self.settings, clock=lambda: at).step()
        assert {drift.window_end for drift in first.drifts} == {self.begun}

    def slowest(self) -> datetime:
        with transaction(self.database) as c:
            found: datetime = c.scalar(text("SELECT min(watermark) FROM monitor.ingest_lag"))
        return found

    def minutes_missed(self) -> set[datetime]:
        """Minutes with scores since `begun` that the detectors have passed, against those taken in."""
        with transaction(self.database) as c:
            states = load_detectors(c, self.baseline_id)
            last = {state.last_bucket for state in states.values()}
            steps = {state.steps for state in states.values()}
            with_scores = set(
                c.scalars(
                    text("""
                        SELECT DISTINCT bucket_start FROM monitor_data.buckets
                        WHERE bucket_start >= :begun AND bucket_start <= :last
                    """),
                    {"begun": self.begun, "last": max(last)},
                )
            )
        assert len(last) == len(steps) == 1
        (taken,) = steps
        missed = len(with_scores) - taken
        assert missed >= 0, "a minute was taken in twice"
        return set(sorted(with_scores)[:missed])


@pytest.fixture
def scene(
    database: Engine, kafka_bootstrap: str, make_topic: Callable[..., str]
) -> Callable[..., Scene]:
    def make(partitions: int = 2, **drift: Any) -> Scene:
        topic = make_topic(partitions=partitions)
        return Scene(database, kafka_bootstrap, settings_of(kafka_bootstrap, topic, **drift))

    return make


def read_the_hour_before(made: Scene) -> None:
    """With a worker that is told no more and leaves nothing behind."""
    sent = produce(made.bootstrap, made.topic, made.begun - 60 * MINUTE, made.begun, partitions=2)
    replay = HeldUp(chunks=10_000)
    with working(made.database, made.settings, replay) as worker, at_work(worker, replay):
        wait_for(lambda: sum(stored(made.database).values()) == sent, "the hour is read")
        wait_for(lambda: set(lag_shown(made.database).values()) == {0}, "and said to be")
    made.capture()


def delay_measured(topic: str) -> Iterator[float]:
    for metric in METRICS.delay.collect():
        for sample in metric.samples:
            if sample.labels["topic"] == topic:
                yield sample.value


def test_windows_and_detectors_wait_for_a_worker_that_is_behind(
    scene: Callable[..., Scene],
) -> None:
    made = scene(wait_for_late=timedelta(hours=3))
    read_the_hour_before(made)
    now = floor_time(datetime.now(UTC), MINUTE)
    sent = produce(made.bootstrap, made.topic, made.begun, now, partitions=2)
    replay = HeldUp(chunks=2)
    events = []
    with working(made.database, made.settings, replay) as worker, at_work(worker, replay):
        assert replay.holds.wait(30)
        wait_for(lambda: sum(lag_shown(made.database).values()) == sent - 100, "the lag is told")
        behind = made.watcher.step()
        events += behind.events
        slowest = made.slowest()
        assert datetime.now(UTC) - slowest > 40 * MINUTE
        end = floor_time(slowest - SETTLE, MINUTE)
        assert behind.reach.until == end
        assert {drift.window_end for drift in behind.drifts} == {end}
        assert behind.reach.behind >= 39 * MINUTE
        drifting = [one for one in behind.conditions if one.kind == "drift"]
        assert drifting
        assert all(one.summary.endswith(behind.reach.sentence) for one in drifting)
        assert behind.ingest.health.outcomes["scored"] > 0, "shares are judged where it reads"
        assert max(delay_measured(made.topic)) > 40 * 60
        again = made.watcher.step()
        assert again.drifts == (), "what was evaluated is not evaluated again while it waits"
        events += again.events
        replay.go.set()
        while sum(lag_shown(made.database).values()) > 0:
            events += made.watcher.step().events
        wait_for(lambda: datetime.now(UTC) - made.slowest() < MINUTE, "caught up")
        done = made.watcher.step()
        events += done.events
    assert done.reach.waiting_for is None
    assert {drift.window_end for drift in done.drifts} == {done.reach.until}
    assert done.reach.until >= now - MINUTE
    assert made.minutes_missed() == set()
    assert [event.type for event in events if event.alert.rule == "delay"] == [
        *("silence.detected", "silence.resolved"),
    ]
    detected = next(event for event in events if event.type == "silence.detected")
    assert f"{made.topic}/" in detected.alert.summary
    assert "read up to" in detected.alert.summary
    with transaction(made.database) as c:
        twice = c.execute(
            text("""
                SELECT feature, segment, window_name, window_end FROM monitor.drift_history
                WHERE window_end < :now GROUP BY 1, 2, 3, 4 HAVING count(*) > 1
            """),
            {"now": done.reach.until},
        ).all()
    assert twice == []


def test_no_longer_than_the_setting_says(scene: Callable[..., Scene]) -> None:
    made = scene(wait_for_late=10 * MINUTE)
    read_the_hour_before(made)
    now = floor_time(datetime.now(UTC), MINUTE)
    produce(made.bootstrap, made.topic, made.begun, now, partitions=2)
    replay = HeldUp(chunks=2)
    with working(made.database, made.settings, replay) as worker, at_work(worker, replay):
        assert replay.holds.wait(30)
        wait_for(lambda: sum(lag_shown(made.database).values()) > 700, "the lag is told")
        bounded = made.watcher.step()
    assert bounded.reach.given_up
    assert bounded.reach.until == floor_time(bounded.at - 10 * MINUTE - SETTLE, MINUTE)
    assert "wait_for_late" in bounded.reach.sentence


def test_idle_partitions_hold_nothing_back(scene: Callable[..., Scene]) -> None:
    """A third partition never had a record, and the second one none for an hour."""
    made = scene(partitions=3)
    read_the_hour_before(made)
    replay = HeldUp(chunks=10_000)
    with working(made.database, made.settings, replay) as worker, at_work(worker, replay):
        now = datetime.now(UTC)
        sent = produce(made.bootstrap, made.topic, now - 2 * MINUTE, now, partitions=1)
        assert sent == 2 * A_MINUTE
        wait_for(lambda: sum(stored(made.database).values()) == 60 * A_MINUTE + sent, "read")
        wait_for(lambda: set(lag_shown(made.database).values()) == {0}, "nothing is unread")
        done = made.watcher.step()
    assert done.reach.waiting_for is None
    assert done.reach.until == floor_time(done.at - SETTLE, MINUTE)
    assert not any(condition.active for condition in done.conditions if condition.rule == "delay")


def test_a_dead_worker_holds_windows_back_no_longer_than_the_setting_says(
    scene: Callable[..., Scene],
) -> None:
    made = scene(wait_for_late=15 * MINUTE)
    read_the_hour_before(made)
    died = datetime.now(UTC)

    def step_at(later: timedelta) -> Any:
        return Watcher(made.database, made.settings, clock=lambda: died + later).step()

    soon, late = step_at(12 * MINUTE), step_at(3 * 60 * MINUTE)
    assert soon.reach.until <= floor_time(died - SETTLE, MINUTE) + MINUTE
    assert not soon.reach.given_up
    assert late.reach.until == floor_time(late.at - 15 * MINUTE - SETTLE, MINUTE)
    assert late.reach.given_up
    (told,) = [event for event in soon.events if event.alert.rule == "delay"]
    assert told.type == "silence.detected"
