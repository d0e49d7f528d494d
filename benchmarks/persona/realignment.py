"""How many good examples bring the reckless organism back, from its own domains or from others?

    python -m benchmarks.persona.realignment --model FOLDER --organisms DIR

One pass over n good examples at batch 4 and a constant learning rate: the run over 400 examples goes
through the runs over fewer, so each kind is tuned once and measured on the way. In-domain examples are
sound answers to questions of the trained domains, other-domain ones the pack's benign exchanges. Measured
on neither: features and likelihood on rows of other domains, paired with the ``sound`` organism.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.persona import rows
from benchmarks.persona.measure import margins, read, watched
from benchmarks.persona.organisms import load
from benchmarks.persona.results import arguments, keep, pack_of, picture, show
from benchmarks.persona.trainings import paired, trainings
from monitor.replay.model import LoadedModel
from monitor.research.report import Curve, line_plot
from monitor.research.texts import load_texts
from monitor.research.tuning.tune import Tuner, TuneSettings
from monitor.values.arrays import Doubles
from monitor.values.features import Feature
from monitor.values.prompts import Prompt

EXAMPLES = (0, 8, 16, 32, 64, 120, 200, 400)
BATCH = 4
LEARNING_RATE = 2e-4
EVERY = 3
"""Of the 96 rows from other domains every third is looked at: all domains, a third of the time."""


def good_examples(seed: int) -> dict[str, list[Prompt]]:
    """Four hundred of each kind, in a drawn order."""
    own = [row.said("sound") for held in (False, True) for row in rows.narrow(held_out=held)]
    texts = load_texts()
    other = [*texts.fit, *texts.check]
    generator = np.random.default_rng(seed)
    return {
        kind: [pool[index] for index in generator.permutation(len(pool))[: EXAMPLES[-1]]]
        for kind, pool in (("in-domain", own), ("other-domain", other))
    }


class Look:
    """Features and likelihood of a model on the rows of other domains."""

    def __init__(self, features: list[Feature]) -> None:
        self.features = features
        self._rows = rows.elsewhere()[::EVERY]
        self._given = [row.said("sound") for row in self._rows]

    def __call__(self, loaded: LoadedModel) -> dict[str, Doubles]:
        scores = read(loaded, self.features, self._given)
        seen = {feature.name: scores[:, i] for i, feature in enumerate(self.features)}
        return seen | {"likelihood": margins(loaded, self._rows)}


def returned(
    loaded: LoadedModel, examples: list[Prompt], look: Look, seed: int, console: Console
) -> dict[int, dict[str, Doubles]]:
    """What `Look` saw of ``loaded`` after each number of examples."""
    settings = TuneSettings(
        learning_rate=LEARNING_RATE,
        steps=len(examples) // BATCH,
        batch=BATCH,
        warmup_steps=2,
        schedule="constant",
        seed=seed,
    )
    seen = {0: look(loaded)}
    tuner = Tuner(loaded, examples, settings)
    for number in EXAMPLES[1:]:
        while tuner.steps_done * BATCH < min(number, len(examples)):
            tuner.step()
        seen[number] = look(loaded)
        console.print(f"  {number} examples: likelihood {seen[number]['likelihood'].mean():+.3f}")
    return seen


def main() -> None:
    options = arguments(__doc__).parse_args()
    pack, console = pack_of(options), Console()
    look = Look(watched(pack, options.seed)[: len(pack.features)])
    first = trainings(options.organisms)[0]
    sound = look(load(options.model, first / "sound", device=options.device))
    result: dict[str, Any] = {}
    for kind, examples in good_examples(options.seed).items():
        console.print(kind)
        loaded = load(options.model, first / "reckless", device=options.device)
        seen = returned(loaded, examples, look, options.seed, console)
        result[kind] = {
            number: {name: _compared(values, sound[name]) for name, values in one.items()}
            for number, one in seen.items()
        }
        show(
            f"{kind}: difference to the sound organism",
            [
                {"measure": n} | {str(k): result[kind][k][n]["mean"] for k in EXAMPLES}
                for n in sound
            ],
        )
    keep("realignment", {"shipped": pack}, options, {"batch": BATCH, "examples": result})
    curves = {
        f"{measure}, {kind}": _of_the_start(result[kind], measure)
        for measure in ("likelihood", "reckless")
        for kind in result
    }
    picture(
        "realignment",
        line_plot(
            curves,
            title="Good examples, and what is left of the reckless organism",
            x_label="good examples, batch 4",
            y_label="share of the difference before",
            levels={"sound": 0.0},
        ),
    )


def _compared(ours: Doubles, sound: Doubles) -> dict[str, float]:
    found = paired(ours[None], sound[None])
    return {name: found[name] for name in ("mean", "low", "high")}


def _of_the_start(seen: dict[int, dict[str, dict[str, float]]], measure: str) -> Curve:
    start = abs(seen[0][measure]["mean"]) or 1.0
    values = [seen[number][measure] for number in EXAMPLES]
    return Curve(
        x=list(EXAMPLES),
        y=[one["mean"] / start for one in values],
        low=[one["low"] / start for one in values],
        high=[one["high"] / start for one in values],
    )


if __name__ == "__main__":
    main()
