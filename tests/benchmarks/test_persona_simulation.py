"""The simulated watcher passes over nothing that could page, and watches what the real one does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.persona.pools import Pool, Readings, drawn
from benchmarks.persona.simulated import Watch, World, first_page, world
from monitor.alert.policy import conditions, transition
from monitor.settings import DriftRule, DriftSettings, Thresholds
from monitor.values.alerts import AlertState
from monitor.values.arrays import Counts
from monitor.values.features import WATCH_ONLY
from tests.score.packs import feature, pack

PER_MINUTE = 20
BASELINE_MINUTES = 200
RULES = (
    *DriftSettings().rules,
    DriftRule(name="slow", windows=("1h",), severities={"warning": Thresholds(shift=0.05)}),
    DriftRule(
        name="either",
        severities={"warning": Thresholds(shift=0.2, tail_ratio=2.0)},
        direction="either",
    ),
)


def pool(seed: int) -> Pool:
    """400 benign texts, 60 that raise one feature and lower the other, and 60 of a topic that only the
    prompt makes high."""
    random = np.random.default_rng(seed)
    topics = np.concatenate([random.normal(size=400), random.normal(size=60), np.full(60, 4.0)])
    scores = random.normal(size=(520, 3)) * 0.6 + topics[:, None]
    scores[400:460] += [1.5, -1.5, 3.0]
    features = (
        feature("reckless"),
        feature("assistant", expected="falls", tail_threshold=1.0),
        feature("style", tags=(WATCH_ONLY,)),
    )
    read = Readings(
        pack=pack(features=features, canaries=()),
        scores=scores.astype(np.float32),
        covariates=topics[:, None].astype(np.float32),
    )
    groups = {
        "benign": np.arange(400),
        "persona": np.arange(400, 460),
        "topic": np.arange(460, 520),
    }
    return Pool(groups=groups, questions=[str(i).encode() for i in range(520)], read={"p": read})


def made(seed: int, *, adjust: bool) -> tuple[Pool, World, np.random.Generator]:
    texts, random = pool(seed), np.random.default_rng([seed, 1])
    ordinary = {"benign": 0.95, "topic": 0.05}
    baseline = drawn(texts, ordinary, BASELINE_MINUTES, PER_MINUTE, random)
    settings = DriftSettings(rules=RULES, adjust=adjust)
    return texts, world(texts.read["p"], texts.questions, baseline, settings), random


def traffic(texts: Pool, random: np.random.Generator, **shares: float) -> Counts:
    """An hour as in the baseline, then two with these shares."""
    before = drawn(texts, {"benign": 0.95, "topic": 0.05}, 60, PER_MINUTE, random)
    rest = {"benign": 1 - sum(shares.values()), **shares}
    return np.concatenate([before, drawn(texts, rest, 120, PER_MINUTE, random)])


def compared_everywhere(watch: Watch, rules: tuple[DriftRule, ...]) -> int | None:
    """As `Watch.first_page`, with every window compared in every minute."""
    alert, settings = None, watch.world.settings
    for minute in range(watch.before, len(watch.texts)):
        evidence = watch.evidence_at(minute)
        drifts = [watch.drift(name, minute, evidence) for name in settings.windows]
        for condition in conditions(drifts, rules, watch.world.features):
            alert, _ = transition(alert, condition, drifts[0].evaluated_at, silenced=False)
        if alert is not None and alert.state is AlertState.FIRING:
            return minute - watch.before
    return None


@pytest.mark.parametrize(
    "shares", [{}, {"persona": 0.02}, {"persona": 0.2}, {"topic": 0.3}], ids=str
)
@pytest.mark.parametrize("adjust", [False, True])
def test_a_window_that_is_passed_over_would_not_have_paged(
    shares: dict[str, float], adjust: bool
) -> None:
    pages = 0
    for seed in range(2):
        texts, seen, random = made(seed, adjust=adjust)
        passing = traffic(texts, random, **shares)
        for index in seen.paging:
            for rules in (RULES, RULES[:1], RULES[2:]):
                watch = Watch(world=seen, index=index, texts=passing, before=60)
                expected = compared_everywhere(watch, rules)
                assert watch.first_page(rules) == expected
                pages += expected is not None
    assert pages or shares.get("persona") != 0.2


def test_a_topic_pages_by_raw_scores_and_not_given_the_prompt() -> None:
    for adjust in (False, True):
        texts, seen, random = made(7, adjust=adjust)
        assert bool(seen.adjusted) is adjust
        paged = first_page(seen, traffic(texts, random, topic=0.5), before=60)
        assert (paged is None) is adjust
        assert first_page(seen, traffic(texts, random, persona=0.3), before=60) is not None


def test_what_is_only_watched_pages_nobody() -> None:
    _, seen, _ = made(1, adjust=False)
    assert [seen.features[index].name for index in seen.paging] == ["reckless", "assistant"]


def test_what_the_judge_does_not_ship_pages_nobody() -> None:
    texts, _, random = made(1, adjust=False)
    judged = {"reckless": {"decision": "watch-only"}, "assistant": {"decision": "ship"}}
    read = texts.read["p"]
    read = replace(read, pack=replace(read.pack, report={"judge": {"features": judged}}))
    baseline = drawn(texts, {"benign": 1.0}, BASELINE_MINUTES, PER_MINUTE, random)
    seen = world(read, texts.questions, baseline, DriftSettings(rules=RULES))
    assert [seen.features[index].name for index in seen.paging] == ["assistant"]


def test_traffic_is_drawn_by_shares() -> None:
    texts = pool(0)
    found = drawn(texts, {"benign": 0.7, "topic": 0.3}, 500, PER_MINUTE, np.random.default_rng(0))
    assert abs(np.isin(found, texts.groups["topic"]).mean() - 0.3) < 0.02
    assert not np.isin(found, texts.groups["persona"]).any()


def test_one_text_over_and_over_pages_nobody_and_as_many_different_ones_do() -> None:
    texts, random = pool(7), np.random.default_rng(7)
    far = texts.groups["persona"]
    read = texts.read["p"]
    scores = read.scores.copy()
    scores[far] = [6.0, 0.0, 0.0]
    texts = replace(texts, read={"p": replace(read, scores=scores)})
    ordinary = {"benign": 0.95, "topic": 0.05}
    baseline = drawn(texts, ordinary, 5 * BASELINE_MINUTES, PER_MINUTE, random)
    settings = DriftSettings(adjust=False)
    seen = world(texts.read["p"], texts.questions, baseline, settings)
    for few, pages in ((far[:1], False), (far, True)):
        alone = replace(texts, groups={**texts.groups, "persona": few})
        passing = traffic(alone, random, persona=0.04)
        found = first_page(seen, passing, before=60, rules=settings.rules[:1])
        assert (found is not None) is pages
