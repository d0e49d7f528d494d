"""Everything that a campaign breaks, set up and torn down: services, proxies, processes, receivers, load."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil
import psycopg
import yaml
from sqlalchemy import make_url

from monitor import operate
from monitor.demo.receiver import Receiver
from monitor.demo.services import Broker, Postgres, create_topic
from monitor.settings import PostgresSettings, Settings, load
from monitor.store.baselines import approve_baseline
from monitor.store.database import connect, database_time, migrate, transaction
from tests.faults.campaign.actors import Actor
from tests.faults.campaign.disk import Disk, small_disk
from tests.faults.campaign.load import PARTITIONS, Load
from tests.faults.campaign.proxy import Proxy
from tests.faults.campaign.schedule import ENDPOINTS, LASTING, MORTAL

TOPIC: Final = "prompts"
GROUP: Final = "campaign"
SECRET: Final = "whsec_Y2FtcGFpZ24gb2YgZmF1bHRzLCAzMiBieXRlcyE="
PER_SECOND: Final = 70.0
PATIENCE_SECONDS: Final = 60.0


@dataclass(slots=True, kw_only=True)
class Stage:
    folder: Path
    postgres: Postgres
    broker: Broker
    url: str
    disk: Disk
    proxies: dict[str, Proxy]
    receivers: dict[str, Receiver]
    actors: dict[str, Actor]
    load: Load
    baseline: list[str] = field(default_factory=list)

    def sessions(self) -> psycopg.Connection[Any]:
        """A session of our own, past the proxy."""
        return psycopg.connect(self.url.replace("+psycopg", ""), autocommit=True)

    def number(self, query: str) -> int:
        with self.sessions() as session:
            row = session.execute(query).fetchone()
        return int(row[0] or 0) if row else 0

    def read(self) -> int:
        """Records that the store is done with."""
        return self.number("SELECT sum(next_offset) FROM monitor_data.offsets")

    def postgres_family(self) -> list[psutil.Process]:
        pid = int((self.postgres.folder / "data" / "postmaster.pid").read_text().split()[0])
        postmaster = psutil.Process(pid)
        return [postmaster, *postmaster.children(recursive=True)]

    def config(self, name: str, **kafka: object) -> Path:
        """The file of one actor's settings."""
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(self._settings(name, kafka)))
        return path

    def actor(self, name: str, *, static: bool = True) -> Actor:
        """Static members take their place again at once, as those of a StatefulSet do."""
        member = {"client_options": {"group_instance_id": name}} if static else {}
        return Actor(name, self.config(name, **member), self.folder / f"{name}.log")

    def _settings(self, name: str, kafka: dict[str, object]) -> dict[str, object]:
        through = self.proxies["postgres"].port
        url = make_url(self.url).set(port=through).render_as_string(hide_password=False)
        return {
            "kafka": {
                "bootstrap_servers": f"127.0.0.1:{self.proxies['kafka'].port}",
                "topics": [TOPIC],
                "group_id": GROUP,
                "dead_letter_topic": None,
                "session_timeout_ms": 6_000,
                "heartbeat_interval_ms": 500,
                "max_poll_interval_ms": 10_000,
                "request_timeout_ms": 5_000,
                **kafka,
            },
            "ingest": {"chunk_records": 40, "chunk_wait": 0.1, "segment_keys": ["route"]},
            "postgres": {"url": url, "connect_timeout": 2, "statement_timeout": 10},
            "pack": {"allow_unjudged": True},
            "drift": {
                "bucket": 1,
                "windows": {"5s": 5},
                "evaluate_every": 1,
                "rollup_every": 20,
                "settle": 1,
                "wait_for_late": 3,
                "min_segment_n": 100,
                "min_baseline_n": 300,
                "rules": [
                    {
                        "name": "shift",
                        "features": ["*"],
                        "segments": ["all", "route=*"],
                        "severities": {"warning": {"shift": 0.4}},
                        "min_n": 30,
                        "for": 0,
                        "cooldown": 0,
                        "reminder": 3,
                    }
                ],
                "silence_rules": [
                    {"name": "not_evaluated", "limit": 8, "severity": "critical", "for": 0}
                ],
            },
            "alerts": {
                "endpoints": [
                    {
                        "name": endpoint,
                        "url": f"http://127.0.0.1:{self.proxies[endpoint].port}/hook",
                        "secret": SECRET,
                        "timeout": 1,
                        "rate_per_minute": 100_000,
                    }
                    for endpoint in ENDPOINTS
                ],
                "poll_every": 0.2,
                # Nothing is given up: what is not delivered by the end is a fault of ours.
                "retry_delays": [0, *[0.3] * 400],
            },
            "shutdown_grace": 15,
        }


