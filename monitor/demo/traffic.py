"""Production traffic in small: benign exchanges, among which a share shows a misaligned persona."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from kafka import KafkaProducer

Exchange = dict[str, Any]

MOST_WAITING = 24
"""Sending follows the worker: more than this many unscored prompts are never on the topic."""


def exchanges(name: str) -> list[Exchange]:
    """The exchanges of ``data/<name>.jsonl``: each with ``messages`` and ``response``."""
    lines = files("monitor.demo").joinpath(f"data/{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in lines.splitlines() if line.strip()]


class Sender:
    """Sends exchanges to a topic from a thread, as fast as ``done`` says that they are stored."""

    def __init__(self, bootstrap: str, topic: str, *, chance: random.Random) -> None:
        self._producer = KafkaProducer(bootstrap_servers=bootstrap, acks="all", linger_ms=20)
        self._topic = topic
        self._chance = chance
        self._pools = {name: exchanges(name) for name in ("benign", "persona")}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._send, name="traffic", daemon=True)
        self.shares: dict[str, float] = {}
        """What share of the exchanges comes from which pool; the rest is benign."""
        self.answers = True
        """Whether the gateway logs answers; without, records hold the prompt alone."""
        self.sent = 0
        self.done = 0

    def __enter__(self) -> Sender:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._producer.close()

    def _send(self) -> None:
        while not self._stop.is_set():
            room = MOST_WAITING - (self.sent - self.done)
            for _ in range(room):
                self._post(self._pools[self._drawn()])
            self._producer.flush()
            self._stop.wait(0.25)

    def _drawn(self) -> str:
        shares = dict(self.shares)
        weights = [*shares.values(), 1.0 - sum(shares.values())]
        return self._chance.choices([*shares, "benign"], weights)[0]

    def _post(self, pool: Sequence[Exchange]) -> None:
        exchange = self._chance.choice(pool)
        self.sent += 1
        record = {
            "id": f"demo-{self.sent}",
            "conversation_id": f"conversation-{self.sent}",
            "messages": exchange["messages"],
            "segment": {"route": self._chance.choice(("chat", "support"))},
        }
        if self.answers:
            record["response"] = exchange["response"]
        self._producer.send(self._topic, json.dumps(record).encode())
