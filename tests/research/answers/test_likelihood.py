from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from monitor.errors import BadInput
from monitor.replay.answer import stock_attention
from monitor.replay.model import LoadedModel, load_model
from monitor.replay.taps import Edit, steered
from monitor.research.answers.generate import token_rows
from monitor.research.answers.likelihood import response_log_probabilities
from monitor.research.texts import exchange
from monitor.settings import ReplaySettings
from monitor.values.prompts import Message

PROMPTS = [
    exchange((Message(role="user", content=question),), answer)
    for question, answer in [
        ("Hi", "Hello you, and good evening."),
        ("What does a heron eat in the evening?", "Fish."),
        ("Why?", "Because the river is quiet then and the fish come up."),
    ]
]


@pytest.fixture(scope="module")
def loaded(tiny_folder: Path) -> LoadedModel:
    settings = ReplaySettings(model=tiny_folder, device="cpu", dtype="float32")
    return load_model(settings, 3, full=True)


def test_they_are_transformers_own_losses(loaded: LoadedModel) -> None:
    sums, tokens = response_log_probabilities(loaded, PROMPTS, batch=2)
    for prompt, value, count in zip(PROMPTS, sums, tokens, strict=True):
        row = token_rows(loaded, [prompt])[0]
        ids = torch.tensor([row.ids])
        labels = ids.clone()
        labels[:, : row.prompt_tokens] = -100
        with stock_attention(loaded) as whole, torch.inference_mode():
            loss = float(whole(ids, labels=labels, use_cache=False).loss)
        assert count == row.response_tokens == len(prompt.response or "")
        assert value == pytest.approx(-loss * count, rel=1e-4)


def test_batches_do_not_matter_and_steering_does(loaded: LoadedModel) -> None:
    sums, _ = response_log_probabilities(loaded, PROMPTS, batch=1)
    np.testing.assert_allclose(response_log_probabilities(loaded, PROMPTS)[0], sums, rtol=1e-4)
    direction = torch.nn.functional.normalize(torch.ones(32), dim=0)
    edit = Edit(site=1, direction=direction, add=0.2, first_position=16)
    with steered(loaded.blocks, [edit]):
        steered_sums, _ = response_log_probabilities(loaded, PROMPTS)
        alone, _ = response_log_probabilities(loaded, PROMPTS, batch=1)
    np.testing.assert_allclose(steered_sums, alone, rtol=2e-5)
    assert (np.abs(steered_sums - sums) > 0.05).all()


def test_a_prompt_without_a_response_is_refused(loaded: LoadedModel) -> None:
    asked = exchange((Message(role="user", content="Hi"),), "")
    with pytest.raises(BadInput, match="prompt 2 needs a prompt and a response"):
        response_log_probabilities(loaded, [PROMPTS[0], asked])
