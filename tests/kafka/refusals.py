"""Every way in which a cluster refuses, and what the monitor then says: seen on a real broker.

``python -m tests.kafka.refusals`` writes the table of docs/deploy.md; it takes some minutes.
"""

from __future__ import annotations

import contextlib
import io
import logging
import multiprocessing
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from monitor.demo.services import free_port
from monitor.errors import MonitorError
from monitor.ingest.kafka import KafkaSource
from monitor.logs import configure
from monitor.settings import IngestSettings, KafkaSettings, LogSettings
from monitor.values.reading import Partition
from tests.kafka.apache import ASTRAY_HOST, HOME, USERS, Cluster, kafka_home
from tests.kafka.authority import Authority
from tests.kafka.points import Kept

PAGE = Path(__file__).parents[2] / "docs" / "deploy.md"
BEGIN, END = "<!-- refusals -->", "<!-- /refusals -->"
TOPIC, GROUP, DEAD = "prompts", "monitor", "prompts.dead-letters"
PASSWORD = USERS["monitor"]
LONGEST_SECONDS = 60.0
WATCHED_SECONDS = 60.0
MOST_LINES = 10
"""Of the log in a minute of waiting."""
AT_A_TIME = 4


@dataclass(frozen=True, kw_only=True)
class Case:
    """One wrong setting, or one right that is missing."""

    wrong: str
    """What is wrong, in Markdown."""
    names: tuple[str, ...]
    """What must be said, whatever else."""
    ends: bool
    settings: Callable[[Stage], dict[str, Any]]
    stored: Mapping[Partition, int] | None = None
    """What Postgres holds."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What came of it."""

    said: str
    ended: bool
    seconds: float
    """Until it was said."""
    lines: int
    """Of the log, from the start to the end, or for as long as it was watched."""


