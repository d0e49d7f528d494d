"""What the worker extension reads, fed with forward passes as vLLM runs them: pieces, mixed, some of them twice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from monitor.backends.vllm import wire
from monitor.backends.vllm.batch import MARKS
from monitor.backends.vllm.capture import Capture, Capturing, _hook, residual_of
from monitor.errors import BadInput, ModelError
from monitor.replay.answer import stock_attention
from monitor.replay.engine import ReplayEngine
from monitor.replay.model import load_model
from monitor.replay.pooling import FeatureBank
from monitor.replay.regions import Tokens
from monitor.replay.surprise import end_tokens, surprises
from monitor.settings import ReplaySettings
from monitor.values.prompts import Prompt, Sampling
from monitor.values.surprise import Surprise
from tests.backends.serving import residuals

LAW = Sampling(temperature=1.0, finish_reason="stop")


class Passes:
    """vLLM's runner as far as it is looked at: it is told what stands in a pass, and plays the residuals."""

    def __init__(self, loaded: Any, sites: Sequence[int], rows: dict[str, Tokens]) -> None:
        self.rows = rows
        self.input_batch = SimpleNamespace(req_ids=[], num_reqs=0, num_computed_tokens_cpu=[])
        self.query_start_loc = SimpleNamespace(np=[0])
        self.requests = {
            name: SimpleNamespace(
                prompt_token_ids=list(row.ids),
                sampling_params=SimpleNamespace(
                    extra_args={MARKS: {"name": f"row-{name}"} | wire.marks_of(row)}
                ),
            )
            for name, row in rows.items()
        }
        self.requests["someone else's"] = SimpleNamespace(
            prompt_token_ids=[1, 2, 3], sampling_params=SimpleNamespace(extra_args=None)
        )
        self._residuals: dict[str, dict[int, torch.Tensor]] = {
            name: residuals(loaded, row.ids, sites) for name, row in rows.items()
        }
        width = next(iter(next(iter(self._residuals.values())).values())).shape[1]
        self._residuals["someone else's"] = {site: torch.ones(3, width) for site in sites}

    def run(self, capturing: Capturing, pieces: Sequence[tuple[str, int, int]]) -> None:
        """One pass with these pieces: request, first token, token behind the last."""
        self.input_batch.req_ids = [name for name, _, _ in pieces]
        self.input_batch.num_reqs = len(pieces)
        self.input_batch.num_computed_tokens_cpu = [start for _, start, _ in pieces]
        sizes = [stop - start for _, start, stop in pieces]
        self.query_start_loc.np = np.concatenate([[0], np.cumsum(sizes)])
        for site in capturing.bank.sites:
            parts = [self._residuals[name][site][start:stop] for name, start, stop in pieces]
            whole = torch.cat(parts)
            # As vLLM's blocks do: two addends, which the next block's norm then writes over.
            half = whole * 0.25
            output = (whole - half, half)
            _hook(site, capturing)(torch.nn.Module(), None, output)
            for tensor in output:
                tensor.zero_()


@pytest.fixture
def read(model: Path, pack: Any, prompts: list[Prompt]) -> Any:
    """Rows by request, the playing runner, what captures, and the readings that our own engine gives."""
    settings = ReplaySettings(model=model, device="cpu", dtype="float32", max_tokens=512)
    loaded = load_model(settings, pack.deepest_site)
    engine = ReplayEngine(loaded, pack.features, settings, pack.covariates)
    prepared = engine.prepare(prompts)
    rows = {f"r{index}": row for index, row in enumerate(prepared.replays)}
    expected = {
        f"row-r{prepared.replay_of[index]}": np.concatenate([one.readings, one.covariates])
        for index, one in enumerate(engine.run(prepared))
    }
    columns = (*pack.features, *(one.as_feature() for one in pack.covariates))
    bank = FeatureBank(columns, loaded.config.hidden_size, torch.device("cpu"))
    passes = Passes(loaded, bank.sites, rows)
    return rows, passes, Capturing(passes, bank), expected


