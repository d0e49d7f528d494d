"""The surprise of served answers under the whole copy, on a tiny model whose laws can be summed up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor
from transformers.generation.logits_process import TopKLogitsWarper, TopPLogitsWarper

from monitor.replay import passes as module
from monitor.replay.answer import stock_attention
from monitor.replay.model import LoadedModel, load_model
from monitor.replay.regions import Tokens
from monitor.replay.surprise import end_tokens, surprises
from monitor.settings import ReplaySettings
from monitor.values.arrays import Doubles
from monitor.values.prompts import Sampling
from monitor.values.surprise import (
    OTHER_COUNTED,
    OTHER_TOKENS,
    SLIP,
    TILTS,
    NotWeighed,
    Surprise,
)

PLAIN = Sampling(temperature=1.0, finish_reason="length")


@pytest.fixture(scope="module")
def copy(llama_folder: Path) -> LoadedModel:
    settings = ReplaySettings(model=llama_folder, device="cpu", dtype="float32")
    return load_model(settings, 2, full=True)


def row(asked: Sequence[int], said: Sequence[int]) -> Tokens:
    ids = (*asked, *said)
    return Tokens(
        ids=ids,
        prompt_tokens=len(asked),
        response_tokens=len(said),
        readable=np.ones(len(ids), dtype=np.bool_),
    )


def logits_of(copy: LoadedModel, ids: Sequence[int]) -> torch.Tensor:
    with stock_attention(copy) as whole, torch.inference_mode():
        logits: torch.Tensor = whole(input_ids=torch.tensor([list(ids)])).logits[0]
    return logits


def one(copy: LoadedModel, asked: Sequence[int], said: Sequence[int], law: Sampling) -> Surprise:
    [found] = surprises(copy, [row(asked, said)], [law])
    assert isinstance(found, Surprise)
    return found


def drawn(
    copy: LoadedModel,
    law: Sampling,
    *,
    seeds: int,
    tokens: int = 12,
    by: Callable[[torch.Tensor], torch.Tensor] = lambda log_law: log_law,
) -> list[Surprise]:
    """Answers sampled token by token from the copy's law, as ``by`` changes it, and weighed."""
    asked = [5, 80, 31, 7]
    answers = torch.tensor([asked] * seeds)
    generator = torch.Generator().manual_seed(11)
    with stock_attention(copy) as whole, torch.inference_mode():
        for _ in range(tokens):
            logits = whole(input_ids=answers).logits[:, -1]
            heated = (logits / law.temperature).log_softmax(dim=1)
            if law.top_k:
                heated = TopKLogitsWarper(law.top_k)(answers, heated)
            if law.top_p:
                heated = TopPLogitsWarper(law.top_p)(answers, heated)
            chosen = torch.multinomial(by(heated).softmax(dim=1), 1, generator=generator)
            answers = torch.cat([answers, chosen], dim=1)
    rows = [row(asked, ids[len(asked) :]) for ids in answers.tolist()]
    found = surprises(copy, rows, [law] * seeds)
    assert all(isinstance(one, Surprise) for one in found)
    return [one for one in found if isinstance(one, Surprise)]


@pytest.mark.parametrize("temperature", [1.0, 0.1])
@pytest.mark.parametrize(
    ("bets_of", "odd"),
    [
        (attrgetter("log_bets"), OTHER_TOKENS),
        (attrgetter("counted_bets"), OTHER_COUNTED),
    ],
    ids=["any", "counted"],
)
def test_no_bet_gains_in_the_mean_whatever_some_tokens_are(
    copy: LoadedModel,
    temperature: float,
    bets_of: Callable[[Surprise], Doubles],
    odd: float,
) -> None:
    """Summed over all tokens, each at its probability; the centred surprise is exactly 0.

    A share of the tokens may be any at all: those that win most. In a cold law the caps bind.
    """
    asked, drawn_by = [5, 80, 31], replace(PLAIN, temperature=temperature)
    logits = logits_of(copy, asked)[-1] / temperature
    law = logits.log_softmax(dim=0).double().numpy()
    found = [one(copy, asked, [token], drawn_by) for token in range(len(law))]
    weights = np.exp(law)
    bets = np.exp([bets_of(answer) for answer in found])
    for share in (0.0, odd / 2, odd):
        means = (1 - share) * (weights @ bets) + share * bets.max(axis=0)
        assert (means <= 1.0 + 1e-5).all()
    assert (means >= 0.99).all(), "and no more is taken off than that"
    assert weights @ [answer.excess for answer in found] == pytest.approx(0.0, abs=1e-4)
    spread = weights @ np.square([answer.excess for answer in found])
    assert found[0].variance == pytest.approx(spread, rel=1e-3)


