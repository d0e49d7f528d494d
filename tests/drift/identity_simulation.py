"""The test of identity on simulated answers: false alarms and delays, by fixed seeds.

Every token has a law of its own, drawn anew from a family that wanders with the hour, so that no two
prompts are alike; the answers of the copy are drawn from those laws, the answers of another model from
laws that are mixed up with others. ``retold``: of all answers, `OTHER_TOKENS` of the tokens are not what was
said but the least likely ones, the worst that a tokenizer could do; ``counted``: `OTHER_COUNTED` of them, and the bets pay for
as many. ``python -m tests.drift.identity_simulation`` prints the figures.

Legend: r = runs, n = answers, t = tokens, v = vocabulary, c = tilts, s = shares.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np

from monitor.drift.identity import SHARES, STAND_OUT, evidence, step
from monitor.drift.numerics import measured
from monitor.values.surprise import CAPS, OTHER_COUNTED, OTHER_TOKENS, TILTS, Tally

TOKENS, VOCABULARY = 16, 20
RUNS, ANSWERS = 400, 150
PER_BUCKET = 4
PROMISED = 100
"""Buckets between false alarms of the e-detector."""


def laws(random: np.random.Generator, n: int, hour: float) -> np.ndarray:
    """Log laws [n, t, v]: from nearly certain to nearly flat, the more so as the hour turns."""
    heat = np.exp(random.normal(math.sin(hour), 0.8, size=(n, TOKENS, 1)))
    logits = random.normal(size=(n, TOKENS, VOCABULARY)) * 3.0 / heat
    return logits - np.logaddexp.reduce(logits, axis=2, keepdims=True)


def drawn(random: np.random.Generator, law: np.ndarray) -> np.ndarray:
    """Tokens [n, t], one of each law."""
    return (law + random.gumbel(size=law.shape)).argmax(axis=2)


def log_bets(law: np.ndarray, tokens: np.ndarray, odd: float) -> np.ndarray:
    """As `monitor.replay.surprise` has them, of whole answers [n, c], at the price of ``odd`` tokens."""
    bets = []
    for tilt, cap in zip(TILTS, CAPS, strict=True):
        tilted = (1 - tilt) * law
        tilted = tilted - np.logaddexp.reduce(tilted, axis=2, keepdims=True)
        mean = np.minimum(np.exp(tilted), cap * np.exp(law)).sum(axis=2)
        bet = np.take_along_axis(tilted - law, tokens[..., None], axis=2)[..., 0]
        price = np.log((1 - odd) * mean + odd * cap)
        bets.append((np.minimum(bet, math.log(cap)) - price).sum(axis=1))
    return np.stack(bets, axis=1)


def gains(bets: np.ndarray) -> np.ndarray:
    """Wagers [n, s] as `monitor.drift.identity.wagers` makes them, without a tolerance to hide behind."""
    gain = np.empty((len(bets), len(SHARES)))
    for place, tilts in enumerate([STAND_OUT] * (len(SHARES) - 1) + [slice(None)]):
        some = bets[:, tilts]
        gain[:, place] = np.logaddexp.reduce(some, axis=1) - math.log(some.shape[1])
    shares = np.array(SHARES)
    return np.logaddexp(np.log1p(-shares), np.log(shares) + gain)


def run(
    seed: int, *, foreign: float, retold: bool, counted: bool = False, answers: int = ANSWERS
) -> np.ndarray:
    """Wagers [n, s] of one run, ``foreign`` of whose answers another model gives."""
    random = np.random.default_rng(seed)
    odd = OTHER_COUNTED if counted else OTHER_TOKENS
    parts = []
    for begin in range(0, answers, 100):
        law = laws(random, min(100, answers - begin), hour=begin / 300)
        theirs = 0.6 * law + 0.4 * random.permuted(law, axis=2)
        theirs -= np.logaddexp.reduce(theirs, axis=2, keepdims=True)
        other = random.random(len(law)) < foreign
        tokens = drawn(random, np.where(other[:, None, None], theirs, law))
        if retold:
            spoilt = random.random(tokens.shape) < odd
            tokens = np.where(spoilt, law.argmin(axis=2), tokens)
        parts.append(gains(log_bets(law, tokens, odd)))
    return np.concatenate(parts)


@cache
def highest(*, retold: bool, counted: bool = False, runs: int = RUNS) -> np.ndarray:
    """Log of the copy's largest e-value in each run [r]: the e-process is looked at behind every answer."""
    found = []
    for seed in range(runs):
        total = run(seed, foreign=0.0, retold=retold, counted=counted).cumsum(axis=0)
        found.append((np.logaddexp.reduce(total, axis=1) - math.log(len(SHARES))).max())
    return np.array(found)


