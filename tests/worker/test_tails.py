"""Which prompts are tail: one answer from buckets, views, scorer and feature, through the real worker."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from kafka import KafkaProducer
from sqlalchemy import Engine, text

from benchmarks.null_replay import NullReplay, null_pack
from monitor import operate
from monitor.drift.histogram import floor_time
from monitor.ingest.kafka import KafkaSource
from monitor.reading_points import StoredPoints
from monitor.score.pack import Pack, manifest
from monitor.score.scorer import Scorer
from monitor.settings import DriftSettings, IngestSettings, KafkaSettings, Settings
from monitor.store.baselines import approve_baseline
from monitor.store.database import transaction
from monitor.store.packs import pack_features, register_pack
from monitor.values.prompts import Prompt
from monitor.values.scores import Replayed
from monitor.watcher import Watcher
from monitor.worker import Worker

MINUTE = timedelta(minutes=1)
RISES, FALLS = 0, 1


class Dictated(NullReplay):
    """Reads from every prompt the two numbers that its text is made of; ``-`` is an absent region."""

    def _replayed(self, prompt: Prompt) -> Replayed:
        words = prompt.messages[0].content.split()
        readings = [np.nan if word == "-" else float(word) for word in words]
        return Replayed(
            prompt=prompt,
            readings=np.array(readings, dtype=np.float32),
            pooled_tokens=np.full(2, 10, dtype=np.int64),
            prompt_tokens=10,
            response_tokens=10,
        )


def record(number: int, readings: Sequence[float], at: datetime) -> bytes:
    said = " ".join("-" if np.isnan(one) else repr(float(one)) for one in readings)
    messages = [{"role": "user", "content": said}, {"role": "assistant", "content": "yes"}]
    return json.dumps(
        {"id": f"p{number}", "messages": messages, "timestamp": at.isoformat()}
    ).encode()


class Served:
    """A topic, its worker, and how many records were sent."""

    def __init__(self, database: Engine, bootstrap: str, settings: Settings, worker: Worker):
        self.database, self.settings, self._worker = database, settings, worker
        self._bootstrap, self._sent = bootstrap, 0

    def handle(self, rows: Sequence[Sequence[float]], times: Sequence[datetime]) -> None:
        """Send the readings, and step the worker until all are scored."""
        producer = KafkaProducer(bootstrap_servers=self._bootstrap, acks="all")
        for row, at in zip(rows, times, strict=True):
            producer.send(self.settings.kafka.topics[0], record(self._sent, row, at))
            self._sent += 1
        producer.flush()
        producer.close()
        for _ in range(2_000):
            self._worker.step()
            with transaction(self.database) as c:
                if c.scalar(text("SELECT count(*) FROM monitor_data.scores")) == self._sent:
                    return
        raise AssertionError("the worker did not score everything")


@contextmanager
def serving(database: Engine, bootstrap: str, topic: str, pack: Pack) -> Iterator[Served]:
    settings = Settings(
        kafka=KafkaSettings(
            bootstrap_servers=bootstrap, topics=(topic,), group_id=topic, dead_letter_topic=None
        ),
        ingest=IngestSettings(chunk_records=500, chunk_wait=0.2),
        drift=DriftSettings(
            windows={"15m": 15 * MINUTE},
            min_baseline_n=1_000,
            settle=timedelta(seconds=30),
        ),
    )
    with transaction(database) as c:
        register_pack(c, pack.pack_id, pack.name, manifest(pack), pack.features)

    points = StoredPoints(database, group_id=settings.kafka.group_id, worker_id="test")
    with KafkaSource(settings.kafka, settings.ingest, points) as source:
        worker = Worker(
            source=source,
            replay=Dictated(2),
            pack=pack,
            database=database,
            settings=settings,
            hash_key=b"test",
            worker_id="test",
        )
        yield Served(database, bootstrap, settings, worker)


@pytest.mark.parametrize("threshold", [2.0, 2.3])  # 2.3 is another number in single precision
def test_buckets_views_and_scorer_agree_on_the_tail_of_rising_and_falling_features(
    database: Engine, kafka_bootstrap: str, topic: str, threshold: float
) -> None:
    at = np.float32(threshold)
    beyond = np.nextafter(at, np.float32(9))
    scores = [-9.0, -beyond, -at, -1.0, 0.0, 1.0, at, beyond, 3.0, np.nan]
    tail = {RISES: [beyond, 3.0], FALLS: [-9.0, -beyond]}
    pack = null_pack(2, falling=1, tail_threshold=threshold)
    with serving(database, kafka_bootstrap, topic, pack) as served:
        served.handle([(s, s) for s in scores], [datetime.now(UTC)] * len(scores))

    readings = np.array([(s, s) for s in scores], dtype=np.float32)
    found = Scorer(pack).score(readings, np.full(readings.shape, 10))
    with transaction(database) as c:
        known = pack_features(c, pack.pack_id)
        for index, feature in enumerate(pack.features):
            wanted = sorted(float(np.float32(s)) for s in tail[index])
            buckets = c.scalar(
                text(
                    "SELECT sum(tail_count) FROM monitor_data.buckets"
                    " WHERE feature = :index AND segment = 'all'"
                ),
                {"index": index},
            )
            windows = c.scalar(
                text(
                    "SELECT sum(tail_count) FROM monitor.feature_windows"
                    " WHERE feature = :name AND segment = 'all'"
                ),
                {"name": feature.name},
            )
            single = c.scalars(
                text(
                    "SELECT score FROM monitor.feature_scores"
                    " WHERE feature = :name AND in_tail ORDER BY score"
                ),
                {"name": feature.name},
            ).all()
            assert (buckets, windows) == (len(wanted), len(wanted)), feature.expected
            assert [float(np.float32(score)) for score in single] == wanted
            strongest = c.scalar(
                text(
                    "SELECT score FROM monitor.feature_scores WHERE feature = :name"
                    " AND score IS NOT NULL ORDER BY toward DESC LIMIT 1"
                ),
                {"name": feature.name},
            )
            assert strongest == (3.0 if feature.sign > 0 else -9.0)
            for rule in (feature, known[index]):
                by_rule = found[rule.in_tail(found[:, index]), index]
                assert sorted(by_rule.tolist()) == wanted


def test_growth_of_a_falling_features_tail_alone_fires(
    database: Engine, kafka_bootstrap: str, topic: str
) -> None:
    """It was blind: nearly every benign prompt was tail already."""
    random = np.random.default_rng(5)
    start = floor_time(datetime.now(UTC), MINUTE) - 90 * MINUTE

    def minutes(first: int, count: int, *, rare: float) -> tuple[np.ndarray, list[datetime]]:
        n = 60 * count
        rows = random.normal(size=(n, 2))
        rows[:, FALLS] = np.where(random.random(n) < rare, -5.0, rows[:, FALLS])
        return rows, [start + first * MINUTE + i * timedelta(seconds=1) for i in range(n)]

    pack = null_pack(2, falling=1, tail_threshold=3.0)
    with serving(database, kafka_bootstrap, topic, pack) as served:
        served.handle(*minutes(0, 60, rare=0.0))
        now = start + 60 * MINUTE
        with transaction(database) as c:
            made = operate.capture_baseline(
                c, served.settings, name="normal", start=start, end=now, now=now
            )
            approve_baseline(c, made.baseline_id, "a person", now)
        served.handle(*minutes(60, 20, rare=0.04))
    moment = [start + 79 * MINUTE]
    watcher = Watcher(database, served.settings, clock=lambda: moment[0])
    seen = []
    for _ in range(4):
        moment[0] += MINUTE
        seen.append(watcher.step())
    told = [event.alert for one in seen for event in one.events if event.type == "drift.detected"]
    assert [alert.labels["feature"] for alert in told] == [pack.features[FALLS].name]
    assert "tail_ratio" in {crossing["statistic"] for crossing in told[0].details["crossed"]}
    assert "shift" not in {crossing["statistic"] for crossing in told[0].details["crossed"]}
    assert told[0].details["current"]["tail_rate"] == pytest.approx(0.04, abs=0.015)
    assert all(p["score"] < -3.0 for p in told[0].details["strongest_prompts"])
