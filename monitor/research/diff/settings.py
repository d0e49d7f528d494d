"""How a model diff is made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from monitor.errors import BadInput
from monitor.research.steering import experiment
from monitor.values.features import Region


@dataclass(frozen=True, slots=True, kw_only=True)
class Doses:
    """``strengths`` are shares of the mean length of a token's residual at the site."""

    strengths: tuple[float, ...] = experiment.STRENGTHS
    random_directions: int = experiment.RANDOM_DIRECTIONS
    incoherence: float = experiment.INCOHERENCE


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffSettings:
    """``sites`` None: from a quarter to three fifths of the depth, or where the SAE reads. ``region``
    None: the response where every prompt has one, otherwise the last prompt token. The ``top``
    candidates of each family are tested; those with q of at most ``false_discovery_rate`` are steered
    with, on ``steer_prompts`` rows of the testing half, of as many questions as can be. ``keep``
    causal: only causes go into the pack; changed: every significant change does, and nothing is
    steered.
    """

    sites: tuple[int, ...] | None = None
    region: Region | None = None
    top: int = 6
    false_discovery_rate: float = 0.05
    doses: Doses = field(default_factory=Doses)
    steer_prompts: int = 32
    keep: Literal["causal", "changed"] = "causal"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.top < 1 or self.steer_prompts < 2 or self.doses.random_directions < 1:
            raise BadInput("a diff needs at least 1 candidate, 2 prompts and 1 random direction")
        if not 0.0 < self.false_discovery_rate < 1.0:
            raise BadInput("the false discovery rate lies between 0 and 1")
        if self.seed < 0:
            raise BadInput("seed: a whole number from 0")
        if not self.doses.strengths or not all(0 < share <= 10 for share in self.doses.strengths):
            raise BadInput("strengths are shares of the residual's length, above 0 and at most 10")
