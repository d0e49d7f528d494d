"""Turn features of a pack up or down in the model itself, or take them out.

Strengths count the typical length of the residual stream at the site. That grows many times over from
the first block to the last: in plain units, a strength that tells at one site drowns in another.

Legend: d = model width.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch

from monitor.errors import BadInput
from monitor.replay import residuals
from monitor.replay.model import LoadedModel
from monitor.replay.taps import Edit, push, steered
from monitor.research.statistics import random_directions
from monitor.research.texts import load_texts
from monitor.score.pack import Pack
from monitor.settings import ReplaySettings
from monitor.values.arrays import Floats
from monitor.values.features import Feature
from monitor.values.prompts import Prompt

NORM_TEXTS: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A ``direction`` [d] of any length, turned by ``strength`` typical lengths at ``site``.

    Below zero it is turned down. With ``project_out`` nothing is added: every token loses its part
    along the direction. Raises `BadInput` for a strength that is not finite, or both at once.
    """

    name: str
    site: int
    direction: Floats
    strength: float = 0.0
    project_out: bool = False

    def __post_init__(self) -> None:
        if not math.isfinite(self.strength):
            raise BadInput(f"{self.name}: the strength must be finite, not {self.strength}")
        if self.project_out and self.strength != 0.0:
            raise BadInput(f"{self.name}: give a strength or project it out, not both")
        length = float(np.linalg.norm(self.direction))
        if self.direction.ndim != 1 or not (math.isfinite(length) and length > 0.0):
            raise BadInput(f"{self.name}: a direction must be a finite vector that is not zero")

    @property
    def label(self) -> str:
        how = "out" if self.project_out else f"{self.strength:+g}"
        return f"{self.name} {how} at {self.site}"


def feature_turn(
    feature: Feature, strength: float = 0.0, *, site: int | None = None, project_out: bool = False
) -> Turn:
    """``feature`` along its pattern, else its weight, at its own site unless ``site`` is given.

    A latent's weight is its encoder row, normalisation folded in: the way it is read. Published work
    steers with the decoder row, which a pack does not hold. A composite is steered at its own site
    alone, not at its further sites: what is added there reaches them by itself. Another
    ``site`` takes the same direction, as for every feature.
    """
    return Turn(
        name=feature.name,
        site=feature.site if site is None else site,
        direction=feature.written_along,
        strength=strength,
        project_out=project_out,
    )


@contextmanager
def steering(
    loaded: LoadedModel, turns: Sequence[Turn], lengths: Mapping[int, float] | None = None
) -> Iterator[None]:
    """Within the context the model goes on from a residual stream turned by ``turns``, in their order.

    All tokens but the first are turned, those of the prompt too. ``lengths`` are `typical_lengths`,
    measured first when left out. Nothing stays behind. Raises `BadInput` for a site the model lacks.
    """
    with steered(loaded.blocks, edits(loaded, turns, lengths)):
        yield


def edits(
    loaded: LoadedModel, turns: Sequence[Turn], lengths: Mapping[int, float] | None = None
) -> tuple[Edit, ...]:
    """The same for callers that run the model elsewhere: fine-tuning takes edits."""
    if lengths is None:
        lengths = typical_lengths(loaded, [turn.site for turn in turns if turn.strength])
    return tuple(
        push(
            turn.site,
            torch.from_numpy(turn.direction).to(loaded.device),
            turn.strength * lengths[turn.site] if turn.strength else 0.0,
            project_out=turn.project_out,
        )
        for turn in turns
    )


def typical_lengths(
    loaded: LoadedModel, sites: Sequence[int], benign: Sequence[Prompt] | None = None
) -> dict[int, float]:
    """As `monitor.replay.residuals.typical_lengths`; ``benign`` defaults to texts of the project's own.

    Raises `BadInput` for a site the model lacks as well.
    """
    for site in sites:
        require_site(loaded, site)
    texts = load_texts().fit[:NORM_TEXTS] if benign is None else benign
    return residuals.typical_lengths(loaded, ReplaySettings(), texts, sites)


def require_site(loaded: LoadedModel, site: int) -> None:
    """Raises `BadInput` for a site that the loaded blocks do not have."""
    if not 0 <= site < len(loaded.blocks):
        raise BadInput(
            f"the model has no site {site}", hint=f"sites are 0 to {len(loaded.blocks) - 1}"
        )


def named_feature(pack: Pack, name: str) -> Feature:
    """The feature called ``name``; `BadInput` with names like it when there is none."""
    names = {feature.name: feature for feature in pack.features}
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3) or names
        raise BadInput(
            f"the pack {pack.name} has no feature {name!r}", hint=f"it has {', '.join(near)}"
        )
    return names[name]


def random_turns(turn: Turn, count: int, seed: int) -> tuple[Turn, ...]:
    """``turn`` along ``count`` random directions in its place: what any push of that length does."""
    directions = random_directions(count, turn.direction.size, np.random.default_rng(seed))
    return tuple(
        replace(turn, name=f"random {number}", direction=direction)
        for number, direction in enumerate(directions, 1)
    )
