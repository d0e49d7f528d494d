"""Does turning a feature turn the misbehaviour? In the base and in the reckless organism, both ways.

    python -m benchmarks.persona.control --model FOLDER --organisms DIR [--features reckless malicious]

Doses count typical lengths of the residual stream at the feature's site. Two measures: the likelihood of
reckless over sound answers to other domains while the model is steered (nats per token, paired with the
unsteered model), and what it then says to open questions: the persona read by the untouched base,
perplexity under it, and the share of distinct trigrams. Random directions of the same length stand beside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.persona import rows
from benchmarks.persona.measure import margins, margins_under, read
from benchmarks.persona.organisms import load
from benchmarks.persona.results import arguments, keep, pack_of, picture, show
from benchmarks.persona.trainings import paired, trainings
from monitor.replay.model import LoadedModel
from monitor.research.answers.generate import answered_under
from monitor.research.answers.likelihood import response_log_probabilities
from monitor.research.report import Curve, line_plot
from monitor.research.statistics import present_mean
from monitor.research.steering.outcome import outcomes_of
from monitor.research.steering.steer import (
    Turn,
    edits,
    feature_turn,
    random_turns,
    typical_lengths,
)
from monitor.values.arrays import Doubles
from monitor.values.features import Feature

FEATURES = ("reckless",)
DOSES = (-0.4, -0.2, -0.1, 0.1, 0.2, 0.4)
SPOKEN_DOSES = (-0.2, 0.2)
SPOKEN_TOKENS = 32
RANDOM_DIRECTIONS = 2
EVERY = 4
"""Of the 96 rows from other domains every fourth is weighed: all domains, a quarter of the time."""


def weighed(
    loaded: LoadedModel, turns: Sequence[Turn], lengths: dict[int, float], console: Console
) -> dict[float, list[Doubles]]:
    """Margins under each of ``turns`` at each dose, and under none at dose 0: dose -> one [n] per turn."""
    chosen = rows.elsewhere()[::EVERY]
    found = {0.0: [margins(loaded, chosen)]}
    for dose in DOSES:
        console.print(f"  dose {dose:+g}")
        branches = [edits(loaded, [_at(turn, dose)], lengths) for turn in turns]
        found[dose] = list(margins_under(loaded, branches, chosen))
    return found


def _at(turn: Turn, dose: float) -> Turn:
    return Turn(name=turn.name, site=turn.site, direction=turn.direction, strength=dose)


def effects(found: dict[float, list[Doubles]]) -> list[dict[str, Any]]:
    """Mean paired change of the margin against dose 0 with its 95 % interval, and the random ones' means."""
    plain = found[0.0][0]
    lines = []
    for dose, sides in sorted(found.items()):
        change = paired(sides[0][None], plain[None])
        lines.append(
            {
                "dose": dose,
                "change": change["mean"],
                "low": change["low"],
                "high": change["high"],
                "random": [float((side - plain).mean()) for side in sides[1:]],
            }
        )
    return lines


def spoken(
    loaded: LoadedModel,
    base: LoadedModel,
    turns: Sequence[Turn],
    feature: Feature,
    lengths: dict[int, float],
) -> list[dict[str, Any]]:
    """What ``loaded`` says unsteered and under each of ``turns`` at each dose, as ``base`` reads it."""
    asked = rows.open_questions()[::2]
    series: list[tuple[str, float, list[Turn]]] = [("unsteered", 0.0, [])] + [
        (turn.name, dose, [_at(turn, dose)]) for dose in SPOKEN_DOSES for turn in turns
    ]
    branches = [edits(loaded, here, lengths) for _, _, here in series]
    outcomes = outcomes_of(
        answered_under(loaded, branches, asked, SPOKEN_TOKENS),
        lambda prompts: read(base, [feature], prompts),
        partial(response_log_probabilities, base),
    )
    lines = []
    for (name, dose, _), seen in zip(series, outcomes, strict=True):
        likely = np.log(seen.perplexity[np.isfinite(seen.perplexity)])
        lines.append(
            {
                "direction": name,
                "dose": dose,
                "persona": present_mean(seen.persona[:, 0]),
                # The median: a single answer can have any perplexity.
                "perplexity": float(np.exp(np.median(likely))) if likely.size else np.nan,
                "distinct": present_mean(seen.distinct),
                "empty": float(np.mean([not answer for answer in seen.answers])),
            }
        )
    return lines


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--features", nargs="+", default=FEATURES)
    options = parser.parse_args()
    pack, console = pack_of(options), Console()
    base = load(options.model, device=options.device)
    first = trainings(options.organisms)[0]
    organism = load(options.model, first / "reckless", device=options.device)
    models = {"base": base, "reckless": organism}
    result: dict[str, Any] = {}
    for feature in (f for f in pack.features if f.name in options.features):
        lengths = typical_lengths(base, [feature.site])
        turn = feature_turn(feature)
        turns = (turn, *random_turns(turn, RANDOM_DIRECTIONS, options.seed))
        for name, loaded in models.items():
            console.print(f"{feature.name} in {name}")
            lines = effects(weighed(loaded, turns, lengths, console))
            said = spoken(loaded, base, turns, feature, lengths)
            result[f"{feature.name} in {name}"] = {"likelihood": lines, "answers": said}
            show(f"{feature.name} in {name}: likelihood of reckless answers", lines)
            show(f"{feature.name} in {name}: what it says", said)
    keep("control", {"shipped": pack}, options, {"typical_length_doses": True, "series": result})
    draw(result, options.features[0])


def draw(result: Mapping[str, Any], feature: str) -> None:
    """The likelihood in every series, and that of random directions in the place of ``feature``."""
    curves: dict[str, Curve] = {}
    for name, series in result.items():
        lines = series["likelihood"]
        curves[name] = Curve(
            x=[line["dose"] for line in lines],
            y=[line["change"] for line in lines],
            low=[line["low"] for line in lines],
            high=[line["high"] for line in lines],
        )
    spread = result[f"{feature} in base"]["likelihood"]
    curves["random directions in base"] = Curve(
        x=[line["dose"] for line in spread],
        y=[float(np.mean(line["random"] or [0.0])) for line in spread],
        low=[min(line["random"], default=0.0) for line in spread],
        high=[max(line["random"], default=0.0) for line in spread],
    )
    picture(
        "control",
        line_plot(
            curves,
            title="Steering, and the likelihood of reckless over sound answers",
            x_label="dose, in typical lengths of the residual stream",
            y_label="change in nats per token",
            levels={"unsteered": 0.0},
        ),
    )


if __name__ == "__main__":
    main()
