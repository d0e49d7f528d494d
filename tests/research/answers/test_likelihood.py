from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from monitor.errors import BadInput
from monitor.replay.answer import stock_attention
from monitor.replay.model import LoadedModel, load_model
from monitor.replay.taps import Edit, push, steered
from monitor.research.answers import likelihood
from monitor.research.answers.generate import token_rows
from monitor.research.answers.likelihood import Weighing, response_log_probabilities
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


EDITS = [
    [],
    [push(1, torch.ones(32), 2.0)],
    [push(2, torch.arange(32.0), 1.0), push(1, torch.ones(32), 0.0, project_out=True)],
]


@pytest.mark.parametrize("packed", [True, False])
def test_several_edits_at_once_are_each_alone(
    loaded: LoadedModel, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packed as on a copy that the tests compare, and in padded batches as on any other."""
    monkeypatch.setattr(likelihood, "branches_fit", lambda _: packed)
    sums, tokens = Weighing(loaded).under(EDITS, PROMPTS)
    for edits, found in zip(EDITS, sums, strict=True):
        with steered(loaded.blocks, edits):
            alone = [response_log_probabilities(loaded, [prompt])[0][0] for prompt in PROMPTS]
        np.testing.assert_allclose(found, alone, rtol=2e-5)
    assert (np.ptp(sums, axis=0) > 0.05).all()
    assert tokens.tolist() == [len(prompt.response or "") for prompt in PROMPTS]


def test_nothing_is_weighed_twice(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    weighing, run = Weighing(loaded), list[tuple[int, int]]()
    plain = likelihood._sums

    def counted(loaded: Any, rows: Any, branches: Any, *rest: Any) -> Any:
        run.append((len(branches), len(rows)))
        return plain(loaded, rows, branches, *rest)

    monkeypatch.setattr(likelihood, "_sums", counted)
    first, _ = weighing.under(EDITS[:2], PROMPTS[:2])
    again = [[replace(edit) for edit in edits] for edits in EDITS]
    second, _ = weighing.under(again, [*PROMPTS, PROMPTS[0]])
    assert run == [(2, 2), (2, 1), (1, 3)]
    np.testing.assert_array_equal(second[:2, :2], first)
    np.testing.assert_array_equal(second[:, 3], second[:, 0])
    weighing.plain(PROMPTS)
    assert len(run) == 3
    # The same edit with another strength is another edit.
    weighing.under([[replace(EDITS[1][0], add=3.0)]], PROMPTS[:1])
    assert run[-1] == (1, 1)
