"""How long one watcher evaluation takes over a long history.

    python benchmarks/watcher.py --days 30 --features 32 --segments 20

Fills an embedded PostgreSQL with buckets of every minute (`--fine-days` of them, as
``postgres.keep_fine_buckets`` would keep) and of every hour before, approves a baseline of the first
week, and times whole steps: windows of 15 minutes, one hour, 24 hours and, with ``--long``, the whole
history; detectors, rules, alerts and history included. Prints JSON;
``watcher_cpu_seconds`` is the watcher's own share, which a busy machine does not stretch.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import structlog
from sqlalchemy import Engine, text

from monitor import operate
from monitor.demo.services import Postgres
from monitor.drift.histogram import floor_time, histogram_of
from monitor.evaluation import Evaluation
from monitor.settings import DriftSettings, PackSettings, PostgresSettings, Settings
from monitor.store.baselines import approve_baseline
from monitor.store.database import connect, migrate, transaction
from monitor.store.packs import lineage_id_of, register_pack
from monitor.store.workers import heartbeat
from monitor.values.features import Calibration, Feature
from monitor.values.scores import SCORE_BINS, Lineage
from monitor.watcher import Watcher

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)

PER_MINUTE = 30


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--days", type=int, default=30)
    arguments.add_argument("--fine-days", type=float, default=2.0)
    arguments.add_argument("--features", type=int, default=32)
    arguments.add_argument("--segments", type=int, default=20)
    arguments.add_argument("--packs", type=int, default=1, help="so many, each with such a history")
    arguments.add_argument("--steps", type=int, default=5)
    arguments.add_argument("--long", action="store_true", help="a window over all days as well")
    arguments.add_argument("--explain", action="store_true", help="profile the last step")
    given = arguments.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    with (
        tempfile.TemporaryDirectory() as folder,
        Postgres(Path(folder) / "postgres") as server,
    ):
        url = server.create_database("monitor")
        migrate(PostgresSettings(url=url))
        database = connect(PostgresSettings(url=url, statement_timeout=timedelta(minutes=30)))
        print(json.dumps(measure(database, given), indent=2))
        database.dispose()


def measure(database: Engine, given: argparse.Namespace) -> dict[str, object]:
    now = floor_time(datetime.now(UTC), MINUTE)
    begun = time.perf_counter()
    packs = [f"benchmark-{index}" for index in range(given.packs)]
    rows = [fill(database, given, now, pack) for pack in packs]
    filled = time.perf_counter() - begun
    windows = {"15m": 15 * MINUTE, "1h": HOUR, "24h": DAY}
    if given.long:
        windows["all"] = given.days * DAY
    settings = Settings(
        drift=DriftSettings(windows=windows), pack=PackSettings(allow_unjudged=True)
    )
    begun = time.perf_counter()
    with transaction(database) as c:
        start = now - given.days * DAY
        for pack in packs:
            made = operate.capture_baseline(
                c,
                settings,
                name="first week",
                start=start,
                end=start + 7 * DAY,
                now=now,
                pack=pack,
            )
            approve_baseline(c, made.baseline_id, "benchmark", now)
    captured = time.perf_counter() - begun
    clock = [now + timedelta(seconds=40) - given.steps * MINUTE]
    watcher = Watcher(database, settings, clock=lambda: clock[0])
    seconds, cpu, compared = [], [], 0
    for step in range(given.steps):
        clock[0] += MINUTE
        with transaction(database) as c:
            for pack in packs:
                heartbeat(c, pack, "monitor", pack, "running", clock[0])
        begun, ours = time.perf_counter(), time.process_time()
        if given.explain and step == given.steps - 1:
            compared = len(profiled(watcher).drifts)
        else:
            compared = len(watcher.step().drifts)
        seconds.append(time.perf_counter() - begun)
        cpu.append(time.process_time() - ours)
    return {
        "days": given.days,
        "packs": given.packs,
        "streams_of_a_pack": given.features * given.segments,
        "rows": rows,
        "fill_seconds": round(filled, 1),
        "capture_seconds": round(captured, 2),
        "comparisons": compared,
        "first_step_seconds": round(seconds[0], 3),
        "step_seconds_median": round(statistics.median(seconds[1:]), 3),
        "step_seconds_worst": round(max(seconds[1:]), 3),
        "watcher_cpu_seconds_median": round(statistics.median(cpu[1:]), 3),
        "load_average": os.getloadavg()[0],
        "all_seconds": [round(s, 3) for s in seconds],
    }


def profiled(watcher: Watcher) -> Evaluation:
    import cProfile
    import pstats

    profile = cProfile.Profile()
    found = profile.runcall(watcher.step)
    pstats.Stats(profile).sort_stats("cumulative").print_stats(35)
    return found


def fill(database: Engine, given: argparse.Namespace, now: datetime, pack: str) -> dict[str, int]:
    """Synthetic buckets of one pack; returns the numbers of rows."""
    random = np.random.default_rng(1)
    features = tuple(
        Feature(
            name=f"feature-{index}",
            kind="direction",
            site=15,
            region="response",
            pooling="mean",
            weight=np.ones(4, dtype=np.float32),
            calibration=Calibration(tokens=(1,), means=(0,), deviations=(1,)),
        )
        for index in range(given.features)
    )
    segments = ["all", *(f"route=/{index}" for index in range(given.segments - 1))]
    with transaction(database) as c:
        register_pack(c, pack, pack, {}, features)
        lineage = lineage_id_of(
            c,
            Lineage(
                pack_id=pack,
                model_id="m",
                model_hash="0123456789ab",
                dtype="float32",
                attention="sdpa",
                device="cpu",
                engine="1",
                rules="{}",
            ),
        )
    start, fine = now - given.days * DAY, floor_time(now - given.fine_days * DAY, HOUR)
    whole_hours = floor_time(now, HOUR)
    hourly = copy(
        database,
        "buckets_hourly",
        start,
        whole_hours,
        HOUR,
        60,
        lineage,
        features,
        segments,
        random,
    )
    minutes = copy(database, "buckets", fine, now, MINUTE, 1, lineage, features, segments, random)
    with database.connect().execution_options(isolation_level="AUTOCOMMIT") as c:
        c.execute(text("VACUUM ANALYZE"))
    with transaction(database) as c:
        # The hour that has not ended is told by its fine buckets.
        c.execute(
            text("""
                INSERT INTO monitor_data.touched_hours (hour, lineage_id, source)
                VALUES (:hour, :lineage, 'prompts/0')
            """),
            {"hour": whole_hours, "lineage": lineage},
        )
    return {"hourly": hourly, "fine": minutes}


def copy(
    database: Engine,
    table: str,
    start: datetime,
    end: datetime,
    step: timedelta,
    minutes: int,
    lineage: int,
    features: tuple[Feature, ...],
    segments: list[str],
    random: np.random.Generator,
) -> int:
    """COPY one row per interval, feature and segment; a few hundred drawn samples are reused."""
    n = PER_MINUTE * minutes
    drawn = []
    for _ in range(200):
        scores = random.normal(size=n)
        histogram = histogram_of(scores)
        assert histogram.size == SCORE_BINS
        array = "{" + ",".join(map(str, histogram)) + "}"
        drawn.append((int((scores > 3).sum()), scores.sum(), (scores**2).sum(), array))
    fine = table == "buckets"
    extra = "source, bucket_seconds, " if fine else ""
    written = 0
    with database.begin() as c:
        driver = c.connection.driver_connection
        assert driver is not None
        cursor = driver.cursor()
        with cursor.copy(
            f"COPY monitor_data.{table} (bucket_start, lineage_id, feature, segment, {extra}n,"
            " tail_count, total, total_squares, histogram) FROM STDIN"
        ) as into:
            moment = start
            while moment < end:
                choice = random.integers(0, len(drawn), size=(len(features), len(segments)))
                for feature in range(len(features)):
                    for number, segment in enumerate(segments):
                        key = [moment, lineage, feature, segment]
                        key += ["prompts/0", 60] if fine else []
                        into.write_row((*key, n, *drawn[choice[feature, number]]))
                        written += 1
                moment += step
    return written


if __name__ == "__main__":
    main()
