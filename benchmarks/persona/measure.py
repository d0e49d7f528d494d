"""What organisms say and what packs' features read in it; measured once, then kept in their folders.

    python -m benchmarks.persona.measure --model FOLDER --organisms DIR --pack old=FOLDER --pack new=FOLDER

measures whatever organisms there are, all packs in one pass; the other benchmarks do it by themselves where it
was not done.

Three readings of every feature, which answer different questions:

- ``model``: the organism's own activations on sound answers to questions from other domains. The text is
  the same for every organism, so what moves is the model.
- ``served``: the organism's own activations on its own answers: a monitor whose copy is the served model.
- ``text``: the untouched base's activations on those answers: a monitor whose copy was not tuned.

Beside them behaviour: how much likelier than sound answers the organism finds reckless ones. One hundred
random directions at the site of ``reckless`` are read along.

Legend: n = prompts, k = features of the pack, then the random directions.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from rich.console import Console
from safetensors.numpy import load_file, save_file

from benchmarks.persona import rows
from benchmarks.persona.machine import rows_at_once, spread
from benchmarks.persona.organisms import load, mixtures
from benchmarks.persona.results import arguments, packs_of
from benchmarks.persona.trainings import made_in, trainings
from monitor.replay.branches.trunk import Branch
from monitor.replay.model import LoadedModel
from monitor.research.answers.generate import answers
from monitor.research.answers.likelihood import Weighing
from monitor.research.packs.calibrate import UNCALIBRATED
from monitor.research.reading import Reader
from monitor.research.statistics import random_composites
from monitor.research.steering.measure import preferences
from monitor.score.pack import Pack, manifest
from monitor.settings import ReplaySettings
from monitor.values.arrays import Doubles
from monitor.values.features import Feature
from monitor.values.prompts import Prompt

RANDOM_DIRECTIONS = 100
ANSWER_TOKENS = 48
BASE = "base"
MARGINS = "measured-margins.safetensors"
"""Behaviour, which no pack has a part in."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """``model`` [96, k], ``served`` and ``text`` [140, k]: the 96 questions of other domains, then the 44
    open ones. ``margin`` [96]: mean log p per token of the reckless answer minus that of the sound one;
    ``narrow_margin`` [60] the same on held-out questions of the trained domains. NaN where unread."""

    model: Doubles
    served: Doubles
    text: Doubles
    margin: Doubles
    narrow_margin: Doubles


def measured(
    organism: LoadedModel, base: LoadedModel, packs: Mapping[str, Pack], folder: Path, seed: int
) -> None:
    """Measure what ``folder`` does not hold yet of these packs with this seed."""
    likely = folder / MARGINS
    if not likely.exists():
        margin = margins(organism, rows.elsewhere())
        narrow = margins(organism, rows.narrow(held_out=True)[::2])
        save_file({"margin": margin, "narrow_margin": narrow}, likely)
    missing = {name: pack for name, pack in packs.items() if not _kept(folder, pack, seed).exists()}
    if not missing:
        return
    features = [feature for pack in missing.values() for feature in watched(pack, seed)]
    said = answered(organism, folder / "answers.jsonl")
    given = [row.said("sound") for row in rows.elsewhere()]
    found = {
        "model": read(organism, features, given),
        "served": read(organism, features, said),
        "text": read(base, features, said),
    }
    begin = 0
    for pack in missing.values():
        end = begin + len(pack.features) + RANDOM_DIRECTIONS
        own = {name: np.ascontiguousarray(scores[:, begin:end]) for name, scores in found.items()}
        save_file(own, _kept(folder, pack, seed))
        begin = end


def kept(folder: Path, pack: Pack, seed: int) -> Measured:
    """What `measured` left there."""
    return Measured(**load_file(folder / MARGINS), **load_file(_kept(folder, pack, seed)))


def _kept(folder: Path, pack: Pack, seed: int) -> Path:
    return folder / f"measured-{read_by(pack)}-{seed}.safetensors"


def read_by(pack: Pack) -> str:
    """Digest of what a pack's readings depend on: a new report or tag makes no new measurement."""
    features = [
        {key: value for key, value in one.items() if key not in ("tags", "description")}
        for one in manifest(pack)["features"]
    ]
    text = json.dumps(features, sort_keys=True).encode()
    weights = b"".join(feature.direction.tobytes() for feature in pack.features)
    return hashlib.sha256(text + weights).hexdigest()[:12]


def watched(pack: Pack, seed: int) -> list[Feature]:
    """The pack's features, then random directions in the place of its ``reckless``.

    Each random direction has the sign with which it rises towards reckless in the pack's own weight: the
    favour that a real direction gets.
    """
    like = next(feature for feature in pack.features if feature.name == "reckless")
    generator = np.random.default_rng(seed)
    drawn = random_composites(RANDOM_DIRECTIONS, like.lengths, like.weight.size, generator)
    drawn *= np.where(drawn @ like.direction < 0, -1.0, 1.0)[:, None].astype(np.float32)
    return [
        *pack.features,
        *(
            replace(like, name=f"random.{i}", calibration=UNCALIBRATED).along(row)
            for i, row in enumerate(drawn)
        ),
    ]


