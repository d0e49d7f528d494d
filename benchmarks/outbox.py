"""Ten thousand alerts at once: deliveries a second, in waves and one at a time, in turns.

    python -m benchmarks.outbox [--waiting 10000] [--deliveries 600] [--answer-ms 0 50] [--json FILE]

Starts its own PostgreSQL, and a receiver in a process of its own that answers every request after so many
milliseconds. All of them wait for one endpoint, whose ``rate_per_minute`` allows them.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import Engine, text

from monitor import courier
from monitor.alert.policy import event_of
from monitor.alert.render import RenderedRequest
from monitor.alert.webhook import send
from monitor.calling import Caller
from monitor.demo.services import Postgres
from monitor.settings import AlertSettings, Endpoint, PostgresSettings, Settings
from monitor.store.alerts import save_alert
from monitor.store.database import connect, migrate, transaction
from monitor.values.alerts import Alert, AlertState, Attempt

ROUNDS = 3
WAYS = {"waves": courier.LARGEST_WAVE, "one at a time": 1}
SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()


def main() -> None:
    if sys.argv[1:2] == ["receiver"]:
        asyncio.run(receive(float(sys.argv[2]) / 1e3))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--waiting", type=int, default=10_000)
    parser.add_argument("--deliveries", type=int, default=600)
    parser.add_argument("--answer-ms", type=float, nargs="+", default=[0.0, 50.0])
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as folder, Postgres(Path(folder)) as server:
        settings = PostgresSettings(url=server.create_database("benchmark"))
        migrate(settings)
        database = connect(settings)
        for milliseconds in given.answer_ms:
            with receiver(milliseconds) as url:
                found[f"{milliseconds:g} ms"] = compared(database, url, given)
        database.dispose()
    told = json.dumps(found, indent=1)
    print(told)
    if given.json:
        given.json.write_text(told + "\n")


def compared(database: Engine, url: str, given: argparse.Namespace) -> dict[str, float]:
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(ROUNDS):
        for way, wave in WAYS.items():
            fill(database, given.waiting)
            rates[way].append(rate(database, url, given.deliveries, wave))
    medians = {way: statistics.median(seen) for way, seen in rates.items()}
    ratios = [many / one for many, one in zip(rates["waves"], rates["one at a time"], strict=True)]
    return {
        **{f"{way}, a second": round(median, 1) for way, median in medians.items()},
        "waves over one at a time": round(statistics.median(ratios), 2),
    }


def fill(database: Engine, number: int) -> None:
    """``number`` alerts that wait for the endpoint, and nothing else in the outbox."""
    now = datetime.now(UTC)
    alert = Alert(
        alert_id="00000000-0000-4000-8000-000000000000",
        dedupe_key="drift/p/toxic/all",
        rule="persona",
        kind="drift",
        severity="warning",
        state=AlertState.FIRING,
        summary="toxic rose",
        labels={"feature": "toxic", "segment": "all"},
        details={"window": "15m"},
        pending_since=now,
        last_active_at=now,
        fired_at=now,
        last_announced_at=now,
        sequence=1,
    )
    with transaction(database) as c:
        tables = ("delivery_attempts", "deliveries", "events", "alerts")
        c.execute(text(f"TRUNCATE {', '.join(f'monitor_data.{name}' for name in tables)}"))
        save_alert(c, alert, event_of(alert, "drift.detected", now), ["ops"])
        c.execute(
            text("""
                INSERT INTO monitor_data.events
                SELECT event_id || n, md5(n::text)::uuid::text, type, sequence, created_at, alert
                FROM monitor_data.events, generate_series(2, :number) AS n
            """),
            {"number": number},
        )
        c.execute(
            text("""
                INSERT INTO monitor_data.deliveries
                    (event_id, endpoint, alert_id, sequence, state, next_attempt_at)
                SELECT event_id, 'ops', alert_id, sequence, 'waiting', created_at
                FROM monitor_data.events
                WHERE event_id NOT IN (SELECT event_id FROM monitor_data.deliveries)
            """)
        )


def rate(database: Engine, url: str, deliveries: int, wave: int) -> float:
    """Deliveries a second, from the start of a courier to its ``deliveries``-th."""
    stop, lock, sent = threading.Event(), threading.Lock(), [0]

    def counting(caller: Caller, request: RenderedRequest, to: Endpoint, now: datetime) -> Attempt:
        attempt = send(caller, request, to, now)
        with lock:
            sent[0] += 1
            if sent[0] >= deliveries:
                stop.set()
        return attempt

    to = Endpoint(name="ops", url=url, secret=SECRET, rate_per_minute=10_000_000)
    alerts = AlertSettings(endpoints=(to,), poll_every=timedelta(seconds=0.1))
    courier.LARGEST_WAVE = wave  # type: ignore[misc]
    begun = time.perf_counter()
    courier.Courier(database, Settings(alerts=alerts), sender=counting).run(stop)
    return sent[0] / (time.perf_counter() - begun)


@contextmanager
def receiver(milliseconds: float) -> Iterator[str]:
    command = [sys.executable, "-m", "benchmarks.outbox", "receiver", str(milliseconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}/hook"
        finally:
            process.kill()


async def receive(seconds: float) -> None:
    """Answer every POST with 204 after ``seconds``, over connections that are kept."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                lines = head.lower().split(b"\r\n")
                length = next(x for x in lines if x.startswith(b"content-length:"))
                await reader.readexactly(int(length.partition(b":")[2]))
                await asyncio.sleep(seconds)
                writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
                await writer.drain()
        except (asyncio.IncompleteReadError, OSError):
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    main()