class Stage:
    """A cluster with its topics, a principal for each right that is missing, and certificates."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        issue = cluster.authority.issue
        self.client, self.expired = issue("client"), issue("client", expired=True)
        self.foreign = Authority(cluster.folder / "foreign", "another authority")
        self.stranger = self.foreign.issue("client")
        for topic in (TOPIC, DEAD, "elsewhere"):
            cluster.create_topic(topic)
        for user, rights in RIGHTS.items():
            for operation, on in rights:
                cluster.allow(f"User:{user}", operation, on=on)

    def on(self, listener: str, **changed: Any) -> dict[str, Any]:
        """Settings that work with a listener, but for ``changed``."""
        protocol = "SASL_SSL" if listener == "EXPIRED" else listener
        own: dict[str, Any] = {
            "bootstrap_servers": self.cluster.addresses(listener),
            "security_protocol": protocol,
        }
        if protocol.endswith("SSL"):
            own["ssl_cafile"] = self.cluster.authority.certificate
        if protocol == "SSL":
            own |= {"ssl_certfile": self.client, "ssl_keyfile": self.client}
        if protocol.startswith("SASL"):
            own |= login("monitor")
        return own | changed


READ_TOPIC = ("Read", ("--topic", TOPIC))
READ_GROUP = ("Read", ("--group", GROUP))
RIGHTS = {
    "monitor": (READ_TOPIC, READ_GROUP, ("Write", ("--topic", DEAD))),
    "blind": (READ_GROUP,),
    "unread": (("Describe", ("--topic", TOPIC)), READ_GROUP),
    "alone": (READ_TOPIC,),
    "mute": (READ_TOPIC, READ_GROUP, ("Describe", ("--topic", DEAD))),
}
"""User → what it may do. All have the same password."""


def login(user: str, password: str = PASSWORD, mechanism: str = "SCRAM-SHA-512") -> dict[str, Any]:
    return {"sasl_mechanism": mechanism, "sasl_username": user, "sasl_password": password}


def plain(protocol: str) -> dict[str, Any]:
    """A protocol without a log-in."""
    return {"security_protocol": protocol, "sasl_mechanism": None}


NO_CERTIFICATE = {"ssl_certfile": None, "ssl_keyfile": None}

CASES = (
    Case(
        wrong="`bootstrap_servers`: nothing listens there",
        names=("no Kafka broker answers",),
        ends=False,
        settings=lambda stage: {"bootstrap_servers": f"127.0.0.1:{free_port()}"},
    ),
    Case(
        wrong="`bootstrap_servers`: a name that does not resolve",
        names=("no Kafka broker answers", "nowhere.invalid"),
        ends=False,
        settings=lambda stage: {"bootstrap_servers": "nowhere.invalid:9092"},
    ),
    Case(
        wrong="`bootstrap_servers`: a listener whose `advertised.listeners` cannot be reached from here",
        names=(f"send clients on to addresses that cannot be reached from here ({ASTRAY_HOST}:",),
        ends=False,
        settings=lambda stage: {"bootstrap_servers": stage.cluster.addresses("ASTRAY")},
    ),
    Case(
        wrong="`security_protocol: PLAINTEXT`, the listener speaks TLS",
        names=("speaks TLS", "kafka.security_protocol"),
        ends=False,
        settings=lambda stage: {"bootstrap_servers": stage.cluster.addresses("SSL")},
    ),
    Case(
        wrong="`security_protocol: SASL_PLAINTEXT`, the listener speaks TLS",
        names=("speaks TLS", "kafka.security_protocol"),
        ends=False,
        settings=lambda stage: stage.on("SASL_SSL", security_protocol="SASL_PLAINTEXT"),
    ),
    Case(
        wrong="`security_protocol: SSL`, the listener speaks no TLS",
        names=("speaks no TLS", "kafka.security_protocol"),
        ends=False,
        settings=lambda stage: stage.on("PLAINTEXT", security_protocol="SSL"),
    ),
    Case(
        wrong="`security_protocol: SASL_SSL`, the listener speaks no TLS",
        names=("speaks no TLS", "kafka.security_protocol"),
        ends=False,
        settings=lambda stage: stage.on("SASL_PLAINTEXT", security_protocol="SASL_SSL"),
    ),
    Case(
        wrong="`security_protocol: PLAINTEXT`, the listener wants a log-in",
        names=("without SASL", "kafka.security_protocol"),
        ends=False,
        settings=lambda stage: stage.on("SASL_PLAINTEXT", **plain("PLAINTEXT")),
    ),
    Case(
        wrong="`security_protocol: SSL`, the listener wants a log-in",
        names=("without SASL", "kafka.security_protocol"),
        ends=False,
        settings=lambda stage: stage.on("SASL_SSL", **plain("SSL")),
    ),
    Case(
        wrong="`security_protocol: SASL_PLAINTEXT`, the listener takes no log-in",
        names=("kafka.security_protocol",),
        ends=True,
        settings=lambda stage: (
            stage.on("PLAINTEXT", security_protocol="SASL_PLAINTEXT") | login("monitor")
        ),
    ),
    Case(
        wrong="`ssl_certfile` is missing, the listener asks for a certificate",
        names=("kafka.ssl_certfile",),
        ends=False,
        settings=lambda stage: stage.on("SSL", **NO_CERTIFICATE),
    ),
    Case(
        wrong="`ssl_certfile`: of an authority that the brokers do not know",
        names=("kafka.ssl_certfile",),
        ends=False,
        settings=lambda stage: stage.on(
            "SSL", ssl_certfile=stage.stranger, ssl_keyfile=stage.stranger
        ),
    ),
    Case(
        wrong="`ssl_certfile`: expired",
        names=("kafka.ssl_certfile",),
        ends=False,
        settings=lambda stage: stage.on(
            "SSL", ssl_certfile=stage.expired, ssl_keyfile=stage.expired
        ),
    ),
    Case(
        wrong="`ssl_cafile`: another authority",
        names=("kafka.ssl_cafile",),
        ends=True,
        settings=lambda stage: stage.on("SASL_SSL", ssl_cafile=stage.foreign.certificate),
    ),
    Case(
        wrong="`bootstrap_servers`: a name that the broker's certificate does not have",
        names=("127.0.0.1", "certificate"),
        ends=True,
        settings=lambda stage: stage.on(
            "SASL_SSL",
            bootstrap_servers=stage.cluster.addresses("SASL_SSL").replace("localhost", "127.0.0.1"),
        ),
    ),
    Case(
        wrong="the broker's certificate has expired",
        names=("expired",),
        ends=True,
        settings=lambda stage: stage.on("EXPIRED"),
    ),
    Case(
        wrong="`sasl_password`: wrong",
        names=("kafka.sasl",),
        ends=True,
        settings=lambda stage: stage.on("SASL_SSL", sasl_password="no"),
    ),
    Case(
        wrong="`sasl_username`: unknown",
        names=("kafka.sasl",),
        ends=True,
        settings=lambda stage: stage.on("SASL_SSL", sasl_username="nobody"),
    ),
    Case(
        wrong="`sasl_mechanism`: not enabled on the broker",
        names=("kafka.sasl_mechanism", "OAUTHBEARER"),
        ends=True,
        settings=lambda stage: stage.on(
            "SASL_SSL",
            sasl_mechanism="OAUTHBEARER",
            oauth_token_file=stage.cluster.authority.certificate,
        ),
    ),
    Case(
        wrong="`topics`: no such topic",
        names=("nosuch not found", "may not DESCRIBE", "User:monitor"),
        ends=True,
        settings=lambda stage: stage.on("SASL_SSL", topics=("nosuch",)),
    ),
    Case(
        wrong="no DESCRIBE and no READ on the topic",
        names=(f"{TOPIC} not found", "may not DESCRIBE", "User:blind"),
        ends=True,
        settings=lambda stage: stage.on("SASL_SSL", **login("blind")),
    ),
    Case(
        wrong="no READ on the topic, but DESCRIBE",
        names=("READ", TOPIC, "User:unread"),
        ends=True,
        settings=lambda stage: stage.on("SASL_SSL", **login("unread")),
    ),
    Case(
        wrong="no READ on the group",
        names=("READ", "group", GROUP, "User:alone"),
        ends=True,
        settings=lambda stage: stage.on("SASL_SSL", **login("alone")),
    ),
    Case(
        wrong="another cluster: Postgres holds an offset that its log does not reach",
        names=("ends before the stored offset", "another cluster"),
        ends=True,
        settings=lambda stage: stage.on("SASL_SSL"),
        stored={(TOPIC, 0): 1_000},
    ),
)


def settings_of(case: Case, stage: Stage) -> KafkaSettings:
    common = {"topics": (TOPIC,), "group_id": GROUP, "session_timeout_ms": 6_000}
    return KafkaSettings.model_validate(common | case.settings(stage))


def look(case: Case, stage: Stage, seconds: float) -> Seen:
    """Let a source meet the case: until it ends, or for ``seconds`` after something was said."""
    said, ended, began = "", False, time.monotonic()
    said_at = over_at = began + LONGEST_SECONDS

    with (
        heard() as log,
        KafkaSource(settings_of(case, stage), IngestSettings(), Kept(case.stored)) as source,
    ):
        while not ended and time.monotonic() < over_at:
            try:
                source.poll(0.1)
            except MonitorError as error:
                said, ended = f"{error}. {error.hint}", True
                said_at = time.monotonic()
            else:
                if not said and source.problem and source.problem != "not connected yet":
                    said, said_at = source.problem, time.monotonic()
                    over_at = said_at + seconds
    return Seen(
        said=said, ended=ended, seconds=said_at - began, lines=len(log.getvalue().splitlines())
    )


@contextlib.contextmanager
def heard() -> Iterator[io.StringIO]:
    """The log as an operator would have it, from nothing said yet."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    configure(LogSettings())
    try:
        with contextlib.redirect_stderr(io.StringIO()) as log:
            yield log
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        logging.captureWarnings(False)
        structlog.reset_defaults()


