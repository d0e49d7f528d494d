"""`make persona`: every proof about persona features on the small chat model. Takes some hours on two cores.

The SAE's recipe is apart (`python -m benchmarks.persona.sae`): its library needs an environment of its own.
Organisms and their measurements are kept in ``.cache/organisms`` and not made twice.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

from monitor.demo.chat_model import chat_model

PROOFS = ("discrimination", "early_warning", "control", "realignment", "traffic")
SEEDS = (0, 1, 2)
"""Of three trainings of each organism."""


def main() -> None:
    if importlib.util.find_spec("river") is None:
        sys.exit("the last proof, traffic, needs river: .venv/bin/pip install river")
    model = str(chat_model(Path(".cache"), progress=print))
    organisms = str(Path(".cache") / "organisms")
    steps = [
        ["organisms", "--model", model, "--out", f"{organisms}/{seed}", "--seed", f"{seed}"]
        for seed in SEEDS
    ]
    steps += [[name, "--model", model, "--organisms", organisms] for name in PROOFS]
    steps.append(["storms", "--model", model])
    for name, *arguments in steps:
        print(f"== {name}", flush=True)
        subprocess.run([sys.executable, "-m", f"benchmarks.persona.{name}", *arguments], check=True)


if __name__ == "__main__":
    main()