def same(capturing: Capturing, expected: dict[str, Any]) -> None:
    assert capturing.done.keys() == expected.keys()
    for name, reading in capturing.done.items():
        np.testing.assert_allclose(reading.readings, expected[name], rtol=1e-4, atol=1e-5)
    assert not capturing.rows


def test_whole_prompts_in_another_order_beside_those_of_others(read: Any) -> None:
    rows, passes, capturing, expected = read
    whole = [(name, 0, len(row.ids)) for name, row in rows.items()]
    passes.run(capturing, [*whole[5:], ("someone else's", 0, 3), *whole[:5]])
    same(capturing, expected)


def test_pieces_over_many_passes_and_prompts_begun_again(read: Any) -> None:
    rows, passes, capturing, expected = read
    generator = np.random.default_rng(1)
    places = dict.fromkeys(rows, 0)
    preempted = 0
    while left := [name for name, row in rows.items() if places[name] < len(row.ids)]:
        pieces = []
        for name in generator.permutation(left)[:4]:
            if places[name] and preempted < 3:
                places[name] = 0
                preempted += 1
            stop = min(len(rows[name].ids), places[name] + int(generator.integers(1, 9)))
            pieces.append((str(name), places[name], stop))
            places[name] = stop
        passes.run(capturing, pieces)
    assert capturing.begun_again == preempted == 3
    assert capturing.pieces > len(rows)
    same(capturing, expected)


def test_what_comes_from_a_cache_is_never_taken_for_read(read: Any) -> None:
    rows, passes, capturing, _ = read
    passes.run(capturing, [("r5", 4, len(rows["r5"].ids))])
    assert not capturing.done
    capturing.forget(["row-r5"])
    assert not capturing.rows


def test_what_the_engine_says_itself_is_not_read(read: Any) -> None:
    rows, passes, capturing, _ = read
    passes.run(capturing, [("r2", 0, len(rows["r2"].ids))])
    before = capturing.done["row-r2"]
    passes._residuals["r2"] = {site: torch.ones(99, 32) for site in capturing.bank.sites}
    passes.run(capturing, [("r2", len(rows["r2"].ids), len(rows["r2"].ids) + 1)])
    np.testing.assert_array_equal(capturing.done["row-r2"].readings, before.readings)
    assert not capturing.rows


def config(**changes: Any) -> Any:
    one = SimpleNamespace
    return one(
        model_config=one(
            enforce_eager=changes.get("eager", True),
            get_hidden_size=lambda: 32,
            dtype=torch.float32,
        ),
        cache_config=one(enable_prefix_caching=changes.get("caching", False)),
        parallel_config=one(
            pipeline_parallel_size=changes.get("stages", 1),
            data_parallel_size=changes.get("copies", 1),
        ),
        speculative_config=changes.get("drafts"),
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"eager": False}, "captured graphs"),
        ({"caching": True}, "prefix cache"),
        ({"stages": 2}, "parallelism"),
        ({"copies": 2}, "parallelism"),
        ({"drafts": object()}, "speculative"),
    ],
)
def test_an_engine_that_hides_tokens_is_refused(
    changes: dict[str, Any], said: str, pack_folder: Path
) -> None:
    class Worker(Capture):
        model_runner = SimpleNamespace(input_batch=0, query_start_loc=0, requests=0)
        vllm_config = config(**changes)

    with pytest.raises(ModelError, match=said):
        Worker().persona_begin(str(pack_folder))


class Served(torch.nn.Module):
    """A model as vLLM holds it: its forward pass ends before the LM head."""

    def __init__(self, answerer: Any) -> None:
        super().__init__()
        self.model, self.compute_logits = answerer.model, answerer.lm_head

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        # Past the blocks' hooks, which read the residuals that `Passes` plays.
        hooks = [block._forward_hooks for block in self.model.layers]
        kept = [dict(one) for one in hooks]
        for one in hooks:
            one.clear()
        states: torch.Tensor = self.model(input_ids=ids).last_hidden_state[0]
        for one, held in zip(hooks, kept, strict=True):
            one.update(held)
        return states


