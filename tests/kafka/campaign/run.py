"""A campaign: faults one after another under load, and what is left of it in the end.

    MONITOR_TEST_KAFKA_HOME=FOLDER python -m tests.kafka.campaign.run --faults 100 --seed 1

Three brokers of Apache Kafka, one to four workers and a database, all new. After every fault something must be
stored again; in the end (and before a topic is deleted) the store is held against the topic, record
by record. The same seed gives the same faults; what they meet depends on the machine. ``--minutes`` ends a campaign
early, with the faults that came until then.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from monitor.demo.services import Postgres
from monitor.settings import PostgresSettings
from monitor.store.database import migrate
from tests.kafka.apache import HOME, Cluster, kafka_home
from tests.kafka.campaign.inflict import inflict
from tests.kafka.campaign.load import Load
from tests.kafka.campaign.schedule import Kind, schedule
from tests.kafka.campaign.stage import PARTITIONS, TOPIC, Outcome, Stage, Workers

PER_SECOND = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    silences: dict[Kind, list[float]]
    """By kind, for each fault: seconds from its end until something was stored again."""
    outcome: Outcome
    refused: int
    """Records that the producer gave up: on the topic or not, they count as what the topic says."""
    seconds: float

    def table(self) -> str:
        lines = ["| fault | times | seconds until records were stored again: median, longest |"]
        lines += ["|---|---|---|"]
        for kind, silences in self.silences.items():
            middle, longest = statistics.median(silences), max(silences)
            lines.append(f"| {kind} | {len(silences)} | {middle:.1f}, {longest:.1f} |")
        faults = sum(map(len, self.silences.values()))
        end = self.outcome
        lines.append(
            f"\n{faults} faults in {self.seconds / 60:.0f} minutes, {end.records} records: {end.lost} lost, "
            f"{end.doubled} stored twice. Given up by the producer: {self.refused}; acknowledged and then "
            f"not on the topic: {end.acknowledged_and_gone}."
        )
        return "\n".join(lines)


def campaign(
    folder: Path,
    cluster: Cluster,
    url: str,
    *,
    faults: int,
    seed: int,
    minutes: float = math.inf,
    tell: Callable[[str], object] = print,
) -> Result:
    """Raises `AssertionError` where something does not hold. ``url`` is a migrated database's.

    No fault begins later than after ``minutes``.
    """
    started = time.monotonic()
    silences: dict[Kind, list[float]] = defaultdict(list)
    cluster.create_topic(TOPIC, partitions=PARTITIONS)
    workers = Workers(folder, cluster.bootstrap, url)
    with ExitStack() as stack:
        load = stack.enter_context(Load(cluster.bootstrap, TOPIC, per_second=PER_SECOND))
        stack.callback(workers.close)
        workers.start()
        stage = Stage(cluster, workers, load, url)
        stage.reads_on()
        for number, fault in enumerate(schedule(faults, seed), start=1):
            if time.monotonic() - started > 60 * minutes:
                break
            silence = inflict(fault, stage)
            silences[fault.kind].append(silence)
            tell(
                f"{number:4}  {time.monotonic() - started:6.0f} s  {fault}; stored again after {silence:.1f} s"
            )
        with load.paused():
            outcome = stage.require_exact()
            refused = load.refused
    return Result(
        silences=dict(sorted(silences.items())),
        outcome=outcome,
        refused=refused,
        seconds=time.monotonic() - started,
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.kafka.campaign.run")
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=math.inf)
    given = parser.parse_args()
    home = kafka_home()
    if home is None:
        parser.error(f"set {HOME} to a folder with libs/*.jar")
    with tempfile.TemporaryDirectory(prefix="monitor-campaign-") as name, ExitStack() as stack:
        folder = Path(name)
        folder.chmod(0o755)
        postgres = stack.enter_context(Postgres(folder / "postgres"))
        migrate(PostgresSettings(url=postgres.url))
        cluster = stack.enter_context(Cluster(folder / "kafka", home, nodes=3))
        (folder / "workers").mkdir()

        def tell(line: str) -> None:
            print(line, flush=True)

        result = campaign(
            folder / "workers",
            cluster,
            postgres.url,
            faults=given.faults,
            seed=given.seed,
            minutes=given.minutes,
            tell=tell,
        )
    print(result.table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
