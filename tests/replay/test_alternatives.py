"""Registered alternatives of a tiny model: their likelihoods are those of the models that they stand for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from monitor.drift.alternatives import likeness_of
from monitor.errors import ConfigurationError, ModelError
from monitor.replay.alternatives import Alternative, built, compared
from monitor.replay.answer import stock_attention
from monitor.replay.model import LoadedModel, load_model
from monitor.replay.regions import Tokens
from monitor.replay.taps import push, steered
from monitor.settings import AlternativeSettings, SteerSettings
from monitor.values.features import Feature
from monitor.values.likeness import Likened
from monitor.values.prompts import Sampling
from monitor.values.surprise import GREEDY_SLIP, Surprise
from tests.scenes.adapters import save_adapter
from tests.scenes.packs import drawn, feature, on_cpu

PLAIN = Sampling(temperature=1.0, finish_reason="length")
ASKED = (5, 80, 31, 7)
TOKENS = 12
ALONG = feature("persona", drawn(3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, llama_folder: Path) -> Path:
    return save_adapter(llama_folder, tmp_path_factory.mktemp("beside") / "revision-b", size=0.3)


@pytest.fixture(scope="module")
def copy(llama_folder: Path) -> LoadedModel:
    return load_model(on_cpu(llama_folder), 2, full=True)


@pytest.fixture(scope="module")
def merged(llama_folder: Path, folder: Path) -> LoadedModel:
    return load_model(on_cpu(llama_folder, folder), 2, full=True)


def registered(
    copy: LoadedModel,
    llama_folder: Path,
    *entries: AlternativeSettings,
    features: Sequence[Feature] = (ALONG,),
    canaries: Sequence[Any] = (),
) -> tuple[Alternative, ...]:
    return built(entries, copy, features, canaries, on_cpu(llama_folder))


@pytest.fixture(scope="module")
def beside(copy: LoadedModel, llama_folder: Path, folder: Path) -> tuple[Alternative, ...]:
    return registered(copy, llama_folder, AlternativeSettings(name="b", adapter=folder))


def said_by(model: LoadedModel, count: int, law: Sampling = PLAIN, seed: int = 11) -> list[Tokens]:
    ids = torch.tensor([ASKED] * count)
    generator = torch.Generator().manual_seed(seed)
    with stock_attention(model) as whole, torch.inference_mode():
        for _ in range(TOKENS):
            logits = whole(input_ids=ids).logits[:, -1]
            if law.temperature:
                law_now = (logits / law.temperature).softmax(dim=1)
                chosen = torch.multinomial(law_now, 1, generator=generator)
            else:
                chosen = logits.argmax(dim=1, keepdim=True)
            ids = torch.cat([ids, chosen], dim=1)
    return [row(line[len(ASKED) :]) for line in ids.tolist()]


def row(said: Sequence[int]) -> Tokens:
    ids = (*ASKED, *said)
    return Tokens(
        ids=ids,
        prompt_tokens=len(ASKED),
        response_tokens=len(said),
        readable=np.ones(len(ids), dtype=np.bool_),
    )


def log_likelihood(model: LoadedModel, of: Tokens, temperature: float = 1.0) -> float:
    with stock_attention(model) as whole, torch.inference_mode():
        logits = whole(input_ids=torch.tensor([of.ids])).logits[0, len(ASKED) - 1 : -1]
    law = (logits.double() / temperature).log_softmax(dim=1)
    return float(law.gather(1, torch.tensor(of.ids[len(ASKED) :])[:, None]).sum())


def likened(
    copy: LoadedModel,
    rows: Sequence[Tokens],
    alternatives: Sequence[Alternative],
    law: Sampling = PLAIN,
    name: str = "b",
) -> list[Likened]:
    found = compared(copy, rows, [law] * len(rows), alternatives)
    assert all(isinstance(one, Surprise) for one in found)
    return [one.likened[name] for one in found if isinstance(one, Surprise)]


def test_an_adapter_beside_the_copy_speaks_as_the_merged_one(
    copy: LoadedModel, merged: LoadedModel, beside: tuple[Alternative, ...]
) -> None:
    rows = [row([9, 77, 3, 120]), row([200, 8])]
    for law in (PLAIN, replace(PLAIN, temperature=0.7)):
        for one, of in zip(likened(copy, rows, beside, law), rows, strict=True):
            heat = law.temperature or 1.0
            expected = log_likelihood(merged, of, heat) - log_likelihood(copy, of, heat)
            assert one.gain == pytest.approx(expected, abs=1e-3)
            assert abs(expected) > 0.05
    (adapted,) = beside
    assert 0 < adapted.bytes < 0.3 * sum(w.nbytes for w in copy.model.parameters())


def test_the_copy_is_as_it_was_but_while_the_alternative_speaks(
    llama_folder: Path, folder: Path
) -> None:
    untouched = load_model(on_cpu(llama_folder), 2, full=True)
    copy = load_model(on_cpu(llama_folder), 2, full=True)
    names = [name for name, _ in copy.model.named_modules()]
    beside = registered(copy, llama_folder, AlternativeSettings(name="b", adapter=folder))
    rows = said_by(untouched, 2)
    likened(copy, rows, beside)
    with pytest.raises(ZeroDivisionError), beside[0].speaking(copy):
        raise ZeroDivisionError
    assert [name for name, _ in copy.model.named_modules()] == names
    assert log_likelihood(copy, rows[0]) == log_likelihood(untouched, rows[0])


def test_no_bet_gains_in_the_mean_while_the_copy_answers(
    copy: LoadedModel, llama_folder: Path, tmp_path: Path
) -> None:
    near = save_adapter(llama_folder, tmp_path / "near", size=0.08)
    beside = registered(copy, llama_folder, AlternativeSettings(name="b", adapter=near))
    own = likened(copy, said_by(copy, 2_000), beside)
    ratios = np.exp([one.gain for one in own])
    assert ratios.std() > 0.1
    assert abs(ratios.mean() - 1.0) < 4 * ratios.std() / np.sqrt(len(ratios))
    for place in range(3):
        values = np.exp([one.log_bets[place] for one in own])
        assert values.mean() < 1.0 + 3 * values.std() / np.sqrt(len(values))


def test_bets_gain_where_the_alternative_speaks(
    copy: LoadedModel, merged: LoadedModel, beside: tuple[Alternative, ...]
) -> None:
    theirs = likened(copy, said_by(merged, 200), beside)
    summed = sum(likeness_of(one, 0.02).wagers for one in theirs)
    assert np.argmax(summed) == 7
    assert np.max(summed) > 20.0
    z = sum(one.excess for one in theirs) / np.sqrt(sum(one.variance for one in theirs))
    assert abs(z) < 3.0, "the alternative's own answers surprise it no more than it expects"


def test_greedy_answers_are_told_by_the_tokens_where_the_two_differ(
    copy: LoadedModel, merged: LoadedModel, beside: tuple[Alternative, ...]
) -> None:
    cold = replace(PLAIN, temperature=0.0)
    (own,) = likened(copy, said_by(copy, 1, cold), beside, cold)
    (theirs,) = likened(copy, said_by(merged, 1, cold), beside, cold)
    odds = np.log((1 - GREEDY_SLIP) / GREEDY_SLIP)
    assert own.gain < -odds + 1e-6 < 0.0 < odds - 1e-6 < theirs.gain
    assert (own.log_bets < 0.0).all()
    assert (theirs.log_bets > 0.0).all()


def test_the_end_counts_where_the_answer_may_have_ended(
    copy: LoadedModel, beside: tuple[Alternative, ...]
) -> None:
    rows = said_by(copy, 8)
    cut = likened(copy, rows, beside)
    ended = likened(copy, rows, beside, replace(PLAIN, finish_reason="stop"))
    differences = [one.gain - other.gain for one, other in zip(ended, cut, strict=True)]
    assert max(differences) <= 1e-6
    assert min(differences) < -1e-3


def test_the_copy_can_be_steered_and_another_model_stand_by(
    copy: LoadedModel,
    merged: LoadedModel,
    llama_folder: Path,
    chat: Callable[..., Any],
) -> None:
    canaries = [chat("hello there, who are you", response="nobody that anybody would know")]
    entries = (
        AlternativeSettings(name="b", steer=SteerSettings(feature="persona", strength=2.0)),
        AlternativeSettings(name="same", model=llama_folder),
    )
    alternatives = registered(copy, llama_folder, *entries, canaries=canaries)
    of = row([9, 77, 3, 120])
    (one,) = likened(copy, [of], alternatives)
    edit = alternatives[0].edit  # type: ignore[attr-defined]
    direction = torch.from_numpy(ALONG.written_along)
    assert torch.allclose(edit.direction, push(1, direction, 1.0).direction)
    before = log_likelihood(copy, of)
    with steered(copy.blocks, [edit]):
        assert one.gain == pytest.approx(log_likelihood(copy, of) - before, abs=1e-3)
    assert abs(one.gain) > 0.01
    (same,) = likened(copy, [of], alternatives, name="same")
    assert same.gain == pytest.approx(0.0, abs=1e-4)


def test_what_cannot_be_had_names_its_entry(
    copy: LoadedModel, llama_folder: Path, tmp_path: Path
) -> None:
    gone = AlternativeSettings(name="revision-b", adapter=tmp_path / "gone")
    with pytest.raises(ModelError, match=r"identity\.alternatives: revision-b: adapter: no folder"):
        registered(copy, llama_folder, gone)
    gone = AlternativeSettings(name="revision-b", model=tmp_path / "gone")
    with pytest.raises(ModelError, match=r"identity\.alternatives: revision-b: .*no folder"):
        registered(copy, llama_folder, gone)
    unknown = AlternativeSettings(name="turned", steer=SteerSettings(feature="evil", strength=1.0))
    with pytest.raises(ConfigurationError, match="turned: the pack has no feature 'evil'") as told:
        registered(copy, llama_folder, unknown)
    assert "persona" in told.value.hint
    known = AlternativeSettings(name="turned", steer=SteerSettings(feature="persona", strength=1.0))
    with pytest.raises(ConfigurationError, match="no canaries"):
        registered(copy, llama_folder, known)
