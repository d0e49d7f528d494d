"""Three brokers, a topic, a database, worker processes and the load: what a campaign breaks, and what it counts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psycopg
import yaml
from kafka import KafkaAdminClient
from kafka.errors import KafkaError

from tests.kafka.apache import Cluster, Node
from tests.kafka.campaign.load import Load, Record, on_topic

ROOT: Final = Path(__file__).parents[3]
TOPIC: Final = "prompts"
GROUP: Final = "campaign"
PARTITIONS: Final = 3
RECOVERY_SECONDS: Final = 300.0
"""Longest wait until records are stored again, all brokers are in step, or workers have ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What the store holds, against what the topics held."""

    records: int
    lost: int
    doubled: int
    acknowledged_and_gone: int
    """Of what the brokers acknowledged: it is not on the topic. That is the brokers' loss, not ours."""


def wait_for(condition: Callable[[], bool], what: str, seconds: float = RECOVERY_SECONDS) -> float:
    """Seconds until ``condition`` holds; `AssertionError` when it does not."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.2)
    return time.monotonic() - started


class Workers:
    """Processes of one consumer group that do everything but the model's part."""

    def __init__(self, folder: Path, bootstrap: str, url: str) -> None:
        self._folder = folder
        self.config = folder / "monitor.yaml"
        kafka = {
            "bootstrap_servers": bootstrap,
            "topics": [TOPIC],
            "group_id": GROUP,
            "dead_letter_topic": None,
            "session_timeout_ms": 6_000,
            "heartbeat_interval_ms": 1_000,
            "max_poll_interval_ms": 10_000,
            "client_options": {"metadata_max_age_ms": 2_000},
        }
        settings = {
            "kafka": kafka,
            "ingest": {"chunk_records": 40, "chunk_wait": 0.2},
            "postgres": {"url": url},
            "shutdown_grace": 15,
        }
        self.config.write_text(yaml.safe_dump(settings), encoding="utf-8")
        self.running: list[tuple[subprocess.Popen[bytes], Path]] = []

    def start(self) -> None:
        log = self._folder / f"worker-{time.monotonic_ns()}.log"
        with log.open("wb") as out:
            worker = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.null_worker", str(self.config)],
                cwd=ROOT,
                stdout=out,
                stderr=out,
                env=environment(),
            )
        self.running.append((worker, log))

    def end(self, chance: int, how: signal.Signals) -> None:
        """One of them; asked to end, it must end well."""
        worker, log = self.running.pop(chance % len(self.running))
        worker.send_signal(how)
        code = worker.wait(30)
        # Told before it listens, it ends by the signal: also well.
        assert how is signal.SIGKILL or code in (0, -how), f"ended with {code}:\n{_end_of(log)}"

    def resize(self, count: int, chance: int) -> None:
        while len(self.running) > count:
            self.end(chance, signal.SIGTERM)
        while len(self.running) < count:
            self.start()

    def require_alive(self) -> None:
        for worker, log in self.running:
            assert worker.poll() is None, f"ended with {worker.poll()}:\n{_end_of(log)}"

    def have_stopped_loudly(self) -> bool:
        """Whether all have ended, each with an error, because of what was done to their topic."""
        if any(worker.poll() is None for worker, _ in self.running):
            return False
        for worker, log in self.running:
            assert worker.poll() == 1, f"ended with {worker.poll()}:\n{_end_of(log)}"
            assert "made anew" in log.read_text(), _end_of(log)
        return True

    def close(self) -> None:
        for worker, _ in self.running:
            worker.kill()
            worker.wait()
        self.running.clear()


