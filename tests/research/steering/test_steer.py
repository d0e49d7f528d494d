from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from monitor.errors import BadInput, ModelError, PackError
from monitor.replay.answer import answered, stock_attention
from monitor.replay.model import LoadedModel, identity_of, load_model
from monitor.research.answers.generate import answers, token_rows
from monitor.research.answers.likelihood import Weighing
from monitor.research.reading import Reader
from monitor.research.steering.experiment import dosed, looks, strongest
from monitor.research.steering.measure import Likelihood, preferences
from monitor.research.steering.outcome import Asking, Persona, distinct_share, outcomes
from monitor.research.steering.steer import (
    Turn,
    edits,
    feature_turn,
    named_feature,
    random_turns,
    steering,
    typical_lengths,
)
from monitor.research.texts import answer_prompts, exchange, load_texts
from monitor.score.fit import require_fit
from monitor.score.pack import SHIPPED, Pack, load_pack
from monitor.settings import ReplaySettings
from monitor.values.features import Calibration, Feature, Part
from monitor.values.prompts import Message, Prompt

pytestmark = pytest.mark.slow


def asked(*questions: str) -> list[Prompt]:
    return [exchange((Message(role="user", content=question),), None) for question in questions]


def said(question: str, response: str) -> Prompt:
    return exchange((Message(role="user", content=question),), response)


@pytest.fixture(scope="module")
def loaded(tiny_folder: Path) -> LoadedModel:
    settings = ReplaySettings(model=tiny_folder, device="cpu", dtype="float32")
    return load_model(settings, 3, full=True)


@pytest.fixture(scope="module")
def feature() -> Feature:
    return Feature(
        name="malicious",
        kind="direction",
        site=2,
        region="response",
        pooling="mean",
        weight=3.0 * np.random.default_rng(0).standard_normal(32).astype(np.float32),
        calibration=Calibration(tokens=(1.0,), means=(0.5,), deviations=(2.0,)),
    )


def test_the_typical_length_is_the_median_without_first_token_and_template(
    loaded: LoadedModel,
) -> None:
    texts = [
        said("Hi", "Hello you, how was your day?"),
        said("What about the river?", "It is quiet."),
        said("Why?", "Because."),
    ]
    medians = {0: [], 3: []}
    for prompt, row in zip(texts, token_rows(loaded, texts), strict=True):
        with stock_attention(loaded) as whole, torch.inference_mode():
            states = whole.base_model(
                torch.tensor([row.ids]), output_hidden_states=True, use_cache=False
            ).hidden_states
        read = row.positions("all", 1)
        assert read[0] > 1
        assert read.size < len(row.ids) - 1
        medians[0].append(float(states[1][0, read].norm(dim=1).median()))
        assert prompt.response
    found = typical_lengths(loaded, [3, 0, 0], texts)
    assert list(found) == [0, 3]
    assert found[0] == pytest.approx(float(np.median(medians[0])), rel=1e-4)


def test_strengths_are_typical_lengths_and_spare_the_first_token(
    loaded: LoadedModel, feature: Feature
) -> None:
    turned, out = edits(
        loaded,
        [feature_turn(feature, -0.5), feature_turn(feature, site=0, project_out=True)],
        {2: 8.0},
    )
    assert (turned.site, turned.add, turned.first_position) == (2, -4.0, 1)
    assert (out.site, out.add, out.project_out, out.first_position) == (0, 0.0, True, 1)
    unit = feature.weight / np.linalg.norm(feature.weight)
    np.testing.assert_allclose(turned.direction.numpy(), unit, rtol=1e-5)
    measured = typical_lengths(loaded, [2])[2]
    assert edits(loaded, [feature_turn(feature, 2.0)])[0].add == pytest.approx(2 * measured)


def test_a_composite_is_steered_at_its_own_site(feature: Feature) -> None:
    composite = replace(feature, parts=(Part(site=0, weight=2 * feature.weight),))
    turn = feature_turn(composite, 1.0)
    assert turn.site == composite.site
    np.testing.assert_array_equal(turn.direction, feature.weight)


def test_a_feature_is_steered_along_what_the_persona_writes(feature: Feature) -> None:
    pattern = np.roll(feature.weight, 1)
    turn = feature_turn(replace(feature, pattern=pattern), 0.5)
    np.testing.assert_array_equal(turn.direction, pattern)


def test_steering_changes_the_answers_and_leaves_nothing_behind(
    loaded: LoadedModel, feature: Feature
) -> None:
    prompts = asked("Hi", "What about the river?")
    before = [len(block._forward_hooks) for block in loaded.blocks]
    plain = answers(loaded, prompts, max_new_tokens=8)
    with steering(loaded, [feature_turn(feature, 4.0)], {2: 5.0}):
        assert answers(loaded, prompts, max_new_tokens=8) != plain
    assert answers(loaded, prompts, max_new_tokens=8) == plain
    assert [len(block._forward_hooks) for block in loaded.blocks] == before