def wait_for(holds: Callable[[], bool], what: str, seconds: float = PATIENCE_SECONDS) -> float:
    """Seconds until ``holds()``; an `AssertionError` that names ``what`` after ``seconds``."""
    started = time.monotonic()
    while not holds():
        if time.monotonic() - started > seconds:
            raise AssertionError(f"after {seconds:g} s: {what}")
        time.sleep(0.03)
    return time.monotonic() - started


@contextmanager
def stage(folder: Path, cluster: Path | None = None) -> Iterator[Stage]:
    """The services with a baseline approved and every actor at work."""
    with ExitStack() as parts:
        postgres = parts.enter_context(Postgres(folder / "postgres"))
        broker = parts.enter_context(Broker(folder / "broker"))
        disk = parts.enter_context(small_disk(folder / "disk"))
        url = _database(postgres, disk)
        create_topic(broker.bootstrap, TOPIC, partitions=PARTITIONS)
        receivers = {name: parts.enter_context(Receiver(SECRET)) for name in ENDPOINTS}
        ports = {"postgres": postgres.port, "kafka": broker.port}
        ports |= {name: int(one.url.split(":")[2].split("/")[0]) for name, one in receivers.items()}
        proxies = {
            name: parts.enter_context(Proxy(port, kafka=name == "kafka"))
            for name, port in ports.items()
        }
        made = Stage(
            folder=folder,
            postgres=postgres,
            broker=broker,
            url=url,
            disk=disk,
            proxies=proxies,
            receivers=receivers,
            actors={},
            load=parts.enter_context(Load(broker.bootstrap, TOPIC, per_second=PER_SECOND)),
        )
        for name in MORTAL + LASTING:
            made.actors[name] = made.actor(name)
            parts.callback(made.actors[name].close)
            made.actors[name].start()
        _approve(made, load(made.config("baseline")))
        made.load.shift()
        yield made


def _database(postgres: Postgres, disk: Disk) -> str:
    with psycopg.connect(postgres.url.replace("+psycopg", ""), autocommit=True) as session:
        if disk.real:
            owner = (postgres.folder / "data").stat()
            place = disk.path / "tables"
            place.mkdir()
            os.chown(place, owner.st_uid, owner.st_gid)
            session.execute(f"CREATE TABLESPACE small LOCATION '{place}'")
        name = f"campaign_{secrets.token_hex(4)}"
        session.execute(
            f"CREATE DATABASE {name} TEMPLATE template0 TABLESPACE"
            f" {'small' if disk.real else 'pg_default'}"
        )
    url = postgres.database_url(name)
    migrate(PostgresSettings(url=url))
    return url


def _approve(made: Stage, settings: Settings) -> None:
    """Freeze the first seconds of quiet traffic as what is normal."""
    wait_for(lambda: made.read() >= 700, "no 700 records are stored")
    database = connect(PostgresSettings(url=made.url))
    with transaction(database) as c:
        now = database_time(c)
        start = c.exec_driver_sql("SELECT min(bucket_start) FROM monitor_data.buckets").scalar()
        captured = operate.capture_baseline(
            c, settings, name="quiet", start=start, end=now, now=now
        )
        approve_baseline(c, captured.baseline_id, "campaign", now)
    database.dispose()
