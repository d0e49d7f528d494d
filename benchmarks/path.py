"""From the broker to committed rows: beside the engine's own rate, and with no model at all.

    python -m benchmarks.path --model FOLDER [--json FILE]   the real engine
    python -m benchmarks.path --null [--json FILE]           a null replay: where the time goes,
                                                             for every number of --segments
    … --kafka FOLDER                                         Apache Kafka, of which FOLDER/libs holds the jars

Starts an embedded PostgreSQL and a broker: the wheel's, or one of Apache Kafka. With a model, rounds of "engine alone" and "from broker to
rows" alternate on the same prompts, and the ratio is taken round by round.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kafka import KafkaProducer
from prometheus_client.samples import Sample
from rich.console import Console
from sqlalchemy import Engine, text

from benchmarks.null_replay import NullReplay, null_pack
from benchmarks.spent import cpu_seconds, since
from benchmarks.workload import directions, workload
from monitor.canaries import Replay
from monitor.demo.services import Broker, Postgres, create_topic
from monitor.ingest.kafka import KafkaSource
from monitor.lasting import keep_loaded
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
from tests.kafka.apache import Cluster

LOOK_SECONDS = 0.02
"""How often it is asked whether all is stored."""
SEGMENT_KEY = "route"
FEATURES = 32
MODEL_CHUNK = 64
CHUNK_WAIT = timedelta(milliseconds=200)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One way of all records to committed rows, from the start of the first chunk to the last commit."""

    wall_seconds: float
    chunks: int
    stage_seconds: dict[str, float]
    """By the worker's own metrics. Stages overlap, and wait for one another and for Python's lock."""
    cpu_seconds: dict[str, float]
    """What each part spent of a core."""


def record_of(prompt: Prompt, route: str = "chat") -> bytes:
    return json.dumps(
        {
            "messages": [{"role": m.role, "content": m.content} for m in prompt.messages],
            "response": prompt.response,
            "segment": {SEGMENT_KEY: route},
        }
    ).encode()


