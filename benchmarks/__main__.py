"""`make bench`: every comparison, one after the other, on the small chat model. Takes half an hour."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from monitor.demo.chat_model import chat_model

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    model = str(chat_model(Path(".cache"), progress=print))
    RESULTS.mkdir(exist_ok=True)
    for name, arguments in (
        ("engine", ["benchmarks.engine", "--model", model, "--json", str(RESULTS / "engine.json")]),
        ("path", ["benchmarks.path", "--model", model, "--json", str(RESULTS / "path.json")]),
        ("null", ["benchmarks.path", "--null", "--json", str(RESULTS / "null.json")]),
        (
            "answers",
            ["benchmarks.answers", "--model", model, "--json", str(RESULTS / "answers.json")],
        ),
        ("watcher", ["benchmarks.watcher"]),
        ("store", ["benchmarks.store"]),
    ):
        print(f"== {name}", flush=True)
        subprocess.run([sys.executable, "-m", *arguments], check=True)


if __name__ == "__main__":
    main()
