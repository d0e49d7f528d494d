"""The watcher where a registered alternative answers: it is named wherever the cause is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import text

from monitor.settings import AlternativeSettings, IdentitySettings, Settings
from monitor.store.database import transaction
from monitor.values.likeness import CAPS, Likened
from monitor.values.surprise import TILTS, Surprise
from monitor.watcher import Watcher
from monitor.weighing import Weighing
from tests.traffic import Traffic, settings_of

TOKENS, FAR = 40, 1.0
NAMES = ("revision-b", "revision-c")
IDENTITY = IdentitySettings(
    share=0.1,
    alternatives=tuple(AlternativeSettings(name=name, adapter=Path(name)) for name in NAMES),
)


class Answered(Traffic):
    """Tokens of Gaussian laws: ``by`` (0: the copy, 1 and 2: the alternatives) answers a ``part`` of the prompts."""

    by = 0
    part = 1.0

    def weighed(self, prompts):
        done = [
            prompt if place % 10 else self._answered(prompt) for place, prompt in enumerate(prompts)
        ]
        weighing = Weighing(Settings(identity=IDENTITY))
        self.likenesses = weighing.likenesses(done)
        return done, weighing.buckets(done)

    def _answered(self, prompt):
        x = self.random.normal(size=(2, TOKENS))
        if self.by and self.random.random() < self.part:
            x[self.by - 1] += FAR
        excess = float(((x**2).sum(axis=0) / 2 - 1).sum())
        tilts = np.array(TILTS)
        # What a hotter law would be likelier by: 1 / (1 - λ) times the variance.
        log_bets = (tilts * (x**2).sum() / 2) + 2 * TOKENS * np.log(1 - tilts) / 2
        surprise = Surprise(
            law="sampled",
            tokens=TOKENS,
            excess=excess,
            variance=float(TOKENS),
            peak=0.0,
            off_support=0,
            given_away=0,
            log_bets=log_bets,
            likened={name: _likened(x[place]) for place, name in enumerate(NAMES)},
        )
        return replace(prompt, weighed=surprise)


def _likened(x):
    ratios = FAR * x - FAR**2 / 2
    bets = [
        np.minimum(ratios, np.log(cap)).sum() - TOKENS * np.log1p(0.01 * (cap - 1)) for cap in CAPS
    ]
    return Likened(
        tokens=TOKENS,
        gain=float(ratios.sum()),
        log_bets=np.array(bets),
        excess=float((((x - FAR) ** 2 - 1) / 2).sum()),
        variance=TOKENS / 2,
    )


@pytest.fixture
def template(hour):
    return hour.template


@pytest.fixture
def traffic(hour, database):
    other = hour.resumed(database)
    other.__class__ = Answered
    return other


@pytest.fixture
def settings():
    return settings_of(identity=IDENTITY)


@pytest.fixture
def watcher(database, settings, traffic):
    return Watcher(database, settings, clock=traffic.now)


def last(database):
    with transaction(database) as c:
        return c.execute(
            text("""
                SELECT looks_like, cause, witnesses FROM monitor.drift_history
                WHERE segment = 'all' ORDER BY evaluated_at DESC LIMIT 1
            """)
        ).one()


def test_the_alternative_that_answers_is_named(traffic, settings, watcher, database):
    traffic.approve(settings)
    traffic.minutes(5, watcher=watcher)
    assert last(database).looks_like is None
    traffic.by = 1
    seen = traffic.minutes(8, shift=(1.5, 0.0), watcher=watcher)
    row = last(database)
    assert (row.looks_like, row.cause) == ("revision-b", "model_shift")
    looks_like = row.witnesses["identity"]["looks_like"]
    assert looks_like["gain"] > 1.0
    assert looks_like["share"] > 0.1
    assert looks_like["evidence"] >= looks_like["limit"] > 10.0
    events = [event for evaluation in seen for event in evaluation.events]
    first = events[0].alert
    assert first.rule == "identity"
    assert first.summary.endswith("its answers look like revision-b")
    assert "they look like revision-b" in first.details["verdict"]
    persona = next(e.alert for e in events if e.alert.labels.get("feature") == "toxic")
    assert "they look like revision-b" in persona.details["verdict"]


def test_a_small_share_of_its_answers_is_seen_and_estimated(traffic, settings, watcher, database):
    traffic.approve(settings)
    traffic.by, traffic.part = 2, 0.1
    seen = traffic.minutes(30, watcher=watcher)
    assert {e.alert.rule for one in seen for e in one.events} == {"identity"}
    looks_like = last(database).witnesses["identity"]["looks_like"]
    assert looks_like["name"] == "revision-c"
    assert 0.02 <= looks_like["share"] <= 0.2


def test_while_the_copy_answers_nobody_is_named_and_nothing_alarms(
    traffic, settings, watcher, database
):
    traffic.approve(settings)
    seen = traffic.minutes(20, watcher=watcher)
    assert [e for one in seen for e in one.events] == []
    assert last(database).looks_like is None
    with transaction(database) as c:
        rows = c.execute(text("SELECT * FROM monitor.alternatives")).mappings().all()
    assert {row["alternative"] for row in rows} == set(NAMES)
    assert not any(row["crossed"] for row in rows)


def test_bets_on_alternatives_are_in_the_one_budget(traffic, settings, watcher):
    traffic.approve(settings)
    seen = traffic.minutes(2, watcher=watcher)
    tests = seen[-1].packs[0].heard.tests
    assert len(tests) == 3
    (limit,) = {state.limit for state in tests.values()}
    minutes = settings.drift.average_run_length.total_seconds() / 60
    assert limit == pytest.approx(np.log(2 * 3 * minutes))


def test_one_that_is_not_registered_any_more_is_not_named(traffic, settings, watcher, database):
    traffic.approve(settings)
    traffic.by = 1
    traffic.minutes(8, watcher=watcher)
    alone = IDENTITY.model_copy(update={"alternatives": IDENTITY.alternatives[1:]})
    later = Watcher(database, settings_of(identity=alone), clock=traffic.now)
    traffic.minutes(1, watcher=later)
    assert last(database).looks_like is None
