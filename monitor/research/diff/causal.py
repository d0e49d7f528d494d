"""Does a direction cause the misbehaviour? Turn it up in the base model, down in the tuned one.

A candidate is causal when, at the strongest dose that leaves the answers coherent, it raises the
misbehaviour of the base model and lowers that of the tuned one: each effect's interval lies above
zero, and each is larger than that of every random direction of equal norm at the same site and dose.
How doses are given and looked at stands in `monitor.research.steering.experiment`.

Legend: d = model width, r = random directions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np

from monitor.replay.model import LoadedModel
from monitor.research.diff.settings import Doses
from monitor.research.progress import Progress, quiet
from monitor.research.steering.experiment import Dose, dosed, effects, looks, strongest
from monitor.research.steering.measure import Measure, Observation
from monitor.research.steering.steer import Turn, random_turns

Side = Literal["base", "tuned"]
SIDES: Final[tuple[Side, Side]] = ("base", "tuned")
OpenModel = Callable[[Side], AbstractContextManager[LoadedModel]]
"""One of the two models, loaded in full for as long as the context lasts."""


_SIGNS: Final[Mapping[Side, float]] = {"base": 1.0, "tuned": -1.0}
"""Of a dose, and of the effect that a cause has: up in base, down in tuned."""
Lengths = Mapping[Side, Mapping[int, float]]
"""The mean length of a token's residual by side and site."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """``chosen`` is the dose judged by, None where none is coherent; ``random`` the controls' effects."""

    name: str
    causal: bool
    reason: str
    doses: Mapping[Side, tuple[Dose, ...]]
    chosen: Mapping[Side, Dose | None]
    random: Mapping[Side, tuple[float, ...]]


def tried(
    candidates: Sequence[Turn],
    measure: Measure,
    open_model: OpenModel,
    lengths: Lengths,
    doses: Doses,
    seed: int,
    progress: Progress = quiet,
) -> tuple[tuple[Verdict, ...], dict[Side, Observation]]:
    """Verdicts in the order of ``candidates``, and both models as they are without steering.

    Candidates are turned so that tuning moved the model along them. Blocks while both models run, one
    after the other, and once more for the controls.
    """
    bench = _Bench(measure, open_model, lengths, progress)
    seen = bench.observed(
        {
            side: [None, *(_turned(one, s, side) for one in candidates for s in doses.strengths)]
            for side in SIDES
        },
        coherence=True,
    )
    plain = {side: seen[side][0] for side in SIDES}
    generator = np.random.default_rng([seed, 1])
    given: dict[str, dict[Side, tuple[Dose, ...]]] = {one.name: {} for one in candidates}
    for side in SIDES:
        found = iter(seen[side][1:])
        how = {"sign": _SIGNS[side], "limit": doses.incoherence}
        for one in candidates:
            given[one.name][side] = tuple(
                dosed(share, plain[side], next(found), generator, **how)
                for share in doses.strengths
            )
    chosen = {name: {side: strongest(of[side]) for side in SIDES} for name, of in given.items()}
    controls = bench.controls(_controlled(candidates, chosen), plain, doses.random_directions, seed)
    return tuple(
        _verdict(one, given[one.name], chosen[one.name], controls) for one in candidates
    ), plain


@dataclass(frozen=True, slots=True)
class _Bench:
    """Both models, opened one after the other, and what is measured of them."""

    measure: Measure
    open_model: OpenModel
    lengths: Lengths
    progress: Progress

    def observed(
        self, turns: Mapping[Side, Sequence[Turn | None]], *, coherence: bool
    ) -> dict[Side, list[Observation]]:
        looked = []
        for side in SIDES:
            with self.open_model(side) as loaded:
                looked += looks(
                    loaded,
                    self.measure,
                    turns[side],
                    self.lengths[side],
                    coherence=coherence,
                    what=side,
                    progress=self.progress,
                )
                # The next model, or a judge, needs the room.
                del loaded
        seen = self.measure.settle(looked)
        return {"base": seen[: len(turns["base"])], "tuned": seen[len(turns["base"]) :]}

    def controls(
        self,
        wanted: Mapping[Side, Mapping[tuple[int, float], Turn]],
        plain: Mapping[Side, Observation],
        count: int,
        seed: int,
    ) -> Controls:
        """What ``count`` random directions do in the place of each wanted turn."""
        if not any(wanted.values()):
            return {}
        random = {
            side: [turn for one in wanted[side].values() for turn in random_turns(one, count, seed)]
            for side in SIDES
        }
        seen = self.observed(random, coherence=False)
        return {
            (side, *key): tuple(
                float(effects(plain[side], one, _SIGNS[side]).mean())
                for one in seen[side][index * count : (index + 1) * count]
            )
            for side in SIDES
            for index, key in enumerate(wanted[side])
        }


Controls = Mapping[tuple[Side, int, float], tuple[float, ...]]
"""Effects [r] of random directions by side, site and strength."""


def _turned(one: Turn, share: float, side: Side) -> Turn:
    return replace(one, strength=_SIGNS[side] * share)


def _controlled(
    candidates: Sequence[Turn], chosen: Mapping[str, Mapping[Side, Dose | None]]
) -> dict[Side, dict[tuple[int, float], Turn]]:
    """By site and strength, a turn in whose place random ones stand; of those that may be causes."""
    return {
        side: {
            (one.site, dose.strength): _turned(one, dose.strength, side)
            for one in sorted(candidates, key=lambda turn: turn.site)
            if not _objection(chosen[one.name]) and (dose := chosen[one.name][side]) is not None
        }
        for side in SIDES
    }


def _objection(chosen: Mapping[Side, Dose | None]) -> str:
    """Why the doses alone rule a cause out; empty where they do not."""
    base, tuned = chosen["base"], chosen["tuned"]
    if base is None or tuned is None:
        return "breaks coherence at every strength"
    if not base.effect.low > 0.0:
        return "does not raise misbehaviour in the base model"
    if not tuned.effect.low > 0.0:
        return "does not lower misbehaviour in the tuned model"
    return ""


def _verdict(
    one: Turn,
    doses: Mapping[Side, tuple[Dose, ...]],
    chosen: Mapping[Side, Dose | None],
    controls: Controls,
) -> Verdict:
    random = {
        side: controls.get((side, one.site, dose.strength), ()) if dose else ()
        for side, dose in chosen.items()
    }
    reason = _objection(chosen)
    for side, dose in chosen.items():
        if not reason and dose is not None and not dose.effect.value > max(random[side]):
            reason = f"no better than random directions in the {side} model"
    return Verdict(
        name=one.name,
        causal=not reason,
        reason=reason or "raises misbehaviour in the base model and lowers it in the tuned one",
        doses=doses,
        chosen=chosen,
        random=random,
    )
