"""Bets between the copy and registered alternatives, and when one is named."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from monitor.drift.alternatives import Nearest, likeness_of, nearest
from monitor.drift.identity import evidence, start
from monitor.values.likeness import CAPS, SHARES, Likened, Likeness
from monitor.values.surprise import OTHER_ANSWERS, IdentityState

START = datetime(2026, 3, 1, tzinfo=UTC)
TOKENS, FAR = 20, 0.5


def answers(n: int, share: float, seed: int = 0, far: float = FAR) -> list[Likened]:
    """Of two Gaussian tokens' laws ``far`` deviations apart; ``share`` of the answers is the alternative's."""
    random = np.random.default_rng(seed)
    found = []
    for foreign in random.random(n) < share:
        x = random.normal(far if foreign else 0.0, 1.0, TOKENS)
        ratios = far * x - far**2 / 2
        bets = [
            np.minimum(ratios, np.log(cap)).sum() - TOKENS * np.log1p(0.01 * (cap - 1))
            for cap in CAPS
        ]
        surprise = ((x - far) ** 2 - 1) / 2
        found.append(
            Likened(
                tokens=TOKENS,
                gain=float(ratios.sum()),
                log_bets=np.array(bets),
                excess=float(surprise.sum()),
                variance=TOKENS / 2,
            )
        )
    return found


def total(likened: list[Likened], tolerance: float = 0.02) -> Likeness:
    return sum((likeness_of(one, tolerance) for one in likened), Likeness())


def state(name: str, won: float, limit: float = 10.0) -> IdentityState:
    begun = start("all", "llama@1", START, alternative=name, shares=len(SHARES))
    return IdentityState(
        **{field: getattr(begun, field) for field in ("segment", "served", "alternative")},
        started_at=START,
        last_bucket=START,
        n=1,
        log_values=begun.log_values,
        evidence=won,
        limit=limit,
    )


def who(likenesses: dict[str, Likeness], *states: IdentityState, **changes: Any) -> Nearest | None:
    given = {"tolerance": 0.02, "within": 0.15, "confidence": 0.99} | changes
    return nearest(states, likenesses, **given)


def test_the_bets_are_no_gain_while_the_copy_answers_and_cross_as_seldom_as_promised() -> None:
    crossed = 0
    for seed in range(200):
        each = np.array([likeness_of(one, 0.0).wagers for one in answers(200, 0.0, seed)])
        running = [evidence(won) for won in each.cumsum(axis=0)]
        crossed += max(running) >= np.log(20.0)
    assert crossed <= 200 * 0.05


def test_an_unchecked_answer_wins_a_bounded_amount() -> None:
    """A share of the answers may be any at all, as for the bets on nobody by name."""
    most = Likened(tokens=TOKENS, gain=300.0, log_bets=np.full(len(CAPS), 300.0))
    even = Likened(tokens=TOKENS, gain=0.0, log_bets=np.zeros(len(CAPS)))
    won, stays = (np.exp(likeness_of(one, 0.0, unchecked=True).wagers) for one in (most, even))
    assert (1 - OTHER_ANSWERS) * stays + OTHER_ANSWERS * won == pytest.approx(1.0)


@pytest.mark.parametrize("share", [0.05, 0.4, 1.0])
def test_the_share_is_estimated_on_the_grid(share: float) -> None:
    found = who({"b": total(answers(2_000, share))}, state("b", 50.0))
    assert found is not None
    assert found.named == "b"
    assert found.share is not None
    assert share / 2 < found.share < share * 2
    assert found.gain is not None
    assert found.gain > 0.0
    assert "they look like b" in found.told


def test_nobody_is_named_before_the_limit() -> None:
    assert who({"b": total(answers(100, 1.0))}, state("b", 9.9)) is None
    assert who({}, state("", 50.0)) is None


def test_a_third_model_that_is_merely_nearer_is_not_named() -> None:
    """It lies between the copy and the alternative, and beyond: what it says is not what either would."""
    random = np.random.default_rng(1)
    stranger = []
    for one in answers(300, 1.0, seed=2):
        stranger.append(
            Likened(
                tokens=TOKENS,
                gain=one.gain,
                log_bets=one.log_bets,
                excess=one.excess + TOKENS * (0.5 + 0.1 * random.random()),
                variance=one.variance,
            )
        )
    found = who({"b": total(stranger)}, state("b", 50.0))
    assert found is not None
    assert found.named is None
    assert found.figures()["nearest"] == "b"
    assert "not what it would say" in found.told


def test_two_that_are_alike_are_not_told_apart_and_two_that_differ_are() -> None:
    theirs = total(answers(300, 1.0))
    found = who({"b": theirs, "c": theirs}, state("b", 60.0), state("c", 50.0))
    assert found is not None
    assert found.named is None
    assert found.rivals == ("c",)
    assert "b or c" in found.told
    other = total(answers(300, 0.0))
    found = who({"b": theirs, "c": other}, state("b", 60.0), state("c", 5.0))
    assert found is not None
    assert found.named == "b"


def test_without_answers_in_the_window_the_test_alone_names() -> None:
    found = who({}, state("b", 60.0))
    assert found is not None
    assert (found.named, found.gain, found.share) == ("b", None, None)