def row(case: Case, seen: Seen) -> str:
    """A line of the table, with addresses that no machine of ours has."""
    said = re.sub(r"\b(localhost|127\.0\.0\.1):\d+", "kafka:9092", seen.said)
    said = re.sub(rf"\b{re.escape(ASTRAY_HOST)}:\d+", f"{ASTRAY_HOST}:9092", said)
    said = said.replace("|", "\\|")
    after = "at once" if seen.seconds < 1 else f"{seen.seconds:.0f} s"
    does = "ends" if seen.ended else "waits"
    return f"| {case.wrong} | {said} | {does} | {after} | {seen.lines} |\n"


def table(rows: Iterable[str]) -> str:
    head = "| what is wrong | what is said | then it | after | log lines |\n|---|---|---|---|---|\n"
    return f"{BEGIN}\n{head}{''.join(rows)}{END}"


def main() -> int:
    """Each case in a process of its own: those that wait are watched for a minute, some at a time."""
    home = kafka_home()
    if home is None:
        print(f"{HOME} names no folder with libs/*.jar", file=sys.stderr)
        return 2
    with (
        tempfile.TemporaryDirectory(prefix="monitor-kafka-") as folder,
        Cluster(Path(folder), home, users=dict.fromkeys(RIGHTS, PASSWORD)) as cluster,
    ):
        stage = Stage(cluster)
        forked = multiprocessing.get_context("fork")
        with ProcessPoolExecutor(
            AT_A_TIME, mp_context=forked, initializer=_hold, initargs=(stage,)
        ) as pool:
            seen = list(pool.map(_look_at, range(len(CASES))))
    faults = [
        f"{case.wrong}: {one}"
        for case, one in zip(CASES, seen, strict=True)
        if not matches(case, one)
    ]
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(before + table(map(row, CASES, seen)) + after, encoding="utf-8")
    if faults:
        print("not as expected:", *faults, sep="\n", file=sys.stderr)
        return 1
    return 0


def matches(case: Case, seen: Seen) -> bool:
    return (
        seen.ended == case.ends
        and (seen.ended or seen.lines < MOST_LINES)
        and all(name in seen.said for name in case.names)
    )


_held: list[Stage] = []


def _hold(stage: Stage) -> None:
    _held[:] = [stage]


def _look_at(number: int) -> Seen:
    return look(CASES[number], _held[0], WATCHED_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