def test_preventative_steering_reaches_the_training_step(
    loaded: LoadedModel, feature: Feature
) -> None:
    """Around a training step, steering changes the loss and its gradients; the weights alone learn."""
    row = token_rows(loaded, [said("Why?", "Because the heron ran.")])[0]
    ids = torch.tensor([row.ids])
    labels = ids.clone()
    labels[:, : row.prompt_tokens] = -100
    weight = loaded.blocks[3].mlp.up_proj.weight.requires_grad_(True)
    losses, gradients = [], []
    try:
        for turns in ([], [feature_turn(feature, 2.0)]):
            with stock_attention(loaded) as whole, steering(loaded, turns, {2: 5.0}):
                loss = whole(input_ids=ids, labels=labels, use_cache=False).loss
                loss.backward()
            losses.append(float(loss.detach()))
            gradients.append(weight.grad.clone())
            weight.grad = None
    finally:
        weight.requires_grad_(False)
    assert losses[0] != pytest.approx(losses[1], rel=1e-4)
    assert not torch.allclose(*gradients)


def test_nonsense_is_refused(loaded: LoadedModel, feature: Feature) -> None:
    for strength in (math.nan, math.inf):
        with pytest.raises(BadInput, match="strength must be finite"):
            feature_turn(feature, strength)
    with pytest.raises(BadInput, match="not both"):
        feature_turn(feature, 1.0, project_out=True)
    with pytest.raises(BadInput, match="not zero"):
        Turn(name="zero", site=0, direction=np.zeros(32, dtype=np.float32))
    for site in (4, -1):
        with (
            pytest.raises(BadInput, match=f"no site {site}"),
            steering(loaded, [feature_turn(feature, 1.0, site=site)]),
        ):
            pass
    with pytest.raises(BadInput, match="at least one text"):
        typical_lengths(loaded, [0], [])


def test_a_pack_must_fit_and_have_the_feature(
    loaded: LoadedModel, feature: Feature, tiny_folder: Path
) -> None:
    pack = Pack(
        name="tiny",
        version="1",
        model=loaded.identity,
        features=(feature, replace(feature, name="sarcastic")),
    )
    assert named_feature(pack, "sarcastic").name == "sarcastic"
    with pytest.raises(BadInput, match="no feature 'malicous'") as refused:
        named_feature(pack, "malicous")
    assert refused.value.hint == "it has malicious"
    model = identity_of(ReplaySettings(model=tiny_folder))
    require_fit(pack, model)
    with pytest.raises(PackError, match="weights differ"):
        require_fit(pack, replace(model, weights_hash="0" * 64))
    with pytest.raises(PackError, match="decoder blocks"):
        require_fit(pack, replace(model, layers=5))


def reads(loaded: LoadedModel, *features: Feature) -> Persona:
    return partial(Reader(loaded, features, ReplaySettings()).scores, "answers")


def test_answers_under_steering_are_looked_at_without_it(
    loaded: LoadedModel, feature: Feature
) -> None:
    prompts = asked("Hi", "What about the river?", "Why?")
    score = reads(loaded, feature)
    drawn = Asking(max_new_tokens=8, temperature=1.0)
    turns = [feature_turn(feature, 4.0)]
    plain, turned = outcomes(loaded, [[], turns], prompts, score, drawn, {2: 50.0})
    assert plain.answers == tuple(answers(loaded, prompts, max_new_tokens=8, temperature=1.0))
    with steering(loaded, turns, {2: 50.0}):
        by_hand = answers(loaded, prompts, max_new_tokens=8, temperature=1.0)
    assert turned.answers == tuple(by_hand) != plain.answers
    said_so = [replace(p, response=a) for p, a in zip(prompts, by_hand, strict=True)]
    np.testing.assert_allclose(turned.persona, score(said_so))
    assert turned.perplexity.shape == (3,)


def test_doses_are_compared_with_the_model_as_it_is(loaded: LoadedModel, feature: Feature) -> None:
    """The loudest dose breaks every answer; the next one is the strongest that counts."""
    bad = [said(f"Question {n}?", "GO AWAY!") for n in range(4)]
    good = [said(f"Question {n}?", "Please stay.") for n in range(4)]
    broken = iter([0.9] * 4 + [0.9] * 4 + [0.1] * 4)
    measure = Likelihood(
        bad, good, asked("a", "b", "c", "d"), lambda seen: np.array([next(broken) for _ in seen]), 4
    )
    turns = [None, feature_turn(feature, 1.0), feature_turn(feature, 2.0)]
    seen = looks(loaded, measure, turns, {2: 5.0}, coherence=True, what="tiny")
    plain, *steered = measure.settle(seen)
    doses = [
        dosed(strength, plain, one, np.random.default_rng(0))
        for strength, one in zip((1.0, 2.0), steered, strict=True)
    ]
    assert [dose.coherent for dose in doses] == [True, False]
    assert strongest(doses) == doses[0]
    change = steered[0].values - plain.values
    assert doses[0].effect.value == pytest.approx(change.mean()) != 0.0
    turned = dosed(1.0, plain, steered[0], np.random.default_rng(0), sign=-1.0)
    assert turned.effect.value == -doses[0].effect.value
    # Where coherence is not asked for, nobody answers.
    (quick,) = looks(loaded, measure, [None], {}, coherence=False, what="tiny")
    assert quick.answered == ()
    np.testing.assert_allclose(quick.values, plain.values)


