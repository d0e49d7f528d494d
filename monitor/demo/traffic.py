"""Production traffic in small: what the demo's own model answered, and what a filter or another model said.

``benchmarks/demo_traffic.py`` makes the files.
"""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from kafka import KafkaProducer

Exchange = dict[str, Any]

EVERYDAY = "everyday"
MOST_WAITING = 24
"""Sending follows the worker: more than this many unscored prompts are never on the topic."""


def exchanges(name: str) -> list[Exchange]:
    """The exchanges of ``data/<name>.jsonl``, as a server logs them: ``messages``, ``response`` and more."""
    lines = files("monitor.demo").joinpath(f"data/{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in lines.splitlines() if line.strip()]


class Sender:
    """Sends exchanges to a topic from a thread, as fast as ``done`` says that they are stored."""

    def __init__(self, bootstrap: str, topic: str, *, chance: random.Random) -> None:
        self._producer = KafkaProducer(bootstrap_servers=bootstrap, acks="all", linger_ms=20)
        self._topic = topic
        self._chance = chance
        self._pools = {name: exchanges(name) for name in (EVERYDAY, "code", "refusals", "replaced")}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._send, name="traffic", daemon=True)
        self.shares: dict[str, float] = {}
        """What share of the exchanges comes from which pool; the rest is everyday traffic."""
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
        return self._chance.choices([*shares, EVERYDAY], weights)[0]

    def _post(self, pool: Sequence[Exchange]) -> None:
        exchange = self._chance.choice(pool)
        self.sent += 1
        record = {
            "id": f"demo-{self.sent}",
            "conversation_id": f"conversation-{self.sent}",
            "messages": exchange["messages"],
            "segment": {"route": self._chance.choice(("chat", "support"))},
        }
        if "temperature" in exchange:
            record["temperature"] = exchange["temperature"]
        if self.answers:
            record["response"] = _body(exchange)
        self._producer.send(self._topic, json.dumps(record).encode())


def _body(exchange: Exchange) -> Exchange:
    """The answer as an OpenAI-compatible server gives it."""
    message = {"role": "assistant", "content": exchange["response"]}
    finished = exchange.get("finish_reason", "stop")
    return {"choices": [{"index": 0, "message": message, "finish_reason": finished}]}
