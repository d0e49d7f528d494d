"""Does a direction cause the misbehaviour? Turn it up in the base model, down in the tuned one.

A candidate is causal when, at the strongest dose that leaves the answers coherent, it raises the
misbehaviour of the base model and lowers that of the tuned one: each effect's interval lies above
zero, and each is larger than that of every random direction of equal norm at the same site and dose
(of r random directions and one that is no better, the one is largest with probability 1/(r + 1)).
The dose is chosen by coherence alone, never by the effect.

Legend: q = questions, d = model width, r = random directions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import torch

from monitor.errors import BadInput
from monitor.replay.model import LoadedModel
from monitor.replay.taps import Edit
from monitor.research.diff.change import mean_interval
from monitor.research.diff.measure import Look, Measure, Observation
from monitor.research.packs.assemble import Progress
from monitor.research.steering.steer import FIRST_STEERED
from monitor.values.arrays import Doubles, Floats

Side = Literal["base", "tuned"]
SIDES: Final[tuple[Side, Side]] = ("base", "tuned")
OpenModel = Callable[[Side], AbstractContextManager[LoadedModel]]
"""One of the two models, loaded in full for as long as the context lasts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Steering:
    """A unit ``direction`` [d] at ``site``, turned so that tuning moved the model along it."""

    name: str
    site: int
    direction: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Doses:
    """``strengths`` are shares of the mean length of a token's residual at the site."""

    strengths: tuple[float, ...] = (0.1, 0.2, 0.4)
    random_directions: int = 19
    incoherence: float = 0.10
    """How much larger the share of incoherent answers may be than without steering."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dose:
    """``effect`` is in the direction that a cause would have: up in base, down in tuned."""

    strength: float
    effect: float
    low: float
    high: float
    incoherent: float
    coherent: bool


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
    candidates: Sequence[Steering],
    measure: Measure,
    open_model: OpenModel,
    lengths: Mapping[tuple[Side, int], float],
    doses: Doses,
    seed: int,
    progress: Progress = lambda line: None,
) -> tuple[tuple[Verdict, ...], dict[Side, Observation]]:
    """Verdicts in the order of ``candidates``, and both models as they are without steering.

    ``lengths`` are mean lengths of a token's residual by side and site. Blocks while both models run,
    one after the other, and once more for the controls.
    """
    trials = [(one.site, one.direction, share) for one in candidates for share in doses.strengths]
    seen = _observed(
        dict.fromkeys(SIDES, trials), measure, open_model, lengths, progress, plain=True
    )
    plain = {side: seen[side][0] for side in SIDES}
    generator = np.random.default_rng([seed, 1])
    by_name: dict[str, dict[Side, tuple[Dose, ...]]] = defaultdict(dict)
    for side in SIDES:
        found = iter(seen[side][1:])
        for one in candidates:
            by_name[one.name][side] = tuple(
                _dose(share, side, plain[side], next(found), doses, generator)
                for share in doses.strengths
            )
    chosen = {name: {side: _strongest(of[side]) for side in SIDES} for name, of in by_name.items()}
    promising = [one for one in candidates if not _objection(chosen[one.name])]
    controls = _controls(
        promising, chosen, measure, open_model, lengths, doses, seed, plain, progress
    )
    return tuple(
        _verdict(one, by_name[one.name], chosen[one.name], controls) for one in candidates
    ), plain


Trial = tuple[int, Floats, float]
"""Site, unit direction [d] and strength."""
Control = tuple[Side, int, float]
"""Side, site and strength."""


def _controls(
    promising: Sequence[Steering],
    chosen: Mapping[str, Mapping[Side, Dose | None]],
    measure: Measure,
    open_model: OpenModel,
    lengths: Mapping[tuple[Side, int], float],
    doses: Doses,
    seed: int,
    plain: Mapping[Side, Observation],
    progress: Progress,
) -> dict[Control, tuple[float, ...]]:
    """Effects [r] of random directions by side, site and strength; the same ones for each strength."""
    wanted: dict[Side, list[tuple[int, float]]] = {
        side: sorted(
            {
                (one.site, dose.strength)
                for one in promising
                if (dose := chosen[one.name][side]) is not None
            }
        )
        for side in SIDES
    }
    if not promising:
        return {}
    count, width = doses.random_directions, promising[0].direction.size
    trials = {
        side: [
            (site, direction, share)
            for site, share in wanted[side]
            for direction in random_units(count, width, seed + site)
        ]
        for side in SIDES
    }
    seen = _observed(trials, measure, open_model, lengths, progress)
    return {
        (side, site, share): tuple(
            float(_effects(side, plain[side], one).mean())
            for one in seen[side][index * count : (index + 1) * count]
        )
        for side in SIDES
        for index, (site, share) in enumerate(wanted[side])
    }


def random_units(count: int, width: int, seed: int) -> Floats:
    """Directions [count, d] of length one, uniform on the sphere."""
    drawn = np.random.default_rng([seed, 2]).standard_normal((count, width))
    units: Floats = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)
    return units


def _observed(
    trials: Mapping[Side, Sequence[Trial]],
    measure: Measure,
    open_model: OpenModel,
    lengths: Mapping[tuple[Side, int], float],
    progress: Progress,
    *,
    plain: bool = False,
) -> dict[Side, list[Observation]]:
    """Observations of each side under its trials; with ``plain``, coherence as well, and the unsteered
    model before them."""
    looks: list[Look] = []
    for side in SIDES:
        sign = 1.0 if side == "base" else -1.0
        with open_model(side) as loaded:
            look = measure.on(loaded)
            if plain:
                looks.append(look([], True))
            for number, (site, direction, share) in enumerate(trials[side], 1):
                progress(f"steering {side}: {number} of {len(trials[side])}")
                edit = Edit(
                    site=site,
                    direction=torch.from_numpy(direction),
                    add=sign * share * lengths[side, site],
                    first_position=FIRST_STEERED,
                )
                looks.append(look([edit], plain))
            # It holds the model; the next one, or a judge, needs the room.
            del look, loaded
    seen = measure.settle(looks)
    first = len(trials["base"]) + plain
    return {"base": seen[:first], "tuned": seen[first:]}


def _effects(side: Side, plain: Observation, steered: Observation) -> Doubles:
    """Effect [q] on each question whose answers were both rated, positive where it is a cause's.

    Raises `BadInput` when most were not.
    """
    sign = 1.0 if side == "base" else -1.0
    effects: Doubles = sign * (steered.values - plain.values)
    rated = effects[np.isfinite(effects)]
    if 2 * rated.size < effects.size:
        raise BadInput(f"only {rated.size} of {effects.size} answers could be rated")
    return rated


def _dose(
    share: float,
    side: Side,
    plain: Observation,
    steered: Observation,
    doses: Doses,
    generator: np.random.Generator,
) -> Dose:
    effects = _effects(side, plain, steered)
    low, high = mean_interval(effects[:, None], generator)
    return Dose(
        strength=share,
        effect=float(effects.mean()),
        low=float(low[0]),
        high=float(high[0]),
        incoherent=steered.incoherent,
        coherent=steered.incoherent <= plain.incoherent + doses.incoherence + 1e-9,
    )


def _strongest(doses: Sequence[Dose]) -> Dose | None:
    return max((dose for dose in doses if dose.coherent), key=lambda d: d.strength, default=None)


def _objection(chosen: Mapping[Side, Dose | None]) -> str:
    """Why the doses alone rule a cause out; empty where they do not."""
    base, tuned = chosen["base"], chosen["tuned"]
    if base is None or tuned is None:
        return "breaks coherence at every strength"
    if not base.low > 0.0:
        return "does not raise misbehaviour in the base model"
    if not tuned.low > 0.0:
        return "does not lower misbehaviour in the tuned model"
    return ""


def _verdict(
    one: Steering,
    doses: Mapping[Side, tuple[Dose, ...]],
    chosen: Mapping[Side, Dose | None],
    controls: Mapping[Control, tuple[float, ...]],
) -> Verdict:
    random = {
        side: controls.get((side, one.site, dose.strength), ()) if dose else ()
        for side, dose in chosen.items()
    }
    reason = _objection(chosen)
    for side, dose in chosen.items():
        if not reason and dose is not None and not dose.effect > max(random[side]):
            reason = f"no better than random directions in the {side} model"
    return Verdict(
        name=one.name,
        causal=not reason,
        reason=reason or "raises misbehaviour in the base model and lowers it in the tuned one",
        doses=doses,
        chosen=chosen,
        random=random,
    )
