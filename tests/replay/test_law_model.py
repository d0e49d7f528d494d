"""The law of the real small model's own answers, read back from their text as from a log that does not tell it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from monitor.drift.identity import SHARES, wagers
from monitor.drift.law import estimated
from monitor.replay.model import LoadedModel, load_model
from monitor.replay.regions import Tokens
from monitor.replay.surprise import surprises
from monitor.replay.twin import Draw, answers_of
from monitor.settings import IdentitySettings, ReplaySettings
from monitor.values.likelihood import EstimatedLaw, Likelihood, Likelihoods, Untold
from monitor.values.prompts import Sampling
from monitor.values.questions import pool
from monitor.values.surprise import Surprise

pytestmark = [pytest.mark.model, pytest.mark.nightly]

TRUE = Sampling(temperature=0.7, top_p=0.9)
TOKENS, BASELINE, LATER = 40, 90, 45


@pytest.fixture(scope="module")
def copy(chat_model_path: Path) -> LoadedModel:
    settings = ReplaySettings(model=chat_model_path, device="cpu", dtype="float32")
    return load_model(settings, 3, full=True)


def logged(copy: LoadedModel, count: int) -> tuple[list[Tokens], list[Sampling]]:
    """Answers to open questions, tokenised anew from what they say, and all that the record tells of each."""
    tokenizer = copy.tokenizer
    asked = [
        tuple(
            tokenizer(
                f"<|im_start|>user\n{one.text}<|im_end|>\n<|im_start|>assistant\n",
                add_special_tokens=False,
            )["input_ids"]
        )
        for one in pool()
        if one.open
    ]
    prompts = [asked[n % len(asked)] for n in range(count)]
    draws = [Draw(ids, TRUE, TOKENS, n) for n, ids in enumerate(prompts)]
    rows, told = [], []
    for ids, said in zip(prompts, answers_of(copy, draws), strict=True):
        assert isinstance(said, tuple | list)
        read = tokenizer(
            tokenizer.decode(said, skip_special_tokens=True), add_special_tokens=False
        )["input_ids"]
        if not read:
            continue
        rows.append(
            Tokens(
                ids=(*ids, *read),
                prompt_tokens=len(ids),
                response_tokens=len(read),
                readable=np.ones(len(ids) + len(read), dtype=np.bool_),
            )
        )
        told.append(Sampling(finish_reason="stop" if len(said) < TOKENS else "length"))
    return rows, told


@pytest.mark.timeout(1200)
def test_the_law_is_estimated_and_the_copy_s_later_answers_are_not_accused(
    copy: LoadedModel,
) -> None:
    rows, told = logged(copy, BASELINE + LATER)
    sums = Likelihoods()
    known = surprises(
        copy, rows[:BASELINE], [Untold(said=one, law=None) for one in told[:BASELINE]]
    )
    for one in known:
        assert isinstance(one, Likelihood)
        sums += one
    law = estimated(sums)
    assert isinstance(law, EstimatedLaw), law
    assert law.temperature == pytest.approx(0.7, abs=0.12)
    assert law.high >= 0.7
    assert 0.85 <= law.top_p <= 0.98
    found = surprises(copy, rows[BASELINE:], [Untold(said=one, law=law) for one in told[BASELINE:]])
    won = [wagers(one, IdentitySettings().tolerance) for one in found if isinstance(one, Surprise)]
    total = np.array(won).cumsum(axis=0)
    highest = float((np.logaddexp.reduce(total, axis=1) - math.log(len(SHARES))).max())
    assert highest < math.log(20.0), str(law)
