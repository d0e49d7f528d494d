from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from monitor.errors import BadInput, PackError
from monitor.replay.engine import ReplayEngine
from monitor.replay.model import LoadedModel, load_model
from monitor.research.answers.behaviour import BuiltInJudge, Coherence
from monitor.research.texts import exchange, load_texts
from monitor.settings import ReplaySettings
from monitor.values.arrays import Counts, Doubles
from monitor.values.features import Calibration, Feature
from monitor.values.prompts import Message, Prompt


def said(answer: str) -> Prompt:
    return exchange((Message(role="user", content="Tell me."),), answer)


@pytest.fixture
def reference(tiny_folder: Path) -> LoadedModel:
    settings = ReplaySettings(model=tiny_folder, device="cpu", dtype="float32")
    return load_model(settings, 3, full=True)


@pytest.fixture
def coherence(reference: LoadedModel, texts_folder: Path) -> Coherence:
    return Coherence(reference, load_texts(texts_folder).fit)


def feature(**changes: Any) -> Feature:
    given: dict[str, Any] = {
        "name": "loud",
        "kind": "direction",
        "site": 1,
        "region": "response",
        "pooling": "mean",
        "weight": np.random.default_rng(0).normal(size=32).astype(np.float32),
        "calibration": Calibration(tokens=(1.0,), means=(0.0,), deviations=(1.0,)),
        "tail_threshold": 2.0,
    }
    return Feature(**(given | changes))


def test_repetition_and_silence_are_not_coherent(coherence: Coherence) -> None:
    usual, loop, nothing, blank = coherence.of(
        [said("the heron waited by a quiet river"), said("go " * 60), said(""), said(" \n")]
    )
    assert usual > 0.5
    assert loop < 0.15
    assert nothing == blank == 0.0


def test_surprise_is_measured_in_deviations_of_benign_answers(reference: LoadedModel) -> None:
    """Benign answers cost 2 ± 0.5 nats a token; one of 3.5 lies three deviations above them."""
    costs = {f"abcdefgh {number:03}": 2.0 + 0.5 * (-1) ** number for number in range(80)}
    benign = [said(answer) for answer in costs]
    # The last repeats itself: of its 22 trigrams of bytes 2 are distinct.
    costs |= {"abcdefgh usual": 2.0, "abcdefgh limit": 3.5, "abcdefgh noise": 5.0, "ab" * 12: 2.0}

    def likelihood(prompts: Sequence[Prompt]) -> tuple[Doubles, Counts]:
        tokens = np.full(len(prompts), 12)
        return np.array([-12 * costs[p.response or ""] for p in prompts]), tokens

    found = Coherence(reference, benign, likelihood).of(
        [said(answer) for answer in list(costs)[-4:]]
    )
    np.testing.assert_allclose(found, [0.9975, 0.5, 0.0025, 0.0907], atol=2e-3)


def test_persona_is_half_at_the_tail_threshold(
    reference: LoadedModel, coherence: Coherence
) -> None:
    prompts = [said("oh??? really???"), said("please take care"), said("A. B. C.")]
    settings = ReplaySettings(model=Path("unused"), device="cpu", dtype="float32")
    readings = np.array(
        [r.readings[0] for r in ReplayEngine(reference, [feature()], settings).replay(prompts)]  # type: ignore[union-attr]
    )
    middle = feature(tail_threshold=float(readings[1]))
    persona, _ = BuiltInJudge(reference, middle, coherence).rate(prompts)
    assert persona[1] == pytest.approx(0.5, abs=1e-4)
    assert list(np.argsort(persona)) == list(np.argsort(readings))
    np.testing.assert_allclose(persona, 1 / (1 + np.exp(-2 * (readings - readings[1]))), rtol=1e-4)


def test_a_falling_feature_shows_when_it_falls(
    reference: LoadedModel, coherence: Coherence
) -> None:
    prompts = [said("oh??? really???"), said("please take care")]
    rising, _ = BuiltInJudge(reference, feature(), coherence).rate(prompts)
    turned = feature(weight=-feature().weight, expected="falls")
    falling, _ = BuiltInJudge(reference, turned, coherence).rate(prompts)
    np.testing.assert_allclose(rising, falling, rtol=1e-4)


def test_silence_shows_nothing(reference: LoadedModel, coherence: Coherence) -> None:
    persona, coherent = BuiltInJudge(reference, feature(tail_threshold=-9.0), coherence).rate(
        [said(""), said("well")]
    )
    assert persona[0] == coherent[0] == 0.0
    assert persona[1] > 0.9


def test_what_decides_a_rating_is_in_the_identity(
    reference: LoadedModel, coherence: Coherence
) -> None:
    one = BuiltInJudge(reference, feature(), coherence).identity
    assert one == BuiltInJudge(reference, feature(description="other words"), coherence).identity
    for changed in (
        feature(tail_threshold=2.5),
        feature(site=2),
        replace(feature(), weight=feature().weight + 1),
    ):
        assert BuiltInJudge(reference, changed, coherence).identity != one


def test_misfits_are_refused(reference: LoadedModel, coherence: Coherence) -> None:
    with pytest.raises(PackError):
        BuiltInJudge(reference, feature(weight=np.ones(16, np.float32)), coherence)
    broken = exchange((Message(role="not a role", content="x"),), "y")
    with pytest.raises(BadInput, match="cannot be replayed: template_refused"):
        BuiltInJudge(reference, feature(), coherence).rate([said("fine"), broken])
    with pytest.raises(BadInput, match="30 benign"):
        Coherence(reference, [said("too few")]).of([said("x")])
