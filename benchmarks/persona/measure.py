"""What an organism says and what the pack's features read in it; measured once, then kept in its folder.

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

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from scipy import stats

from benchmarks.persona import rows
from benchmarks.persona.organisms import load
from monitor.replay.model import LoadedModel
from monitor.research.answers.generate import answers
from monitor.research.packs.calibrate import UNCALIBRATED
from monitor.research.reading import Reader
from monitor.research.statistics import random_composites
from monitor.research.steering.measure import preference
from monitor.score.pack import Pack, manifest
from monitor.settings import ReplaySettings
from monitor.values.arrays import Doubles
from monitor.values.features import Feature
from monitor.values.prompts import Prompt

RANDOM_DIRECTIONS = 100
ANSWER_TOKENS = 48


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
    name: str, organism: LoadedModel, base: LoadedModel, pack: Pack, folder: Path, seed: int
) -> Measured:
    """As `Measured`; from ``folder`` where that was done before with the same features and seed."""
    kept = folder / f"measured-{read_by(pack)}-{seed}.safetensors"
    if not kept.exists():
        features = watched(pack, seed)
        said = answered(organism, folder / "answers.jsonl")
        given = [row.said("sound") for row in rows.elsewhere()]
        found = Measured(
            model=read(organism, features, given),
            served=read(organism, features, said),
            text=read(base, features, said),
            margin=margins(organism, rows.elsewhere()),
            narrow_margin=margins(organism, rows.narrow(held_out=True)[::2]),
        )
        save_file(asdict(found), kept)
    return Measured(**load_file(kept))


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
        texts = answers(loaded, asked, max_new_tokens=ANSWER_TOKENS)
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text("".join(json.dumps(text) + "\n" for text in texts))
    said = [json.loads(line) for line in kept.read_text().splitlines()]
    return [
        replace(prompt, response=text or None) for prompt, text in zip(asked, said, strict=True)
    ]


def margins(loaded: LoadedModel, chosen: Sequence[rows.Row]) -> Doubles:
    """Mean log p per token of each row's reckless answer minus that of its sound one, in nats [n]."""
    return preference(loaded, *([row.said(v) for row in chosen] for v in ("reckless", "sound")))


def paired(ours: Doubles, theirs: Doubles) -> dict[str, float]:
    """Mean paired difference over n questions, its 95 % interval and the one-sided p-value (Student's t)."""
    difference = (ours - theirs)[np.isfinite(ours) & np.isfinite(theirs)]
    mean, error = float(difference.mean()), float(stats.sem(difference))
    if not error > 0.0:
        return {"n": len(difference), "mean": mean, "low": mean, "high": mean, "p": 1.0}
    low, high = stats.t.interval(0.95, len(difference) - 1, mean, error)
    p = float(stats.t.sf(mean / error, len(difference) - 1))
    return {"n": len(difference), "mean": mean, "low": float(low), "high": float(high), "p": p}


def all_measured(
    model: Path, organisms: Path, names: Sequence[str], pack: Pack, seed: int
) -> dict[str, Measured]:
    """Every named organism measured; ``base`` is the untouched model itself."""
    base = load(model)
    found = {}
    for name in names:
        folder = organisms / name
        loaded = base if name == "base" else load(model, folder)
        found[name] = measured(name, loaded, base, pack, folder, seed)
    return found
