"""``python -m tests.kafka.serve COMMAND …``: the command, with three brokers of Apache Kafka for it.

All its processes share them, as ``MONITOR_TEST_KAFKA_BOOTSTRAP``; tests that end a broker start their own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.kafka.apache import HOME, Cluster, kafka_home


def main() -> int:
    home = kafka_home()
    if home is None or len(sys.argv) < 2:
        print(f"{HOME}=FOLDER python -m tests.kafka.serve COMMAND …", file=sys.stderr)
        return 2
    with (
        tempfile.TemporaryDirectory(prefix="monitor-kafka-") as folder,
        Cluster(Path(folder), home, nodes=3) as cluster,
    ):
        addresses = {HOME: str(home), "MONITOR_TEST_KAFKA_BOOTSTRAP": cluster.bootstrap}
        return subprocess.run(sys.argv[1:], check=False, env={**os.environ, **addresses}).returncode


if __name__ == "__main__":
    sys.exit(main())
