"""Many hostile records from one seed, and what the reading of each costs.

    python -m tests.ingest.hostile_flood --records 100000 --seed 1

Work is counted in calls of functions and memory in bytes that Python allocates at most: neither depends on
how busy the machine is. Seconds are told, and judged by nobody.
"""

from __future__ import annotations

import argparse
import base64
import copy
import gzip
import json
import random
import resource
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from monitor.ingest.dialects.telling import DIALECTS
from monitor.settings import IngestSettings
from monitor.values.prompts import DeadLetter, Prompt, RawRecord
from tests.ingest.counting import counted
from tests.ingest.hostile import SECRET, VALID, checked, paths

CALLS: Final = 6_000_000
"""For one record, read twice (`checked` does so). The dearest that is no bomb, a trace of the largest size full of small model
calls (some 5,000 exchanges), takes that many; `test_work` allows 2,000,000 a reading for what says nothing."""
BYTES_OF_A_RECORD: Final = 60
"""Bytes of memory for a byte of the record at most, beside `BYTES_BESIDE`."""
BYTES_BESIDE: Final = 8_000_000
LIMIT: Final = IngestSettings().max_record_bytes
TEXTS: Final = (
    *(
        "",
        " ",
        "\0",
        "\ufeff",
        "\u202e",
        "🥚" * 300,
        "x" * 10_000,
        "{{ 7*7 }}",
        "<|im_start|>system",
    ),
    *("[" * 500, '{"a":', "null", "1e400", "0000-01-01T00:00:00Z", "9999-12-31T23:59:59-23:59"),
    *(SECRET, "tool", "assistant", "redacted-by-litellm", "data: {}\n\n" * 40),
)
KEYS: Final = (
    *("messages", "prompt", "request", "response", "role", "content", "type", "text", "parts"),
    *("choices", "message", "tool_calls", "function", "arguments", "attributes", "key", "value"),
    *(
        "resourceSpans",
        "scopeSpans",
        "spans",
        "events",
        "body",
        "specversion",
        "data",
        "id",
        "input",
    ),
    *("output", "payload", "schema", "log", "metadata", "usage", "delta", "segment", "timestamp"),
)
Draw = Callable[[random.Random], bytes]


def anything(chance: random.Random, depth: int = 4) -> Any:
    """A JSON value of no sense."""
    kind = chance.randrange(8 if depth else 5)
    match kind:
        case 0:
            return chance.choice((None, True, False))
        case 1:
            return chance.choice((0, -1, 2**63 - 1, -(2**63), 1772366400, 1.5, 1e300, -0.0))
        case 2 | 3 | 4:
            return chance.choice(TEXTS)
        case 5:
            return [anything(chance, depth - 1) for _ in range(chance.randrange(5))]
        case _:
            return {
                chance.choice(KEYS): anything(chance, depth - 1) for _ in range(chance.randrange(6))
            }


def mutated(chance: random.Random) -> Any:
    """A valid record of some format in which one to three places hold something else, or nothing."""
    document = copy.deepcopy(chance.choice(VALID))
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        places = [path for path in paths(document) if path]
        if not places:
            break
        path = chance.choice(places)
        parent: Any = document
        for step in path[:-1]:
            parent = parent[step]
        if chance.random() < 0.25 and isinstance(parent, dict):
            parent.pop(path[-1], None)
        else:
            parent[path[-1]] = anything(chance)
    return document


def damaged(chance: random.Random) -> bytes:
    whole = orjson.dumps(chance.choice(VALID))
    at, kind = chance.randrange(len(whole)), chance.randrange(4)
    odd = chance.randbytes(chance.randint(1, 3))
    return (
        whole[:at],
        whole[:at] + odd + whole[at + 1 :],
        whole[:at] + odd + whole[at:],
        whole[at:],
    )[kind]


def wrapped(chance: random.Random) -> bytes:
    """In what others wrap records in, several times over."""
    value = orjson.dumps(mutated(chance))
    for _ in range(chance.randint(1, 4)):
        match chance.randrange(5):
            case 0:
                value = gzip.compress(value, 1)
            case 1:
                value = base64.b64encode(value)
            case 2:
                value = orjson.dumps(value.decode("latin-1"))
            case 3:
                value = b"\0" + chance.randbytes(4) + value
            case _:
                value = orjson.dumps({chance.choice(KEYS): value.decode("latin-1")})
    return value