class Stage:
    """Everything; workers and load are running."""

    def __init__(self, cluster: Cluster, workers: Workers, load: Load, url: str) -> None:
        self.cluster = cluster
        self.workers = workers
        self.load = load
        self._url = url.replace("+psycopg", "")
        self.earlier: Counter[Record] = Counter()
        """What the topics held that were deleted since."""

    # --- what is there -------------------------------------------------------------------------

    def stored(self) -> int:
        (row,) = self._rows(
            "SELECT (SELECT count(*) FROM monitor_data.scores)"
            " + (SELECT count(*) FROM monitor_data.dead_letters)"
        )
        return int(row[0])

    def leader(self, chance: int) -> Node:
        """The broker that leads one of the topic's partitions."""
        partitions = self._described([TOPIC])[0]["partitions"]
        number = partitions[chance % len(partitions)]["leader_id"]
        return next(node for node in self.cluster.nodes if node.number == number)

    def in_step(self) -> bool:
        """Every broker runs and has every record of the topic and of the group's offsets."""
        try:
            topics = self._described([TOPIC, "__consumer_offsets"])
        except (KafkaError, OSError):
            return False
        everyone = len(self.cluster.nodes)
        return all(
            len(one["isr_nodes"]) == everyone for topic in topics for one in topic["partitions"]
        )

    def reads_on(self) -> float:
        """Seconds until more is stored than now."""
        before = self.stored()

        def more() -> bool:
            self.workers.require_alive()
            return self.stored() > before

        return wait_for(more, "records are stored again")

    # --- what is done --------------------------------------------------------------------------

    def grow(self) -> None:
        (topic,) = self._described([TOPIC])
        with self._admin() as admin:
            admin.create_partitions({TOPIC: len(topic["partitions"]) + 1})

    def make_anew(self) -> None:
        """Delete the topic once all of it is stored, and make it again: the workers must stop."""
        with self.load.paused():
            self.require_exact()
            self.earlier += on_topic(self.cluster.bootstrap, TOPIC)
            with self._admin() as admin:
                admin.delete_topics([TOPIC])
            wait_for(self._make, "the topic is made again")
        wait_for(self.workers.have_stopped_loudly, "the workers notice another topic")
        count = len(self.workers.running)
        self.workers.running.clear()
        wait_for(self._moved, "the reading point is moved", 2 * RECOVERY_SECONDS)
        self.workers.resize(count, 0)

    def _make(self) -> bool:
        try:
            self.cluster.create_topic(TOPIC, partitions=PARTITIONS)
        except KafkaError:
            return False  # it is being deleted
        return True

    def _moved(self) -> bool:
        """By the command; it refuses for two minutes after a worker was killed."""
        command = [*("offsets", "move", "--topic", TOPIC, "--to", "earliest", "--yes", "--config")]
        done = subprocess.run(
            [sys.executable, "-m", "monitor", *command, str(self.workers.config)],
            cwd=ROOT,
            check=False,
            capture_output=True,
            text=True,
            env=environment(),
        )
        assert done.returncode == 0 or "is being read" in done.stdout + done.stderr, done.stderr
        return done.returncode == 0

    # --- what must hold ------------------------------------------------------------------------

    def require_exact(self) -> Outcome:
        """Every record of the topic, and of those before it, is stored, once; nothing is sent meanwhile."""
        there = on_topic(self.cluster.bootstrap, TOPIC)
        expected = self.earlier + there
        wait_for(lambda: self.stored() >= expected.total(), "all that was sent is stored")
        time.sleep(2.0)  # nothing more may come
        stored = self._records()
        outcome = Outcome(
            records=expected.total(),
            lost=(expected - stored).total(),
            doubled=(stored - expected).total(),
            acknowledged_and_gone=sum(
                one not in expected for one in self.load.acknowledged - self.earlier.keys()
            ),
        )
        assert not outcome.lost, f"lost: {sorted((expected - stored).elements(), key=str)[:5]}"
        assert not outcome.doubled, f"twice: {sorted((stored - expected).elements(), key=str)[:5]}"
        self._require_sums(expected)
        return outcome

    def _records(self) -> Counter[Record]:
        return Counter(
            self._rows(
                "SELECT partition, record_offset, prompt_id FROM monitor_data.scores"
                " UNION ALL SELECT partition, record_offset, NULL FROM monitor_data.dead_letters"
            )
        )

    def _require_sums(self, expected: Counter[Record]) -> None:
        readable = sum(count for (*_, name), count in expected.items() if name is not None)
        counted = dict(
            self._rows("SELECT outcome, sum(n)::bigint FROM monitor_data.ingest_counts GROUP BY 1")
        )
        assert counted.pop("scored", 0) == readable
        assert sum(counted.values()) == expected.total() - readable
        buckets = self._rows(
            "SELECT feature, sum(n)::bigint FROM monitor_data.buckets WHERE segment = 'all' GROUP BY 1"
        )
        assert {n for _, n in buckets} <= {readable}, buckets

    # --- how it is reached ---------------------------------------------------------------------

    def _rows(self, query: str) -> list[tuple]:
        with psycopg.connect(self._url) as connection:
            return connection.execute(query).fetchall()

    def _described(self, topics: list[str]) -> list[dict]:
        with self._admin() as admin:
            return admin.describe_topics(topics)

    def _admin(self) -> AbstractContextManager[KafkaAdminClient]:
        servers = self.cluster.bootstrap
        return closing(KafkaAdminClient(bootstrap_servers=servers, request_timeout_ms=10_000))


def environment() -> dict[str, str]:
    """Ours, without what tests set for the monitor."""
    return {key: value for key, value in os.environ.items() if not key.startswith("MONITOR_")}


def _end_of(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-3_000:]
