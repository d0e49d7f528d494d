"""From the broker to committed rows: beside the engine's own rate, and with no model at all.

    python -m benchmarks.path --model FOLDER [--json FILE]   the real engine
    python -m benchmarks.path --null [--json FILE]           a null replay: where the time goes

Starts an embedded PostgreSQL and a broker. With a model, rounds of "engine alone" and "from broker to
rows" alternate on the same prompts, and the ratio is taken round by round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kafka import KafkaProducer
from rich.console import Console
from sqlalchemy import Engine, text

from benchmarks.null_replay import NullReplay, null_pack
from benchmarks.workload import directions, workload
from monitor.canaries import Replay
from monitor.demo.services import Broker, Postgres
from monitor.ingest.kafka import KafkaSource
from monitor.metrics import METRICS
from monitor.reading_points import StoredPoints
from monitor.replay.engine import ReplayEngine
from monitor.replay.model import load_model
from monitor.score.pack import Pack, manifest
from monitor.settings import (
    IngestSettings,
    KafkaSettings,
    PostgresSettings,
    ReplaySettings,
    Settings,
)
from monitor.store.database import connect, migrate, transaction
from monitor.store.packs import register_pack
from monitor.values.prompts import Prompt
from monitor.worker import Worker


def record_of(prompt: Prompt) -> bytes:
    return json.dumps(
        {
            "messages": [{"role": m.role, "content": m.content} for m in prompt.messages],
            "response": prompt.response,
            "segment": {"route": "chat"},
        }
    ).encode()


def run_path(
    database: Engine,
    bootstrap: str,
    topic: str,
    records: Sequence[bytes],
    pack: Pack,
    replay: Replay,
    chunk: int,
) -> float:
    """Seconds from the start of the worker's first chunk until the last row is committed."""
    producer = KafkaProducer(bootstrap_servers=bootstrap, acks="all", linger_ms=20)
    for record in records:
        producer.send(topic, record)
    producer.flush()
    producer.close()
    settings = Settings(
        kafka=KafkaSettings(
            bootstrap_servers=bootstrap, topics=(topic,), group_id=topic, dead_letter_topic=None
        ),
        ingest=IngestSettings(chunk_records=chunk, chunk_wait=timedelta(milliseconds=200)),
    )
    with transaction(database) as c:
        register_pack(c, pack.pack_id, pack.name, manifest(pack), pack.features)

    stop = threading.Event()
    points = StoredPoints(database, group_id=topic, worker_id="benchmark")
    with KafkaSource(settings.kafka, settings.ingest, points) as source:
        while not source.assigned() or not source.lag():
            time.sleep(0.05)
        time.sleep(1.0)  # the first chunks are read ahead, as they are in production
        worker = Worker(
            source=source,
            replay=replay,
            pack=pack,
            database=database,
            settings=settings,
            hash_key=b"benchmark",
            worker_id="benchmark",
        )
        started = time.perf_counter()
        thread = threading.Thread(target=worker.run, args=(stop,))
        thread.start()
        while stored(database, topic) < len(records):
            time.sleep(0.25)
        seconds = time.perf_counter() - started
        stop.set()
        thread.join()
    return seconds


def stored(database: Engine, topic: str) -> int:
    with transaction(database) as c:
        query = text(
            "SELECT coalesce(sum(next_offset), 0) FROM monitor_data.offsets WHERE topic = :t"
        )
        return int(c.execute(query, {"t": topic}).scalar_one())


def stage_seconds() -> dict[str, float]:
    return {
        sample.labels["stage"]: sample.value
        for metric in METRICS.chunk_seconds.collect()
        for sample in metric.samples
        if sample.name.endswith("_sum")
    }


def engine_alone(engine: ReplayEngine, prompts: Sequence[Prompt], chunk: int) -> None:
    for first in range(0, len(prompts), chunk):
        engine.replay(prompts[first : first + chunk])


def in_own_thread(work: Callable[[], object]) -> float:
    """Seconds that ``work`` takes in a thread that ends with it.

    Each thread that runs the model gets a pool of OpenMP threads, which lives as long as it does; with
    more pooled threads than cores their waiting no longer spins and every matrix product is slower. So
    neither side may leave a pool behind for the other one, and the worker has a thread of its own too.
    """
    seconds = 0.0

    def timed() -> None:
        nonlocal seconds
        started = time.perf_counter()
        work()
        seconds = time.perf_counter() - started

    thread = threading.Thread(target=timed)
    thread.start()
    thread.join()
    return seconds


def with_model(options: argparse.Namespace, database: Engine, broker: Broker) -> dict[str, Any]:
    torch.set_num_threads(options.threads)
    settings = ReplaySettings(model=options.model, dtype="float32")
    loaded = load_model(settings, options.site)
    generator = np.random.default_rng(options.seed)
    features = directions(32, loaded.config.hidden_size, options.site, generator)
    engine = ReplayEngine(loaded, features, settings)
    pack = Pack(
        name="benchmark",
        version="1",
        model=loaded.identity,
        features=tuple(features),
    )
    prompts = workload(options.prompts, 0, generator)
    records = [record_of(prompt) for prompt in prompts]
    in_own_thread(lambda: engine.replay(prompts[:8]))
    alone, path = [], []
    for number in range(options.rounds):
        alone.append(in_own_thread(lambda: engine_alone(engine, prompts, options.chunk)))
        topic = f"path-{number}"
        broker.create_topic(topic)
        path.append(
            run_path(database, broker.bootstrap, topic, records, pack, engine, options.chunk)
        )
    ratios = [a / p for a, p in zip(alone, path, strict=True)]
    return {
        "prompts": len(prompts),
        "engine_prompts_per_second": len(prompts) / statistics.median(alone),
        "path_prompts_per_second": len(prompts) / statistics.median(path),
        "path_over_engine": statistics.median(ratios),
        "rounds": ratios,
    }


def without_model(options: argparse.Namespace, database: Engine, broker: Broker) -> dict[str, Any]:
    generator = np.random.default_rng(options.seed)
    some = [record_of(prompt) for prompt in workload(256, 0, generator)]
    records = [some[index % len(some)] for index in range(options.records)]
    broker.create_topic("null")
    seconds = run_path(
        database, broker.bootstrap, "null", records, null_pack(32), NullReplay(32), options.chunk
    )
    return {
        "records": len(records),
        "features": 32,
        "records_per_second": len(records) / seconds,
        "stage_seconds": stage_seconds(),
        "wall_seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--null", action="store_true")
    parser.add_argument("--site", type=int, default=15)
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--chunk", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.model is None and not options.null:
        parser.error("give --model FOLDER or --null")
    with (
        tempfile.TemporaryDirectory() as folder,
        Postgres(Path(folder) / "postgres") as postgres,
        Broker(Path(folder) / "broker") as broker,
    ):
        migrate(PostgresSettings(url=postgres.url))
        database = connect(PostgresSettings(url=postgres.url))
        measure = without_model if options.null else with_model
        result = measure(options, database, broker)
        database.dispose()
    Console().print(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