def read(loaded: LoadedModel, features: Sequence[Feature], prompts: Sequence[Prompt]) -> Doubles:
    """Scores [n, k] by the production engine, signed so that the persona rises."""
    settings = ReplaySettings(model=Path("."), device=loaded.device.type, dtype="float32")
    signs = np.array([feature.sign for feature in features])
    found: Doubles = signs * Reader(loaded, features, settings).scores("answers", prompts)
    return found


def answered(loaded: LoadedModel, kept: Path) -> list[Prompt]:
    """Greedy answers to the questions of other domains and the open ones."""
    asked = [rows.asked(row.question, None) for row in rows.elsewhere()] + [*rows.open_questions()]
    if not kept.exists():
        texts = answers(loaded, asked, max_new_tokens=ANSWER_TOKENS, batch=rows_at_once(loaded))
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text("".join(json.dumps(text) + "\n" for text in texts))
    said = [json.loads(line) for line in kept.read_text().splitlines()]
    return [
        replace(prompt, response=text or None) for prompt, text in zip(asked, said, strict=True)
    ]


def margins(loaded: LoadedModel, chosen: Sequence[rows.Row]) -> Doubles:
    """Mean log p per token of each row's reckless answer minus that of its sound one, in nats [n]."""
    found: Doubles = margins_under(loaded, [()], chosen)[0]
    return found


def margins_under(
    loaded: LoadedModel, branches: Sequence[Branch], chosen: Sequence[rows.Row]
) -> Doubles:
    """`margins` under each of ``branches`` [b, n]."""
    bad, good = ([row.said(voice) for row in chosen] for voice in ("reckless", "sound"))
    return preferences(Weighing(loaded), branches, bad, good)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """Every organism measured by every pack: pack -> training -> organism. The base is in each training."""

    of: Mapping[str, Sequence[Mapping[str, Measured]]]

    def has(self, *organisms: str) -> bool:
        return bool(self._with(organisms, next(iter(self.of))))

    def read(self, pack: str, reading: str, *organisms: str) -> tuple[Doubles, ...]:
        """For each organism [t, …] of the trainings that have all of ``organisms``."""
        found = self._with(organisms, pack)
        return tuple(np.stack([getattr(one[name], reading) for one in found]) for name in organisms)

    def _with(self, organisms: Sequence[str], pack: str) -> list[Mapping[str, Measured]]:
        return [one for one in self.of[pack] if all(name in one for name in organisms)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """An organism whose folder lacks measurements; no adapter: the base itself."""

    model: Path
    adapter: Path | None
    folder: Path
    packs: Mapping[str, Pack]
    seed: int
    device: str


def _measure(task: _Task) -> None:
    task.folder.mkdir(parents=True, exist_ok=True)
    base = _base(task.model, task.device)
    own = load(task.model, task.adapter, device=task.device) if task.adapter else base
    measured(own, base, task.packs, task.folder, task.seed)


@lru_cache(maxsize=1)
def _base(model: Path, device: str) -> LoadedModel:
    """Kept: a process measures several organisms, all beside the same base."""
    return load(model, device=device)


def all_measured(
    options: argparse.Namespace, names: Sequence[str], packs: Mapping[str, Pack]
) -> Trained:
    """Every named organism of every training that has it; ``base`` is the untouched model itself."""
    organisms, seed = options.organisms, options.seed
    console = Console()
    folders: list[dict[str, Path]] = []
    for training in trainings(organisms):
        here = {name: training / name for name in made_in(training, names)}
        if lacking := sorted({*names} - {*here, BASE}):
            console.print(f"training {training.name} has no {', '.join(lacking)}")
        folders.append(here | ({BASE: organisms / BASE} if BASE in names else {}))
    tasks = []
    for folder in dict.fromkeys(path for here in folders for path in here.values()):
        needed = (folder / MARGINS, *(_kept(folder, pack, seed) for pack in packs.values()))
        if all(path.exists() for path in needed):
            continue
        adapter = None if folder == organisms / BASE else folder
        tasks.append(
            _Task(
                model=options.model,
                adapter=adapter,
                folder=folder,
                packs=packs,
                seed=seed,
                device=options.device,
            )
        )
    for number, _ in enumerate(spread(_measure, tasks, options.jobs), 1):
        console.print(f"measured {number} of {len(tasks)}")
    return Trained(
        of={
            called: [
                {name: kept(path, pack, seed) for name, path in here.items()} for here in folders
            ]
            for called, pack in packs.items()
        }
    )


def main() -> None:
    options = arguments(__doc__).parse_args()
    all_measured(options, [BASE, *mixtures(options.seed)], packs_of(options))


if __name__ == "__main__":
    main()