def answers_computed_otherwise(
    seed: int, heat: float, answers: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bets [n, c], excess and variance [n] of a server whose numerics make every law hotter by ``heat``."""
    random = np.random.default_rng(seed)
    law = laws(random, answers, hour=seed)
    theirs = law / heat
    tokens = drawn(random, theirs - np.logaddexp.reduce(theirs, axis=2, keepdims=True))
    centred = -law - (np.exp(law) * -law).sum(axis=2, keepdims=True)
    excess = np.take_along_axis(centred, tokens[..., None], axis=2)[..., 0].sum(axis=1)
    variance = (np.exp(law) * centred**2).sum(axis=2).sum(axis=1)
    return log_bets(law, tokens, OTHER_COUNTED), excess, variance


def numerics(heat: float, answers: int = 1_000) -> Tally:
    """What the answers of a baseline add up to under that server."""
    _, excess, variance = answers_computed_otherwise(99_999, heat, answers)
    sums = {"tokens": answers * TOKENS, "excess": excess.sum(), "variance": variance.sum()}
    return Tally(n=answers, **sums, **{f"counted_{name}": one for name, one in sums.items()})


def highest_allowing(tolerances: Sequence[float], heat: float, runs: int = 200) -> np.ndarray:
    """Log of the largest e-value [tolerance, r] under that server, where so many nats a token are allowed for."""
    found = []
    for seed in range(runs):
        bets, _, _ = answers_computed_otherwise(seed, heat, ANSWERS)
        allowed = [
            gains(bets - np.array(TILTS) * one * TOKENS).cumsum(axis=0) for one in tolerances
        ]
        found.append([np.logaddexp.reduce(total, axis=1).max() for total in allowed])
    return np.array(found).T - math.log(len(SHARES))


@cache
def alarms(foreign: float, *, retold: bool = False, runs: int = 30) -> np.ndarray:
    """Bucket of the e-detector's first alarm in each run [r]; the horizon where there was none."""
    horizon = 3 * PROMISED
    found = []
    for seed in range(runs):
        won = run(10_000 + seed, foreign=foreign, retold=retold, answers=horizon * PER_BUCKET)
        won = won.reshape(horizon, PER_BUCKET, -1).sum(axis=1)
        values = np.full(len(SHARES), -math.inf)
        alarm = horizon
        for bucket, gained in enumerate(won):
            values = step(values, gained)
            if evidence(values) >= math.log(PROMISED):
                alarm = bucket + 1
                break
        found.append(alarm)
    return np.array(found)


if __name__ == "__main__":
    for spoilt, priced in ((False, False), (True, False), (True, True)):
        for alpha in (0.05, 0.01):
            crossed = np.mean(highest(retold=spoilt, counted=priced) >= -math.log(alpha))
            print(
                f"the copy, retold {spoilt}, counted {priced}: crosses 1/{alpha} in {crossed:.2%}"
            )
    for spoilt in (False, True):
        told = alarms(0.0, retold=spoilt)
        print(f"the copy, retold {spoilt}: mean run {told.mean():.0f} buckets")
    for heat in (1.02, 1.05, 1.1):
        off = measured(numerics(heat), within=1.0)
        assert off is not None
        tolerances = (0.02, off.bound)
        for tolerance, highs in zip(tolerances, highest_allowing(tolerances, heat), strict=True):
            crossed = np.mean(highs >= math.log(20))
            print(
                f"numerics off by {off.surprise:+.3f}, {tolerance:.3f} allowed: crosses 20 in {crossed:.2%}"
            )
    for foreign in (0.01, 0.05, 0.2, 1.0):
        told = alarms(foreign)
        print(
            f"{foreign:.0%} foreign: mean {told.mean():.0f}, median {np.median(told):.0f} buckets"
        )