def test_the_bets_hold_with_what_top_p_cuts_off_and_a_share_of_slips(copy: LoadedModel) -> None:
    asked, law = [5, 80, 31], replace(PLAIN, temperature=0.7, top_p=0.8)
    heated = (logits_of(copy, asked)[-1:] / 0.7).log_softmax(dim=1)
    cut = TopPLogitsWarper(0.8)(torch.tensor([asked]), heated).softmax(dim=1)[0].double().numpy()
    whole = heated.softmax(dim=1)[0].double().numpy()
    found = [one(copy, asked, [token], law) for token in range(len(whole))]
    bets = np.exp([answer.log_bets for answer in found])
    for slips in (0.0, SLIP / 2, SLIP):
        weights = (1 - slips) * cut + slips * whole
        assert (weights @ bets <= 1.0 + 1e-6).all()
    assert [answer.off_support for answer in found] == (cut == 0.0).astype(int).tolist()


def test_answers_of_the_copy_are_what_it_would_say(copy: LoadedModel) -> None:
    own = drawn(copy, PLAIN, seeds=300)
    z = np.array([answer.z for answer in own])
    assert abs(z.mean()) < 0.2
    assert z.std() == pytest.approx(1.0, abs=0.15)
    assert np.mean([np.exp(answer.log_bets) for answer in own], axis=0)[:4].max() < 1.3


def test_answers_of_another_law_are_told(copy: LoadedModel) -> None:
    other = drawn(copy, PLAIN, seeds=60, by=lambda log_law: log_law.roll(1, dims=1))
    assert np.mean([answer.z for answer in other]) > 3.0
    gains = [np.logaddexp.reduce(answer.log_bets) - np.log(len(TILTS)) for answer in other]
    assert np.mean(gains) > 3.0


@pytest.mark.parametrize(
    "law",
    [
        replace(PLAIN, temperature=0.7, top_p=0.9),
        replace(PLAIN, temperature=1.3, top_k=20),
    ],
)
def test_the_request_s_own_parameters_are_honoured(copy: LoadedModel, law: Sampling) -> None:
    own = drawn(copy, law, seeds=200)
    assert abs(np.mean([answer.z for answer in own])) < 0.25
    assert sum(answer.off_support for answer in own) == 0
    taken_otherwise = [
        one(copy, [5, 80, 31, 7], [9, 77, 200, 3], replace(PLAIN, top_k=1, temperature=0.0))
    ]
    assert taken_otherwise[0].law == "greedy"


def test_penalties_are_those_of_the_server(copy: LoadedModel) -> None:
    asked, said = [5, 80, 31], [9, 9, 31, 9]
    law = replace(PLAIN, repetition_penalty=1.3)
    found = one(copy, asked, said, law)
    excess = 0.0
    for place, token in enumerate(said):
        ids = [*asked, *said[:place]]
        raw = logits_of(copy, ids)[-1:]
        processors = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(1.3)])
        log_law = processors(torch.tensor([ids]), raw).log_softmax(dim=1)[0].double()
        entropy = -(log_law.exp() @ log_law)
        excess += float(-log_law[token] - entropy)
    assert found.excess == pytest.approx(excess, abs=1e-4)


def test_counted_penalties_fall_on_what_was_said(copy: LoadedModel) -> None:
    law = replace(PLAIN, frequency_penalty=0.5, presence_penalty=0.25)
    found = one(copy, [5, 80, 31], [9, 9, 9], law)
    raw = logits_of(copy, [5, 80, 31, 9, 9])
    excess = 0.0
    for place, taken_off in enumerate((0.0, 0.75, 1.25)):
        scores = raw[2 + place].double().clone()
        scores[9] -= taken_off
        log_law = scores.log_softmax(dim=0)
        excess += float(-log_law[9] + log_law.exp() @ log_law)
    assert found.excess == pytest.approx(excess, abs=1e-4)


def test_a_bias_is_the_request_s_and_comes_before_the_penalties(copy: LoadedModel) -> None:
    law = replace(PLAIN, logit_bias=((9, 4.0), (31, -100.0), (10**8, 1.0)), repetition_penalty=1.3)
    found = one(copy, [5, 80, 31], [9], law)
    scores = logits_of(copy, [5, 80, 31])[-1].double().clone()
    scores[9] += 4.0
    scores[31] -= 100.0
    for token in (5, 80, 31):
        scores[token] = scores[token] / 1.3 if scores[token] > 0 else scores[token] * 1.3
    log_law = scores.log_softmax(dim=0)
    assert found.excess == pytest.approx(
        float(-log_law[9] + log_law.exp() @ log_law.clamp_min(-200.0)), abs=1e-4
    )