def run_path(
    database: Engine,
    bootstrap: str,
    topic: str,
    records: Sequence[bytes],
    pack: Pack,
    replay: Replay,
    ingest: IngestSettings,
) -> Run:
    """Send ``records``, and let a worker bring them to the store."""
    send(bootstrap, topic, records)
    settings = Settings(
        kafka=KafkaSettings(
            bootstrap_servers=bootstrap, topics=(topic,), group_id=topic, dead_letter_topic=None
        ),
        ingest=ingest,
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
        keep_loaded()
        stages, scored, chunks = stage_seconds(), prompts_scored(), chunks_stored()
        thread = threading.Thread(target=worker.run, args=(stop,), name="worker")
        spent = cpu_seconds()
        started = time.perf_counter()
        thread.start()
        while prompts_scored() - scored < len(records):
            time.sleep(LOOK_SECONDS)
        run = Run(
            wall_seconds=time.perf_counter() - started,
            chunks=chunks_stored() - chunks,
            stage_seconds=since(stages, stage_seconds()),
            cpu_seconds=since(spent, cpu_seconds()),
        )
        stop.set()
        thread.join()
    if stored(database, topic) != len(records):
        raise AssertionError(f"{stored(database, topic)} of {len(records)} records are stored")
    return run


def send(bootstrap: str, topic: str, records: Sequence[bytes]) -> None:
    producer = KafkaProducer(bootstrap_servers=bootstrap, acks="all", linger_ms=20)
    for record in records:
        producer.send(topic, record)
    producer.flush()
    producer.close()


def stored(database: Engine, topic: str) -> int:
    with transaction(database) as c:
        query = text(
            "SELECT coalesce(sum(next_offset), 0) FROM monitor_data.offsets WHERE topic = :t"
        )
        return int(c.execute(query, {"t": topic}).scalar_one())


def stage_seconds() -> dict[str, float]:
    return {
        sample.labels["stage"]: sample.value for sample in _samples("monitor_chunk_seconds_sum")
    }


def chunks_stored() -> int:
    found = _samples("monitor_chunk_seconds_count")
    return int(sum(sample.value for sample in found if sample.labels["stage"] == "store"))


def prompts_scored() -> int:
    return int(sum(sample.value for sample in _samples("monitor_prompts_scored_total")))


def _samples(name: str) -> list[Sample]:
    """Of the worker's metrics, as `/metrics` shows them."""
    return [
        sample
        for metric in METRICS.registry.collect()
        for sample in metric.samples
        if sample.name == name
    ]


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


def with_model(options: argparse.Namespace, database: Engine, bootstrap: str) -> dict[str, Any]:
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
    chunk = options.chunk or MODEL_CHUNK
    ingest = IngestSettings(chunk_records=chunk, chunk_wait=CHUNK_WAIT)
    alone, path = [], []
    for number in range(options.rounds):
        alone.append(in_own_thread(lambda: engine_alone(engine, prompts, chunk)))
        topic = f"path-{number}"
        create_topic(bootstrap, topic)
        run = run_path(database, bootstrap, topic, records, pack, engine, ingest)
        path.append(run.wall_seconds)
    ratios = [a / p for a, p in zip(alone, path, strict=True)]
    return {
        "prompts": len(prompts),
        "engine_prompts_per_second": len(prompts) / statistics.median(alone),
        "path_prompts_per_second": len(prompts) / statistics.median(path),
        "path_over_engine": statistics.median(ratios),
        "rounds": ratios,
    }


def without_model(options: argparse.Namespace, database: Engine, bootstrap: str) -> dict[str, Any]:
    generator = np.random.default_rng(options.seed)
    prompts = workload(256, 0, generator)
    given = {} if options.chunk is None else {"chunk_records": options.chunk}
    runs: dict[int, list[dict[str, Any]]] = {segments: [] for segments in options.segments}
    if options.add and options.json.exists():
        before = json.loads(options.json.read_text())["segments"]
        runs |= {int(segments): found["rounds"] for segments, found in before.items()}
    for number in range(options.rounds):
        for segments in options.segments:
            topic = f"null-{segments}-{number}"
            create_topic(bootstrap, topic)
            load = os.getloadavg()[0]
            run = run_path(
                database,
                bootstrap,
                topic,
                in_segments(prompts, segments, options.records),
                null_pack(FEATURES),
                NullReplay(FEATURES),
                IngestSettings(**given, segment_keys=(SEGMENT_KEY,) if segments > 1 else ()),
            )
            rate = options.records / run.wall_seconds
            runs[segments].append({"records_per_second": rate, "load": load, **asdict(run)})
            Console().print(f"{segments} segments:", rate, run)
    return {
        "broker": broker_name(options.kafka),
        "records": options.records,
        "features": FEATURES,
        "segments": {
            str(segments): {
                "records_per_second": statistics.median(one["records_per_second"] for one in found),
                "rounds": found,
            }
            for segments, found in runs.items()
        },
    }


def in_segments(prompts: Sequence[Prompt], segments: int, n: int) -> list[bytes]:
    """``n`` records, each in segment ``all`` and, of more than one, in one of the others in turn."""
    routes = max(1, segments - 1)
    some = [
        record_of(prompts[index % len(prompts)], f"route-{index % routes}")
        for index in range(len(prompts) * routes)
    ]
    return [some[index % len(some)] for index in range(n)]


@contextmanager
def broker(folder: Path, kafka: Path | None) -> Iterator[str]:
    """A broker for as long as the context lasts: its address."""
    if kafka is None:
        with Broker(folder) as wheel:
            yield wheel.bootstrap
    else:
        with Cluster(folder, kafka.resolve()) as cluster:
            yield cluster.bootstrap


def broker_name(kafka: Path | None) -> str:
    if kafka is None:
        return f"noida-db {importlib.metadata.version('noida-db')}"
    (jar,) = kafka.glob("libs/kafka_*.jar")
    return f"Apache Kafka {jar.stem.rpartition('-')[2]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--null", action="store_true")
    parser.add_argument("--site", type=int, default=15)
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--records", type=int, default=60_000)
    parser.add_argument("--segments", type=int, nargs="+", default=[1, 20])
    parser.add_argument(
        "--chunk",
        type=int,
        help=f"ingest.chunk_records; without: {MODEL_CHUNK} with a model, else the default",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--kafka",
        type=Path,
        metavar="FOLDER",
        help="Apache Kafka, of which FOLDER/libs holds the jars",
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--add", action="store_true", help="with --null: to the rounds that --json FILE holds"
    )
    options = parser.parse_args()
    if options.model is None and not options.null:
        parser.error("give --model FOLDER or --null")
    if options.add and not (options.null and options.json):
        parser.error("--add goes with --null and --json FILE")
    if options.kafka and not list(options.kafka.glob("libs/kafka_*.jar")):
        parser.error(f"--kafka: {options.kafka} has no libs/kafka_*.jar")
    with (
        tempfile.TemporaryDirectory() as folder,
        Postgres(Path(folder) / "postgres") as postgres,
        broker(Path(folder) / "broker", options.kafka) as bootstrap,
    ):
        migrate(PostgresSettings(url=postgres.url))
        database = connect(PostgresSettings(url=postgres.url))
        measure = without_model if options.null else with_model
        result = measure(options, database, bootstrap)
        database.dispose()
    Console().print(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
