"""Topics and personas on simulated traffic: what moves the raw scores, and what moves them given the prompt.

The one place of constants and scenarios: `test_adjusting_simulation.py` holds them to their bounds and docs/drift.md
to the figures. ``python -m tests.drift.adjusting_simulation`` prints the page's table.

A prompt is of one of `DOMAINS`, and a point in `DIMENSIONS` dimensions around its domain's. The score is a linear
reading of the point, as the residual stream's is, and noise of the answer's own; the covariates are the leading
dimensions alone. So the expected score is never quite right, and what is left of a topic's effect is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from monitor.alert.rules import conditions
from monitor.drift.adjusting import fit
from monitor.drift.tests import compare, mean_shift, reference
from monitor.settings import DriftSettings
from monitor.values.arrays import Doubles, Floats
from monitor.values.drift import BaselineStream
from monitor.values.features import Calibration, Feature
from monitor.values.ridge import FOLDS
from tests.drift.simulation import baseline_of_scores, window_of

SETTINGS = DriftSettings()
DOMAINS = 12
DIMENSIONS = 20
COVARIATES = 10
EXPLAINED = 0.6
"""Share of the score's variance that the prompt determines."""
DECAY = 0.8
BASELINE_N = 20_000
WINDOW_N = 1_200
RUNS = 40
FEATURE = Feature(
    name="reckless",
    kind="direction",
    site=0,
    region="response",
    pooling="mean",
    weight=np.ones(1, dtype=np.float32),
    calibration=Calibration(tokens=(1,), means=(0,), deviations=(1,)),
)


@dataclass(frozen=True, kw_only=True)
class World:
    """What is the same before and after: where domains lie, and how a score reads a prompt."""

    centres: Doubles
    slope: Doubles
    level: float
    scale: float

    @classmethod
    def drawn(cls, random: np.random.Generator) -> World:
        spread = DECAY ** np.arange(DIMENSIONS)
        centres = random.normal(size=(DOMAINS, DIMENSIONS)) * spread
        slope = random.normal(size=DIMENSIONS)
        points = np.repeat(centres, 500, axis=0)
        points = points + 0.5 * random.normal(size=points.shape) * spread
        read = points @ slope
        return cls(
            centres=centres,
            slope=slope,
            level=float(read.mean()),
            scale=float(np.sqrt(EXPLAINED) / read.std()),
        )

    def traffic(
        self, random: np.random.Generator, n: int, shares: Sequence[float], persona: float = 0.0
    ) -> tuple[Floats, Floats]:
        """Scores [n, 1] and covariates [n, c] of prompts with ``shares`` of the domains."""
        spread = DECAY ** np.arange(DIMENSIONS)
        domains = random.choice(DOMAINS, size=n, p=shares)
        points = self.centres[domains] + 0.5 * random.normal(size=(n, DIMENSIONS)) * spread
        of_prompt = (points @ self.slope - self.level) * self.scale
        own = np.sqrt(1 - EXPLAINED) * random.normal(size=n)
        scores = (of_prompt + own + persona)[:, None].astype(np.float32)
        return scores, points[:, :COVARIATES].astype(np.float32)

    def storm(self) -> tuple[Doubles, Doubles]:
        """Shares before and after: the domain that reads highest goes from 5 % to half of the traffic."""
        highest = int((self.centres @ self.slope).argmax())
        before, after = (np.full(DOMAINS, (1 - share) / (DOMAINS - 1)) for share in (0.05, 0.5))
        before[highest], after[highest] = 0.05, 0.5
        return before, after


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Mean shifts in deviations of the baseline, and which rules hold, for raw and adjusted scores."""

    raw: float
    adjusted: float
    raw_alert: bool
    adjusted_alert: bool


@dataclass(frozen=True, kw_only=True)
class Scenario:
    name: str
    topic: bool = False
    persona: bool = False


SCENARIOS = (
    Scenario(name="unchanged"),
    Scenario(name="one topic goes from 5 % to 50 %", topic=True),
    Scenario(name="a persona moves the raw mean as far, topics unchanged", persona=True),
    Scenario(name="both at once", topic=True, persona=True),
)


@cache
def runs(scenario: Scenario) -> tuple[Seen, ...]:
    """Run k is drawn with seed k, every one in a world of its own."""
    return tuple(_run(scenario, np.random.default_rng(seed)) for seed in range(RUNS))


def _run(scenario: Scenario, random: np.random.Generator) -> Seen:
    world = World.drawn(random)
    before, after = world.storm()
    scores, covariates = world.traffic(random, BASELINE_N, before)
    folds = np.arange(BASELINE_N) % FOLDS
    expectations, own = fit(scores, covariates, folds, [FEATURE])
    raw, given_prompt = (
        baseline_of_scores(values[:, 0], per_bucket=200) for values in (scores, own)
    )
    size = float((after - before) @ world.centres @ world.slope) * world.scale
    now, read = world.traffic(
        random, WINDOW_N, after if scenario.topic else before, size if scenario.persona else 0.0
    )
    one = expectations[0]
    adjusted = now[:, 0] - (one.intercept + read.astype(np.float64) @ np.array(one.weights))
    return Seen(
        raw=_shift(now[:, 0], raw),
        adjusted=_shift(adjusted, given_prompt),
        raw_alert=_alerts(now[:, 0], raw),
        adjusted_alert=_alerts(adjusted, given_prompt),
    )


def _shift(scores: Doubles | Floats, baseline: BaselineStream) -> float:
    return mean_shift(window_of(scores), baseline.window, confidence=SETTINGS.confidence).value


def _alerts(scores: Doubles | Floats, baseline: BaselineStream) -> bool:
    """Does a default rule on single windows hold?"""
    window = window_of(scores)
    drift = compare(
        window,
        reference(baseline),
        confidence=SETTINGS.confidence,
        feature=FEATURE.name,
        pack_id="p",
        baseline_id="b",
        pooled=False,
        window_name="1h",
        evidence=0.0,
        evidence_limit=float("inf"),
        now=window.end,
    )
    return any(condition.active for condition in conditions([drift], SETTINGS.rules, [FEATURE]))


# --- the page ------------------------------------------------------------------------------------


def row(scenario: Scenario) -> str:
    seen = runs(scenario)
    raw, adjusted = (np.array([getattr(one, name) for one in seen]) for name in ("raw", "adjusted"))
    alerts = (sum(getattr(one, name) for one in seen) for name in ("raw_alert", "adjusted_alert"))
    told = " | ".join(f"{count} of {RUNS}" for count in alerts)
    size = f"{adjusted.mean():+.2f} | {np.abs(adjusted).mean():.2f} | {np.abs(adjusted).max():.2f}"
    return f"| {scenario.name} | {raw.mean():+.2f} | {size} | {told} |"


if __name__ == "__main__":
    for one in SCENARIOS:
        print(row(one), flush=True)