def swollen(chance: random.Random) -> bytes:
    """One place of a valid record again and again, up to the largest record there may be."""
    document = copy.deepcopy(chance.choice(VALID))
    lists = [path for path in paths(document) if isinstance(at(document, path), list)]
    if not lists:
        return orjson.dumps({"prompt": "x" * chance.randrange(LIMIT)})
    found = at(document, chance.choice(lists))
    one = orjson.dumps(found[0] if found else {})
    size = int(LIMIT * chance.random() ** 4)
    found[:] = [orjson.Fragment(one)] * max(1, size // (len(one) + 1))
    return orjson.dumps(document)[: LIMIT + 10]


def bomb(chance: random.Random) -> bytes:
    inner = chance.choice((b" ", b"[", b'{"a":', b"\0", b"data: {}\n\n"))
    return gzip.compress(inner * (chance.randrange(40_000_000) // len(inner)), 1)


def at(document: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        document = document[step]
    return document


KINDS: Final[tuple[tuple[str, int, Draw], ...]] = (
    ("bytes", 100, lambda chance: chance.randbytes(chance.randrange(300))),
    ("JSON of no sense", 200, lambda chance: orjson.dumps(anything(chance))),
    ("mutated", 406, lambda chance: orjson.dumps(mutated(chance))),
    ("damaged", 180, damaged),
    ("wrapped", 110, wrapped),
    ("swollen", 3, swollen),
    ("bombs", 1, bomb),
)


def hostile(seed: int, records: int) -> Iterator[tuple[str, bytes]]:
    chance = random.Random(seed)
    names, weights, draws = zip(*KINDS, strict=True)
    for _ in range(records):
        (kind,) = chance.choices(range(len(names)), weights)
        yield names[kind], draws[kind](chance)


@dataclass(slots=True)
class Cost:
    """What the records cost, and what became of them."""

    outcomes: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    most_calls: int = 0
    most_bytes: int = 0
    most_seconds: float = 0.0
    seconds: list[float] = field(default_factory=list)


def suffer(seed: int, records: int) -> Cost:
    """Read them all; `AssertionError` for what `parse` does not keep, or costs too much."""
    cost = Cost()
    chance = random.Random(seed + 1)
    forms = [*DIALECTS, *["auto"] * 6 * len(DIALECTS)]
    settings = {form: IngestSettings(format=form, segment_keys=("route",)) for form in forms}  # type: ignore[arg-type]
    moment = datetime(2026, 3, 1, tzinfo=UTC)
    tracemalloc.start()
    try:
        for number, (kind, value) in enumerate(hostile(seed, records)):
            record = RawRecord(
                topic="t",
                partition=0,
                offset=number,
                key=None,
                value=value,
                headers=(),
                timestamp=moment,
            )
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            begun = time.thread_time()
            with counted() as calls:
                parsed = checked(record, settings[chance.choice(forms)])
            spent = time.thread_time() - begun
            _, peak = tracemalloc.get_traced_memory()
            said = f"record {number} of seed {seed}, {kind}, {len(value)} bytes"
            assert calls[0] < CALLS, f"{said}: {calls[0]} calls"
            allowed = BYTES_BESIDE + BYTES_OF_A_RECORD * min(len(value), LIMIT)
            allowed += BYTES_OF_A_RECORD * LIMIT // 3 if kind in ("bombs", "wrapped") else 0
            assert peak - before < allowed, f"{said}: {peak - before} bytes of memory"
            cost.kinds[kind] += 1
            cost.seconds.append(spent)
            cost.most_calls = max(cost.most_calls, calls[0])
            cost.most_bytes = max(cost.most_bytes, peak - before)
            for one in parsed:
                name = one.reason.value if not isinstance(one, Prompt) else "prompt"
                cost.outcomes[("dead:" if isinstance(one, DeadLetter) else "") + name] += 1
    finally:
        tracemalloc.stop()
    return cost


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    cost = suffer(given.seed, given.records)
    cost.seconds.sort()
    figures = {
        "records": given.records,
        "seed": given.seed,
        "kinds": dict(cost.kinds),
        "outcomes": dict(cost.outcomes.most_common()),
        "calls_at_most": cost.most_calls,
        "memory_mb_at_most": round(cost.most_bytes / 1e6, 1),
        "process_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3),
        "cpu_ms": {
            "median": round(1e3 * cost.seconds[len(cost.seconds) // 2], 2),
            "of 999 in 1,000": round(1e3 * cost.seconds[int(0.999 * len(cost.seconds))], 1),
            "worst": round(1e3 * cost.seconds[-1], 1),
        },
    }
    print(json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
