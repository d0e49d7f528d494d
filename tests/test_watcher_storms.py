"""What comes in masses and is no persona, on a real PostgreSQL: one exchange over and over, and a fall."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest

from monitor.repeating import MOST_LOOKED_AT
from monitor.settings import DriftRule, Thresholds
from monitor.store.database import transaction
from monitor.store.packs import pack_features
from monitor.store.scores import contents_beyond
from monitor.watcher import Watcher
from tests.traffic import MINUTE, Traffic, settings_of

FAR = 5.0
TAILS = DriftRule(name="tails", severities={"warning": Thresholds(tail_ratio=3.0, tail_growth=3.0)})
PROCESS = DriftRule(name="process", severities={"warning": Thresholds(process_change=True)})


class Repeated(Traffic):
    """Traffic whose far prompts are of so many contents; None: each of its own."""

    contents: int | None = None

    def adjusted(self, prompts):
        far = [i for i, one in enumerate(prompts) if one.scores[0] == np.float32(FAR)]
        made = list(prompts)
        for i in far if self.contents else ():
            content = f"canned-{self.random.integers(self.contents)}".encode()
            made[i] = replace(prompts[i], content_hash=content)
        return made, {}


@pytest.fixture
def traffic(database):
    return Repeated(database)


def watched(database, traffic, rule, **drift):
    settings = settings_of(rules=(rule,), **drift)
    traffic.minutes(60)
    traffic.approve(settings)
    return Watcher(database, settings, clock=traffic.now)


def told(evaluations):
    return [e.type for seen in evaluations for e in seen.events if e.type.startswith("drift")]


def tails_of(evaluation, window="15m"):
    (found,) = [d for d in evaluation.drifts if (d.feature, d.window) == ("toxic", window)]
    return found


@pytest.mark.parametrize(
    ("contents", "events"), [(1, []), (3, []), (None, ["drift.detected"])], ids=str
)
def test_one_exchange_over_and_over_is_one_witness_of_a_tail(database, traffic, contents, events):
    watcher = watched(database, traffic, TAILS)
    traffic.contents = contents
    seen = traffic.minutes(20, rare=0.03, watcher=watcher)
    assert told(seen) == events
    last = tails_of(seen[-1])
    # The estimates say what is there; only what is sure of it is less.
    assert last.tail_ratio.value > 8
    assert max(level.ratio.value for level in last.tails) > 3
    if contents:
        assert last.tail_ratio.low < 1
        assert max(level.ratio.low for level in last.tails) < 1


def test_scores_that_fall_page_nobody_while_a_day_lies_above_its_baseline_by_chance(
    database, traffic
):
    watcher = watched(database, traffic, PROCESS, windows={"15m": 15 * MINUTE, "2h": 120 * MINUTE})
    seen = traffic.minutes(100, shift=(0.09, 0.0), watcher=watcher)
    seen += traffic.minutes(6, shift=(-1.0, 0.0), watcher=watcher)
    long = tails_of(seen[-1], "2h")
    assert long.evidence > long.evidence_limit
    assert long.shift.value > 0
    assert told(seen) == []


def test_scores_that_rise_page_by_the_same_rule(database, traffic):
    watcher = watched(database, traffic, PROCESS)
    assert told(traffic.minutes(6, shift=(1.0, 0.0), watcher=watcher)) == ["drift.detected"]


def test_the_newest_prompts_are_looked_up_on_the_side_of_the_persona(database, traffic):
    traffic.contents = 2
    start = traffic.minute
    traffic.minutes(3, rare=0.5)
    with transaction(database) as c:
        toxic, assistant = pack_features(c, traffic.pack)
        span = start, traffic.minute

        def beyond(feature, threshold, limit=MOST_LOOKED_AT, segment="all", span=span):
            return contents_beyond(c, traffic.pack, feature, segment, *span, threshold, limit)

        far = beyond(toxic, FAR)
        assert 60 < len(far) < 120
        assert {score for _, score in far} == {FAR}
        assert {content for content, _ in far} == {b"canned-0", b"canned-1"}
        falling = beyond(assistant, 1.0)
        assert falling
        assert min(score for _, score in falling) >= 1.0, "counted towards the persona: below -1"
        assert beyond(toxic, FAR, segment="language=de") == []
        assert beyond(toxic, FAR, limit=7) == far[:7]
        newest = beyond(toxic, FAR, span=(traffic.minute - timedelta(minutes=1), traffic.minute))
        assert far[: len(newest)] == newest
