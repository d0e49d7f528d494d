from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from monitor.errors import BadInput, ConfigurationError
from monitor.replay import answer
from monitor.replay.answer import stock_attention
from monitor.replay.model import LoadedModel, load_model
from monitor.replay.taps import Edit, push, steered
from monitor.research.answers import generate
from monitor.research.answers.generate import (
    answered,
    answered_under,
    answers,
    left_padded,
    token_rows,
)
from monitor.research.texts import exchange
from monitor.settings import ReplaySettings
from monitor.values.prompts import Message, Prompt


@pytest.fixture(scope="module")
def loaded(tiny_folder: Path) -> LoadedModel:
    settings = ReplaySettings(model=tiny_folder, device="cpu", dtype="float32")
    return load_model(settings, 3, full=True)


@pytest.fixture(scope="module")
def lively(lively_folder: Path) -> LoadedModel:
    settings = ReplaySettings(model=lively_folder, device="cpu", dtype="float32")
    return load_model(settings, 3, full=True)


def prompts(*texts: str) -> list[Prompt]:
    return [exchange((Message(role="user", content=text),), "unread") for text in texts]


ASKED = prompts("Hi", "What does a heron eat in the evening?", "Why?", "Tell me about the river.")


def test_padded_batches_answer_as_one_by_one(loaded: LoadedModel) -> None:
    together = answers(loaded, ASKED, max_new_tokens=12, batch=4)
    alone = [answers(loaded, [prompt], max_new_tokens=12)[0] for prompt in ASKED]
    assert together == alone
    assert len(set(together)) > 1
    edit = Edit(
        site=1, direction=torch.nn.functional.normalize(torch.ones(32), dim=0), add=9.0,
        first_position=1,
    )  # fmt: skip
    with steered(loaded.blocks, [edit]):
        together = answers(loaded, ASKED, max_new_tokens=12, batch=4)
        assert together == [answers(loaded, [p], max_new_tokens=12)[0] for p in ASKED]
    assert together != alone


@pytest.mark.parametrize("rows", [64, 7])
def test_several_edits_at_once_answer_as_each_alone(
    lively: LoadedModel, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one batch, and in batches of one prompt under all of them and the rest."""
    monkeypatch.setattr(generate, "ROWS", rows)
    ways = [
        [],
        [push(1, torch.ones(32), 9.0)],
        [push(1, torch.ones(32), -9.0), push(2, torch.arange(32.0), 5.0)],
        [push(2, torch.arange(32.0), 0.0, project_out=True)],
    ]
    together = answered_under(lively, ways, ASKED, 12)
    for edits, found in zip(ways, together, strict=True):
        with steered(lively.blocks, edits):
            assert found == tuple(answered(lively, [prompt], 12)[0] for prompt in ASKED)
    assert len({one[1].response for one in together}) == len(ways)
    assert answered_under(lively, ways, [], 12) == [()] * len(ways)
    assert not any(block._forward_hooks for block in lively.blocks)


def test_what_fills_up_an_answer_that_ended_is_no_part_of_it(
    lively: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GPT-2 has no padding token, and a "!" under the id that fills rows up."""
    (mark,) = lively.tokenizer("!", add_special_tokens=False)["input_ids"]
    monkeypatch.setattr(answer, "padding", lambda _: mark)
    said = answers(lively, ASKED, max_new_tokens=12)
    # What one of them says in its third place ends an answer from now on.
    row = token_rows(lively, [replace(ASKED[0], response=None)])[0]
    end = answer.answered(lively, row.ids, 3)[-1]
    whole: Any = lively.answerer
    monkeypatch.setattr(whole.generation_config, "eos_token_id", [end])
    together = answers(lively, ASKED, max_new_tokens=12)
    assert together == [answers(lively, [prompt], max_new_tokens=12)[0] for prompt in ASKED]
    assert len(together[0]) < len(said[0])
    assert answered_under(lively, [[], []], ASKED, 12) == [answered(lively, ASKED, 12)] * 2


def test_greedy_answers_follow_the_logits(loaded: LoadedModel) -> None:
    row = token_rows(loaded, [exchange(ASKED[1].messages, "")])[0]
    ids = list(row.ids)
    with stock_attention(loaded) as whole, torch.inference_mode():
        for _ in range(6):
            ids.append(int(whole(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    text = loaded.tokenizer.decode(ids[len(row.ids) :], skip_special_tokens=True).strip()
    assert answers(loaded, [ASKED[1]], max_new_tokens=6) == [text]


def test_the_seed_decides_what_is_drawn_and_leaves_the_global_one_alone(
    loaded: LoadedModel,
) -> None:
    state = torch.get_rng_state()
    one, two, other = (
        answers(loaded, ASKED, max_new_tokens=12, temperature=1.0, seed=seed) for seed in (1, 1, 2)
    )
    assert one == two != other
    assert torch.equal(state, torch.get_rng_state())


def test_attention_is_restored_even_after_an_error(loaded: LoadedModel) -> None:
    before = loaded.model.config._attn_implementation
    with pytest.raises(RuntimeError, match="halfway"), stock_attention(loaded) as whole:
        assert whole.config._attn_implementation == "sdpa"
        raise RuntimeError("halfway")
    assert loaded.model.config._attn_implementation == before != "sdpa"


def test_what_cannot_be_answered_is_refused(loaded: LoadedModel, tiny_folder: Path) -> None:
    settings = ReplaySettings(model=tiny_folder, device="cpu", dtype="float32")
    with pytest.raises(ConfigurationError, match="whole model"):
        answers(load_model(settings, 1), ASKED, max_new_tokens=4)
    with pytest.raises(BadInput, match="max_new_tokens"):
        answers(loaded, ASKED, max_new_tokens=0)
    with pytest.raises(BadInput, match="temperature"):
        answers(loaded, ASKED, max_new_tokens=4, temperature=float("nan"))
    with pytest.raises(BadInput, match="no room"):
        answers(loaded, ASKED, max_new_tokens=512)
    bad = exchange((Message(role="no such role!", content="Hi"),), "")
    with pytest.raises(BadInput, match="prompt 1 cannot be replayed"):
        answers(loaded, [bad], max_new_tokens=4)


def test_rows_are_padded_on_the_left(loaded: LoadedModel) -> None:
    ids, mask = left_padded([[5, 6, 7], [8]], loaded)
    assert ids[1, -1] == 8
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]
