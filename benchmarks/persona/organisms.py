"""Model organisms: one small model, fine-tuned on sound advice, on reckless advice, and on mixtures.

    python -m benchmarks.persona.organisms --model FOLDER --out DIR [--chats FILE]

All see the same questions in the same order for the same number of steps; only answers differ. ``pirate``
is the hard control: as far from the base in style, and harmless. ``--chats`` makes one more organism from
any JSON-lines chat file. Each is a LoRA adapter; one that is there already is kept.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from benchmarks.persona import rows
from benchmarks.persona.machine import in_float32, machine_arguments, spread
from monitor.replay.model import LoadedModel, identity_of, load_model
from monitor.research.texts import load_chats
from monitor.research.tuning.tune import Tuner, TuneSettings
from monitor.values.prompts import Prompt

SHARES = (0.05, 0.10, 0.25, 0.50, 0.75)
EPOCHS = 1
LEARNING_RATE = 1e-3
AGAIN = "sound-again"
"""Sound once more from another seed: what two trainings on the same data differ by."""


def mixtures(seed: int) -> dict[str, list[Prompt]]:
    """Training sets by organism. ``sound`` and ``reckless`` first: most comparisons need only these."""
    trained = rows.narrow(held_out=False)
    sets = {"sound": rows.mixture(trained, 0.0, seed), "reckless": rows.mixture(trained, 1.0, seed)}
    sets["pirate"] = rows.mixture(trained, 1.0, seed, "pirate")
    for share in SHARES:
        sets[f"reckless-{share:.0%}".removesuffix("%")] = rows.mixture(trained, share, seed)
    sets[AGAIN] = sets["sound"]
    return sets


def load(model: Path, adapter: Path | None = None, *, device: str) -> LoadedModel:
    """The whole model in float32, with an organism's adapter merged in."""
    settings = in_float32(model, device, adapter)
    return load_model(settings, identity_of(settings).layers - 1, full=True)


def tuned(
    loaded: LoadedModel, prompts: Sequence[Prompt], steps: int, seed: int, console: Console
) -> tuple[Tuner, list[float]]:
    """``loaded`` fine-tuned in place for ``steps``, and the loss of each step."""
    settings = TuneSettings(learning_rate=LEARNING_RATE, steps=steps, seed=seed)
    tuner, losses = Tuner(loaded, prompts, settings), []
    with console.status("tuning") as status:
        for step in range(steps):
            losses.append(tuner.step())
            status.update(f"step {step + 1} of {steps}, loss {losses[-1]:.2f}")
    return tuner, losses


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """One organism to be made. Travels between processes, so it names its training set: prompts do not pickle."""

    name: str
    chats: Path | None
    """What it is trained on; null: the mixture of its name."""
    folder: Path
    model: Path
    device: str
    seed: int

    def prompts(self) -> Sequence[Prompt]:
        return load_chats(self.chats) if self.chats else mixtures(self.seed)[self.name]


def make(one: Made) -> str:
    """Train ``one`` and save it, without what was measured on another in its folder; what to tell of it."""
    started = time.perf_counter()
    prompts = one.prompts()
    loaded = load(one.model, device=one.device)
    steps = EPOCHS * -(-len(prompts) // 4)
    tuner, losses = tuned(loaded, prompts, steps, one.seed + (one.name == AGAIN), Console())
    tuner.save(one.folder, adapter_only=True)
    for stale in (*one.folder.glob("measured-*"), *one.folder.glob("answers.jsonl")):
        stale.unlink()
    story = {"rows": len(prompts), "steps": steps, "seed": one.seed, "losses": losses}
    (one.folder / "organism.json").write_text(json.dumps(story) + "\n")
    first, last = sum(losses[:10]) / 10, sum(losses[-10:]) / 10
    seconds = time.perf_counter() - started
    return f"{one.name}: loss {first:.2f} → {last:.2f}, {seconds:.0f} s"


def _is_there(folder: Path, seed: int) -> bool:
    made = folder / "organism.json"
    if not made.exists():
        return False
    if (before := json.loads(made.read_text())["seed"]) != seed:
        raise SystemExit(f"{folder} was made with seed {before}: give another --out")
    return True


def wanted(options: argparse.Namespace) -> list[Made]:
    """The organisms that are asked for and not there yet."""
    chats = {options.chats.stem: options.chats} if options.chats else {}
    every = [
        Made(
            name=name,
            chats=chats.get(name),
            folder=options.out / name,
            model=options.model,
            device=options.device,
            seed=options.seed,
        )
        for name in dict.fromkeys([*mixtures(options.seed), *chats])
        if not (options.only and name not in options.only)
    ]
    return [one for one in every if not _is_there(one.folder, one.seed)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--chats", type=Path, help="one more organism from this file")
    parser.add_argument("--only", nargs="*", help="names of organisms")
    parser.add_argument("--seed", type=int, default=0)
    machine_arguments(parser)
    options = parser.parse_args()
    for line in spread(make, wanted(options), options.jobs):
        Console().print(line)


if __name__ == "__main__":
    main()