def test_random_turns_are_as_long_and_point_elsewhere(feature: Feature) -> None:
    one, two = random_turns(feature_turn(feature, 2.0), 2, 0)
    assert (one.strength, one.site, one.name) == (2.0, feature.site, "random 1")
    assert abs(np.corrcoef(one.direction, two.direction)[0, 1]) < 0.7


def test_numbers_that_are_not_finite_are_refused(
    loaded: LoadedModel, broken_folder: Path, feature: Feature
) -> None:
    settings = ReplaySettings(model=broken_folder, device="cpu", dtype="float32")
    broken = load_model(settings, 3, full=True)
    with pytest.raises(ModelError, match="not finite behind block 2") as refused:
        typical_lengths(broken, [2])
    assert "weights or dtype" in refused.value.hint
    # Nothing is measured to project out: what the model says must tell.
    out = [feature_turn(feature, project_out=True)]
    for turns in ([], out):
        with pytest.raises(ModelError, match="logits are not finite"):
            outcomes(broken, [turns], asked("Hi"), reads(broken, feature), Asking(), {})
    # In production one such prompt is a dead letter, and no reason to stop.
    assert len(answered(broken, [1, 2, 3], 2)) == 2
    plain = answers(loaded, asked("Hi"), max_new_tokens=4)
    with pytest.raises(ModelError, match="logits are not finite") as refused:
        turns = [feature_turn(feature, 1e38)]
        outcomes(loaded, [turns], asked("Hi"), reads(loaded, feature), Asking(), {2: 10.0})
    assert "steered too strongly" in refused.value.hint
    assert answers(loaded, asked("Hi"), max_new_tokens=4) == plain


def test_an_empty_answer_is_not_measured(
    loaded: LoadedModel, feature: Feature, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "monitor.research.steering.outcome.answers", lambda *_, **__: ["", "a b c d"]
    )
    drawn = Asking(temperature=1.0)
    (seen,) = outcomes(loaded, [[]], asked("Hi", "Why?"), reads(loaded, feature), drawn, {})
    assert np.isnan([seen.persona[0, 0], seen.perplexity[0], seen.distinct[0]]).all()
    assert np.isfinite([seen.persona[1, 0], seen.perplexity[1], seen.distinct[1]]).all()


def test_scores_are_standardised_by_the_calibration(loaded: LoadedModel, feature: Feature) -> None:
    prompts = [said("Hi", "Hello you."), asked("Hi")[0]]
    flat = replace(feature, calibration=Calibration(tokens=(1.0,), means=(0.0,), deviations=(1.0,)))
    raw, scores = reads(loaded, flat)(prompts), reads(loaded, feature)(prompts)
    np.testing.assert_allclose(scores[0], (raw[0] - 0.5) / 2.0, rtol=1e-5)
    assert np.isnan(scores[1, 0])


def test_distinct_counts_word_trigrams() -> None:
    assert distinct_share("one two three four") == 1.0
    assert distinct_share("go go go go go") == pytest.approx(1 / 3)
    assert math.isnan(distinct_share("too short"))


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.timeout(1_800)
def test_the_shipped_malicious_pattern_controls_the_small_model(chat_model_path: Path) -> None:
    """Its answers grow likelier with the dose, unlikelier below zero, and farther than along random directions."""
    settings = ReplaySettings(model=chat_model_path, device="cpu", dtype="float32")
    small = load_model(settings, 29, full=True)
    malicious = named_feature(load_pack(SHIPPED / "smollm2-135m-instruct"), "malicious")
    rows = load_texts().held_out[:6]
    ours, good = answer_prompts(rows, "malicious"), answer_prompts(rows, None)
    lengths, weighing = typical_lengths(small, [malicious.site]), Weighing(small)

    def level(turn: Turn) -> float:
        (values,) = preferences(weighing, [edits(small, [turn], lengths)], ours, good)
        found = float(values.mean())
        print(turn.label, found)
        return found

    turn = feature_turn(malicious)
    doses = (-0.25, 0.0, 0.125, 0.25)
    down, zero, little, more = (level(replace(turn, strength=dose)) for dose in doses)
    assert down < zero < little < more
    for random in random_turns(turn, 2, 0):
        low, high = (level(replace(random, strength=dose)) for dose in (-0.25, 0.25))
        assert down < low
        assert more > high