def test_pieces_stretches_and_company_change_nothing(
    copy: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long answers go in stretches over a cache, short ones beside them are padded."""
    random = np.random.default_rng(3)
    rows = [
        row(
            random.integers(3, 400, size=asked).tolist(),
            random.integers(3, 400, size=said).tolist(),
        )
        for asked, said in ((4, 70), (30, 5), (9, 66), (3, 1))
    ]
    laws = [
        replace(PLAIN, finish_reason="stop"),
        replace(PLAIN, top_p=0.9),
        replace(PLAIN, frequency_penalty=0.4, repetition_penalty=1.2),
        replace(PLAIN, temperature=0.0),
    ]
    alone = [surprises(copy, [of], [law])[0] for of, law in zip(rows, laws, strict=True)]
    for limit in (2**25, 400 * 150, 400 * 40, 400):
        monkeypatch.setattr(module, "LOGITS", limit)
        for before, after in zip(alone, surprises(copy, rows, laws), strict=True):
            assert isinstance(before, Surprise)
            assert isinstance(after, Surprise)
            assert after.excess == pytest.approx(before.excess, abs=2e-3)
            assert after.variance == pytest.approx(before.variance, abs=2e-3)
            assert after.peak == pytest.approx(before.peak, abs=2e-3)
            assert after.log_bets == pytest.approx(before.log_bets, abs=2e-3)
            assert after.staked == pytest.approx(before.staked, abs=2e-3)


def test_no_more_logits_are_made_than_there_is_room_for(
    copy: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOGITS", 400 * 25)
    made: list[int] = []

    def told(_head: Any, _given: Any, logits: torch.Tensor) -> None:
        made.append(logits.numel())

    head = copy.answerer.get_output_embeddings()  # type: ignore[union-attr]
    handle = head.register_forward_hook(told)  # type: ignore[union-attr]
    try:
        surprises(copy, [row([5, 6], range(3, 103))], [PLAIN])
    finally:
        handle.remove()
    assert max(made) <= 400 * 25
    assert sum(made) == 400 * 101


def test_the_end_is_bet_on_and_never_for_a_gain_where_it_may_be_a_limit(copy: LoadedModel) -> None:
    asked, said = [5, 80, 31], [9, 77]
    assert end_tokens(copy) == (2,)
    cut_short = one(copy, asked, said, PLAIN).log_bets
    law = logits_of(copy, [*asked, *said])[-1].softmax(dim=0).double()
    ended = one(copy, asked, said, replace(PLAIN, finish_reason="stop")).log_bets
    for place, tilt in enumerate(TILTS):
        tilted = law ** (1 - tilt)
        bet = float((tilted[2] / tilted.sum() / law[2]).log())
        assert ended[place] - cut_short[place] == pytest.approx(min(bet, 0.0), abs=1e-4)


def test_greedy_answers_give_nothing_away(copy: LoadedModel) -> None:
    law, ids = replace(PLAIN, temperature=0.0), [5, 80, 31]
    for _ in range(10):
        ids.append(int(logits_of(copy, ids)[-1].argmax()))
    found = one(copy, ids[:3], ids[3:], law)
    assert (found.excess, found.given_away, found.tokens) == (0.0, 0, 10)
    assert (found.log_bets < 0).all()
    strange = one(copy, ids[:3], [*ids[3:8], 399, 398, 397, 396, 395], law)
    assert strange.given_away >= 4
    assert strange.log_bets.max() > 5.0


def test_laws_that_are_no_numbers_are_left_out(llama_folder: Path) -> None:
    settings = ReplaySettings(model=llama_folder, device="cpu", dtype="float32")
    broken = load_model(settings, 2, full=True)
    with torch.no_grad():
        broken.answerer.get_output_embeddings().weight[7] = torch.nan  # type: ignore[union-attr]
    for law in (PLAIN, replace(PLAIN, temperature=0.0)):
        assert surprises(broken, [row([5, 6], [9, 8])], [law]) == [NotWeighed.NOT_FINITE]


def test_a_batch_that_does_not_fit_is_halved_and_the_last_one_left_out(
    copy: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed = module._pass

    def small(whole: Any, readers: Sequence[Any], loaded: LoadedModel) -> None:
        if len(readers) > 1 or readers[0].row.response_tokens > 3:
            raise torch.OutOfMemoryError("used up")
        passed(whole, readers, loaded)

    monkeypatch.setattr(module, "_pass", small)
    rows = [row([5, 6], [9, 8]), row([5, 6], [9, 8, 7, 6]), row([5, 6], [7])]
    found = surprises(copy, rows, [PLAIN] * 3)
    assert [isinstance(one, Surprise) for one in found] == [True, False, True]
    assert found[1] is NotWeighed.OUT_OF_MEMORY