def test_the_extension_reads_as_vllm_calls_it(
    model: Path, pack: Any, pack_folder: Path, prompts: list[Prompt], read: Any
) -> None:
    rows, passes, _, expected = read
    settings = ReplaySettings(model=model, device="cpu", dtype="float32")
    loaded = load_model(settings, pack.deepest_site, full=True)
    assert loaded.answerer is not None
    served = Served(loaded.answerer)
    weighed = {name: row for name, row in rows.items() if row.prompt_tokens < len(row.ids)}
    for name, row in weighed.items():
        asked = wire.Asked(tokens=row, laws=(LAW,), ends=end_tokens(loaded))
        passes.requests[name].sampling_params.extra_args[MARKS] |= asked.marks

    class Runner(SimpleNamespace):
        """A model, and what `Passes` tells of a pass."""

    class Worker(Capture):
        model_runner = Runner(
            model=served,
            device=torch.device("cpu"),
            input_batch=passes.input_batch,
            query_start_loc=passes.query_start_loc,
            requests=passes.requests,
        )
        vllm_config = config()

    worker = Worker()
    assert worker.persona_begin(str(pack_folder)) == {"device": "cpu", "dtype": "float32"}
    for name, row in rows.items():
        passes.input_batch.req_ids, passes.input_batch.num_reqs = [name], 1
        passes.input_batch.num_computed_tokens_cpu = [0]
        passes.query_start_loc.np = [0, len(row.ids)]
        captured: Capturing = worker._persona_capturing  # type: ignore[attr-defined]
        for site in captured.bank.sites:
            captured.read(site, passes._residuals[name][site])
        with stock_attention(loaded):
            served(torch.tensor([row.ids]))
    names = [f"row-{name}" for name in rows]
    taken = worker.persona_take([*names, "nobody's"])
    assert taken.keys() == expected.keys()
    for name, packed in taken.items():
        reading = wire.read_of(packed, 5)
        np.testing.assert_allclose(reading.readings, expected[name], rtol=1e-4, atol=1e-5)
    found = surprises(loaded, list(weighed.values()), [LAW] * len(weighed))
    assert {name for name, one in taken.items() if "weighed" in one} == {
        f"row-{n}" for n in weighed
    }
    for name, one in zip(weighed, found, strict=True):
        [answer] = wire.answered_of(taken[f"row-{name}"], 5, 1).weighed
        assert isinstance(answer, Surprise)
        assert isinstance(one, Surprise)
        assert answer.excess == pytest.approx(one.excess, abs=1e-4)
        assert answer.law == one.law == "sampled"
    assert worker.persona_take(names) == {}
    assert worker.persona_statistics() == {"pieces": len(rows), "begun_again": 0}


def test_a_block_gives_a_tensor_or_two_addends() -> None:
    one = torch.ones(2, 3)
    for output in (one * 3, (one * 3,), (one * 3, None), (one, one * 2)):
        torch.testing.assert_close(residual_of(output), one * 3)


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt_tokens": 99},
        {"prompt_tokens": -1},
        {"readable": "!"},
        {"readable": ""},
        {"reasoning_tokens": None},
        {"reasoning_tokens": 10**400},
    ],
)
def test_a_row_that_is_none_is_refused(changes: dict[str, Any]) -> None:
    row = Tokens(
        ids=(1, 2, 3), prompt_tokens=2, response_tokens=1, readable=np.array([True, False, True])
    )
    given = wire.marks_of(row)
    again = wire.tokens_of(row.ids, given)
    assert again.identity == row.identity
    assert again.response_tokens == 1
    with pytest.raises(BadInput):
        wire.tokens_of(row.ids, given | changes)
