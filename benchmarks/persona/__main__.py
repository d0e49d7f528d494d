"""`make persona`: every proof about persona features on the small chat model. Takes some hours on two cores.

Organisms and their measurements are kept in ``.cache/organisms`` and not made twice.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from monitor.demo.chat_model import chat_model

PROOFS = ("discrimination", "early_warning", "control", "realignment", "traffic")


def main() -> None:
    model = str(chat_model(Path(".cache"), progress=print))
    organisms = str(Path(".cache") / "organisms")
    steps = [["organisms", "--model", model, "--out", organisms]]
    steps += [[name, "--model", model, "--organisms", organisms] for name in PROOFS]
    for name, *arguments in steps:
        print(f"== {name}", flush=True)
        subprocess.run([sys.executable, "-m", f"benchmarks.persona.{name}", *arguments], check=True)


if __name__ == "__main__":
    main()
