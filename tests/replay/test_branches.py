"""Many edits of the same rows at once say what one row under one edit says alone, with transformers' own attention."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from monitor.errors import BadInput
from monitor.replay import forward
from monitor.replay.answer import answered, decoded, left_padded, stock_attention
from monitor.replay.branches import likelihood
from monitor.replay.branches.likelihood import Row, log_probabilities
from monitor.replay.branches.prefill import prefilled
from monitor.replay.branches.trunk import Branch, branches_fit, by_rows
from monitor.replay.model import LoadedModel, load_model
from monitor.replay.taps import Edit, push, steered
from monitor.settings import ReplaySettings
from monitor.values.arrays import Doubles
from tests.replay.architectures import LAYERS, OTHERS, PACKED

TOLERANCE = 2e-5
"""Of a sum of log-probabilities, relative to it; the sums are of float32 logits."""


@pytest.fixture(scope="module")
def load(tiny_model: Callable[[Any], Path]) -> Callable[[str], LoadedModel]:
    def loaded(name: str) -> LoadedModel:
        kind, options, *_ = (PACKED | OTHERS)[name]
        folder = tiny_model(getattr(transformers, kind)(**options))
        settings = ReplaySettings(model=folder, device="cpu", dtype="float32")
        return load_model(settings, LAYERS - 1, full=True)

    return loaded


def drawn(generator: np.random.Generator, count: int) -> tuple[int, ...]:
    return tuple(generator.integers(3, 400, count).tolist())


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """Answers to questions behind one system prompt: two of a question part at their first token, two later."""
    generator = np.random.default_rng(0)
    system = drawn(generator, 14)
    found = []
    for length in (9, 21):
        question = system + drawn(generator, length)
        answer = drawn(generator, 10)
        for text in (answer, answer[:9] + drawn(generator, 6), drawn(generator, 3)):
            found.append(Row(question + text, len(question)))
    # The same tokens, weighed from elsewhere on, and a row that begins differently.
    found.append(Row(found[0].ids, found[0].weighed + 4))
    return [*found, Row(drawn(generator, 5), 1)]


@pytest.fixture(scope="module")
def edits() -> list[Branch]:
    directions = np.random.default_rng(1).standard_normal((5, 32)).astype(np.float32)
    a, b, c, d, e = map(torch.from_numpy, directions)
    whole = Edit(site=2, direction=torch.nn.functional.normalize(e, dim=0), add=4.0)
    return [
        (push(1, a, 6.0),),
        (),
        (push(1, b, -6.0), push(3, a, 5.0), push(1, c, 3.0)),
        (push(LAYERS - 1, d, 8.0),),
        (push(2, e, 0.0, project_out=True),),
        (whole,),
    ]


def alone(loaded: LoadedModel, rows: list[Row], edits: list[Branch]) -> Doubles:
    sums = np.zeros((len(edits), len(rows)))
    for index, branch in enumerate(edits):
        with (
            stock_attention(loaded) as whole,
            steered(loaded.blocks, branch),
            torch.inference_mode(),
        ):
            for line, row in enumerate(rows):
                ids = torch.tensor([row.ids])
                positions = torch.arange(len(row.ids))[None]
                logits = whole(ids, position_ids=positions, use_cache=False).logits[0].double()
                told = logits.log_softmax(1)[:-1].gather(1, ids[0, 1:, None])[:, 0]
                sums[index, line] = float(told[row.weighed - 1 :].sum())
    return sums


@pytest.mark.parametrize("name", PACKED)
def test_branches_say_what_each_says_alone(
    name: str,
    load: Callable[[str], LoadedModel],
    rows: list[Row],
    edits: list[Branch],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded = load(name)
    assert branches_fit(loaded)
    expected = alone(loaded, rows, edits)
    # A copy whose edits do nothing, or the same, would prove nothing.
    assert (np.ptp(expected, axis=0) > 0.1).all()
    blocks = list(loaded.blocks)
    monkeypatch.setattr(likelihood, "LOGITS", 400 * 7)
    for batch_tokens in (64, 4_096):
        found = log_probabilities(loaded, rows, edits, batch_tokens)
        np.testing.assert_allclose(found, expected, rtol=TOLERANCE)
    assert list(loaded.blocks) == blocks
    assert not any(block._forward_hooks for block in blocks)


@pytest.mark.parametrize("name", PACKED)
def test_prefilled_prompts_are_answered_as_each_alone(
    name: str, load: Callable[[str], LoadedModel], rows: list[Row], edits: list[Branch]
) -> None:
    loaded = load(name)
    asked = [row.ids[: row.weighed] for row in rows[::3]]
    expected = []
    for branch in edits:
        with steered(loaded.blocks, branch):
            expected += [answered(loaded, ids, 6) for ids in asked]
    assert len(set(expected)) > len(asked)
    cache = prefilled(loaded, asked, edits, 64)
    ids, mask = left_padded(asked * len(edits), loaded)
    with (
        stock_attention(loaded) as whole,
        steered(loaded.blocks, by_rows(edits, len(asked))),
        torch.inference_mode(),
    ):
        output = decoded(whole, ids, mask, loaded, 6, before=cache)
    found = [
        tuple(line[: len(one)])
        for line, one in zip(output[:, ids.shape[1] :].tolist(), expected, strict=True)
    ]
    assert found == expected


def test_what_comes_before_the_edits_is_run_once(
    load: Callable[[str], LoadedModel], rows: list[Row]
) -> None:
    """Tokens that blocks see: those before the edit once, those behind it once for each branch, prefixes once."""
    loaded = load("llama")
    seen = [0] * LAYERS

    def counting(block: int) -> Callable[..., None]:
        def count(_module: object, given: tuple[torch.Tensor, ...]) -> None:
            seen[block] += given[0].shape[1]

        return count

    hooks = [
        block.register_forward_pre_hook(counting(index))
        for index, block in enumerate(loaded.blocks)
    ]
    turned = [(push(1, torch.ones(32), strength),) for strength in (-3.0, -1.0, 1.0, 3.0)]
    log_probabilities(loaded, rows, turned, 512)
    for hook in hooks:
        hook.remove()
    tokens = sum(len(row.ids) for row in rows)
    once = seen[0]
    assert once < tokens / 2
    assert seen == [once, once, 4 * once, 4 * once]


def test_edits_made_around_them_hold_for_every_branch(
    load: Callable[[str], LoadedModel], rows: list[Row], edits: list[Branch]
) -> None:
    loaded = load("qwen3")
    around = push(2, torch.arange(32.0), 3.0)
    with steered(loaded.blocks, [around]):
        found = log_probabilities(loaded, rows, edits[:3], 512)
    expected = alone(loaded, rows, [(around, *branch) for branch in edits[:3]])
    np.testing.assert_allclose(found, expected, rtol=TOLERANCE)


def test_what_fits_no_memory_is_refused(
    load: Callable[[str], LoadedModel], rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load("llama")

    def exhausted(*_given: object, **_named: object) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(forward, "tapped", exhausted)
    with pytest.raises(BadInput, match="do not fit into memory even alone"):
        log_probabilities(loaded, rows, [()], 512)


@pytest.mark.parametrize("name", ["bloom with alibi", "gpt_oss with sinks"])
def test_copies_that_are_not_packed_by_test_go_another_way(
    name: str, load: Callable[[str], LoadedModel]
) -> None:
    loaded = load(name)
    assert not branches_fit(loaded)
    assert prefilled(loaded, [(3, 4, 5)], [()], 64) is None
