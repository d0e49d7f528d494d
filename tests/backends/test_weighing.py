"""Answers weighed by another engine's server: the same numbers as our own whole copy gives, or refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from sqlalchemy import Engine

from monitor.backends.vllm import wire
from monitor.backends.vllm.batch import MARKS
from monitor.backends.vllm.laws import law_entry, law_from, weighed_entry, weighed_from
from monitor.backends.vllm.replay import VllmReplay
from monitor.backends.vllm.weighing import Weighing
from monitor.errors import BadInput, ConfigurationError, OtherInstrument
from monitor.instrument import build_instrument
from monitor.replay.answer import stock_attention
from monitor.replay.engine import ReplayEngine
from monitor.replay.model import load_model
from monitor.replay.regions import Tokens
from monitor.replay.surprise import end_tokens, end_tokens_of, surprises
from monitor.settings import IdentitySettings, ReplaySettings, Settings
from monitor.values.likelihood import DrawnBy, EstimatedLaw, Likelihood, Untold
from monitor.values.prompts import Prompt, Sampling
from monitor.values.scores import Replayed
from monitor.values.surprise import NotWeighed, Surprise, Weighed
from tests.backends.serving import answering, app, free_port, of_its_ids
from tests.scenes.logged import records
from tests.worker.working import number, run_until, send, settings_for, working

At = Callable[..., ReplaySettings]
ESTIMATE = EstimatedLaw(
    temperature=0.8, low=0.7, high=0.9, top_p=0.95, top_p_high=1.0, spread=1.0, n=900, tokens=9_000
)
LAWS: Sequence[DrawnBy] = (
    Sampling(temperature=1.0, finish_reason="stop"),
    Sampling(temperature=0.7, top_p=0.9, top_k=20, min_p=0.01, finish_reason="length"),
    Sampling(temperature=1.3, presence_penalty=0.5, frequency_penalty=0.2, repetition_penalty=1.1),
    Sampling(temperature=0.0),
    Sampling(temperature=0.9, logit_bias=((5, 2.5), (9, -100.0)), top_k=0),
    Untold(said=Sampling(finish_reason="stop"), law=None),
    Untold(said=Sampling(finish_reason="length"), law=ESTIMATE),
)

SENSELESS = (
    Sampling(temperature=-1.0, repetition_penalty=0.0, top_p=7.0),
    Sampling(temperature=1e300, frequency_penalty=-1e300, min_p=-1.0, top_k=-5),
    Sampling(temperature=1.0, logit_bias=((999_999_999, 1e308),), finish_reason="?"),
)
"""What a record may say all the same: none of it may stop the worker."""


def same(found: Weighed, expected: Weighed, tolerance: float = 1e-4) -> None:
    """Equal up to numerics, each field of it."""
    assert type(found) is type(expected)
    if isinstance(expected, NotWeighed):
        assert found is expected
        return
    for one in fields(expected):
        a, b = getattr(found, one.name), getattr(expected, one.name)
        if isinstance(b, Likelihood):
            same(a, b, tolerance)
        elif isinstance(b, float | np.ndarray):
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance, err_msg=one.name)
        else:
            assert a == b, one.name


# --- over the wire -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(model: Path) -> Any:
    return load_model(ReplaySettings(model=model, device="cpu", dtype="float32"), 2, full=True)


@pytest.fixture(scope="module")
def rows() -> list[Tokens]:
    """One answer for each law, of 1 to 100 tokens: more than are reduced at once."""
    generator = np.random.default_rng(8)
    made = []
    for asked, said in ((3, 1), (40, 7), (2, 100), (5, 33), (9, 32), (1, 12), (70, 64)):
        ids = generator.integers(3, 200, asked + said)
        made.append(
            Tokens(
                ids=tuple(map(int, ids)),
                prompt_tokens=asked,
                response_tokens=said,
                readable=np.ones(len(ids), np.bool_),
            )
        )
    return made


def test_laws_and_what_is_found_arrive_bit_by_bit(whole: Any, rows: list[Tokens]) -> None:
    for law in (*LAWS, *SENSELESS):
        assert law_from(json.loads(json.dumps(law_entry(law)))) == law
    private = Sampling(
        temperature=1.0, stop=("heron",), seed=7, max_tokens=3, steered_by=("grammar",)
    )
    assert law_from(law_entry(private)) == Sampling(temperature=1.0)
    assert "heron" not in json.dumps(law_entry(private))
    odd = surprises(whole, rows[: len(SENSELESS)], SENSELESS)
    found = surprises(whole, rows, LAWS)
    assert {type(one) for one in found} == {Surprise, Likelihood}
    for one in (*found, *odd, *NotWeighed):
        same(weighed_from(json.loads(json.dumps(weighed_entry(one), allow_nan=False))), one, 0.0)


@pytest.mark.parametrize(
    "law",
    [
        None,
        {},
        {"sampling": {}},
        {"sampling": {"temperature": None}},
        {"sampling": {"temperature": "warm"}},
        {"sampling": {"temperature": float("nan")}},
        {"sampling": {"temperature": True}},
        {"sampling": {"temperature": 1, "logit_bias": [[-1, 2.0]]}},
        {"sampling": {"temperature": 1, "finish_reason": 3}},
        {"sampling": {}, "estimate": {"temperature": 1.0}},
    ],
)
def test_what_is_no_law_is_refused(law: Any) -> None:
    with pytest.raises(BadInput, match="a law needs"):
        law_from(law)


@pytest.mark.parametrize(
    "changes",
    [
        {"outcome": "other"},
        {"law": "hot"},
        {"tokens": -1},
        {"tokens": 0},
        {"excess": None},
        {"log_bets": [1.0]},
        {"log_bets": [float("nan")] * 5},
        {"likelihood": {"tokens": 1, "logs": [], "squares": []}},
    ],
)
def test_what_no_answer_is_weighed_by_is_refused(
    changes: dict[str, Any], whole: Any, rows: list[Tokens]
) -> None:
    [found] = surprises(whole, rows[:1], LAWS[:1])
    with pytest.raises(BadInput, match="it answers with"):
        weighed_from(weighed_entry(found) | changes)


# --- inside the engine ---------------------------------------------------------------------------


class Runner:
    """vLLM's runner as far as it is looked at, and the states that its whole model gives."""

    def __init__(self, whole: Any, rows: Sequence[Tokens], laws: Sequence[DrawnBy]) -> None:
        self.input_batch = SimpleNamespace(req_ids=[], num_reqs=0, num_computed_tokens_cpu=[])
        self.query_start_loc = SimpleNamespace(np=[0])
        self.requests, self._states = {}, {}
        with stock_attention(whole) as model, torch.inference_mode():
            for index, (row, law) in enumerate(zip(rows, laws, strict=True)):
                asked = wire.Asked(tokens=row, laws=(law, LAWS[0]), ends=end_tokens(whole))
                marks = {"name": f"row-{index}"} | json.loads(json.dumps(asked.marks))
                self.requests[str(index)] = SimpleNamespace(
                    prompt_token_ids=list(row.ids),
                    sampling_params=SimpleNamespace(extra_args={MARKS: marks}),
                )
                ids = torch.tensor([[*row.ids, 7]])
                self._states[str(index)] = model.model(input_ids=ids).last_hidden_state[0]

    def run(self, weighing: Weighing, pieces: Sequence[tuple[str, int, int]]) -> None:
        """One pass with these pieces: request, first token, token behind the last."""
        batch = self.input_batch
        batch.req_ids, batch.num_reqs = [name for name, _, _ in pieces], len(pieces)
        batch.num_computed_tokens_cpu = [start for _, start, _ in pieces]
        self.query_start_loc.np = np.cumsum([0, *(stop - start for _, start, stop in pieces)])
        states = [self._states[name][start:stop] for name, start, stop in pieces]
        with torch.inference_mode():
            weighing.read(torch.cat(states))


def weighing_of(runner: Runner, whole: Any) -> Weighing:
    return Weighing(runner, SimpleNamespace(compute_logits=whole.answerer.lm_head))


def test_pieces_in_any_order_and_prompts_begun_again_weigh_the_same(
    whole: Any, rows: list[Tokens]
) -> None:
    runner = Runner(whole, rows, LAWS)
    weighing = weighing_of(runner, whole)
    generator = np.random.default_rng(1)
    places = dict.fromkeys(runner.requests, 0)
    preempted = 0
    while left := [name for name in places if places[name] < len(rows[int(name)].ids)]:
        pieces = []
        for name in map(str, generator.permutation(left)[:4]):
            if places[name] > 40 and preempted < 2:
                places[name] = 0
                preempted += 1
            stop = min(len(rows[int(name)].ids), places[name] + int(generator.integers(1, 50)))
            pieces.append((name, places[name], stop))
            places[name] = stop
        runner.run(weighing, pieces)
    assert preempted == 2
    assert not weighing.rows
    by_law = surprises(whole, rows, LAWS)
    by_first = surprises(whole, rows, [LAWS[0]] * len(rows))
    for index in range(len(rows)):
        for found, expected in zip(
            weighing.done[f"row-{index}"], (by_law[index], by_first[index]), strict=True
        ):
            same(found, expected)
    # What the engine says itself behind a prompt is nobody's answer.
    runner.run(weighing, [("2", len(rows[2].ids), len(rows[2].ids) + 1)])
    assert not weighing.rows


def test_an_answer_of_which_tokens_are_hidden_is_never_weighed(
    whole: Any, rows: list[Tokens]
) -> None:
    runner = Runner(whole, rows, LAWS)
    weighing = weighing_of(runner, whole)
    runner.run(weighing, [("1", 41, len(rows[1].ids)), ("2", 0, 10)])
    runner.run(weighing, [("2", 20, len(rows[2].ids))])
    assert not weighing.done
    weighing.forget(["row-1", "row-2"])
    assert not weighing.rows


def test_memory_that_does_not_suffice_costs_one_answer_and_not_the_engine(
    whole: Any, rows: list[Tokens], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = Runner(whole, rows, LAWS)
    weighing = weighing_of(runner, whole)

    def full(scores: torch.Tensor, said: torch.Tensor) -> Any:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr("monitor.replay.surprise.under_each_law", full)
    runner.run(weighing, [(str(index), 0, len(row.ids)) for index, row in enumerate(rows)])
    assert weighing.done["row-5"] == [NotWeighed.OUT_OF_MEMORY] * 2
    assert isinstance(weighing.done["row-0"][0], Surprise)


# --- the worker's side ---------------------------------------------------------------------------


def weigher(whole: Any, columns: int) -> Any:
    """Reads nothing of a model, and weighs by our own whole copy."""

    async def read(rows: Sequence[wire.Asked]) -> list[wire.Answered]:
        assert all(row.ends == (end_tokens(whole) if row.laws else ()) for row in rows)
        return [
            wire.Answered(
                of_its_ids(row.tokens, columns),
                tuple(surprises(whole, [row.tokens] * len(row.laws), row.laws)),
            )
            for row in rows
        ]

    return read


def test_outcomes_hold_what_our_own_whole_copy_finds(
    whole: Any, pack: Any, prompts: list[Prompt], at: At
) -> None:
    """Equal answers under two laws, one without an answer, one that was cut."""
    law = dict(enumerate([*LAWS, LAWS[0], LAWS[1], LAWS[2]]))
    settings = ReplaySettings(device="cpu", dtype="float32", max_tokens=160)
    ours = ReplayEngine(whole, pack.features, settings, pack.covariates)
    expected = ours.run(ours.prepare(prompts, weighed=law))
    with answering(app(pack, weigher(whole, 5), no_weighing="")) as url:
        replay = VllmReplay(at(url, max_tokens=160), pack, pack.model, weighs=True)
        found = replay.run(replay.prepare(prompts, weighed=law))
        assert all(one.weighed is None for one in replay.run(replay.prepare(prompts)))
    kinds = set()
    for one, other in zip(found, expected, strict=True):
        assert isinstance(one, Replayed)
        assert isinstance(other, Replayed)
        assert one.weighed is not None
        assert other.weighed is not None
        same(one.weighed, other.weighed)
        kinds.add(one.weighed if isinstance(one.weighed, NotWeighed) else type(one.weighed))
    assert kinds == {Surprise, Likelihood, NotWeighed.NO_ANSWER, NotWeighed.CUT}


def test_the_ends_of_answers_are_those_of_our_own_copy(whole: Any, model: Path) -> None:
    from monitor.replay.checkpoint import found

    assert end_tokens_of(found(ReplaySettings(model=model))) == end_tokens(whole) == (1,)


def test_what_cannot_weigh_is_refused_at_the_start(
    pack: Any, pack_folder: Path, at: At, prompts: list[Prompt]
) -> None:
    with answering(app(pack)) as url:
        settings = Settings(replay=at(url), pack={"path": pack_folder}, identity={"share": 0.1})
        with pytest.raises(ConfigurationError, match="a copy that was cut behind block 2") as error:
            build_instrument(settings)
        assert "identity.share" in str(error.value)
        assert "whole model's folder" in error.value.hint
        replay = VllmReplay(at(url), pack, pack.model)
        with pytest.raises(ConfigurationError, match="a copy that was cut"):
            replay.prepare(prompts, weighed={0: LAWS[0]})
        row = wire.row_of(
            wire.Asked(tokens=replay.prepare(prompts).replays[0], laws=(LAWS[0],), ends=(1,))
        )
        answer = httpx.post(f"{url}{wire.READINGS}", json={"rows": [row]})
        assert (answer.status_code, "no answer is weighed here" in answer.text) == (400, True)
    with answering(app(pack, no_weighing="")) as url:
        settings = settings.model_copy(update={"replay": at(url)})
        assert "weighs answers" in build_instrument(settings).packing


def test_other_models_beside_the_copy_are_refused_by_name() -> None:
    replay = {"backend": "vllm", "url": "http://host:8100"}
    beside = [{"name": "before", "model": "folder"}]
    with pytest.raises(ValueError, match=r"identity\.alternatives need backend torch"):
        Settings(replay=replay, identity={"share": 0.1, "alternatives": beside})
    Settings(replay=replay, identity={"alternatives": beside})
    Settings(replay=replay, identity={"share": 0.1})


def test_a_server_that_weighs_no_longer_stops_the_worker(
    whole: Any, pack: Any, at: At, prompts: list[Prompt]
) -> None:
    port = free_port()
    with answering(app(pack, weigher(whole, 5), no_weighing=""), port) as url:
        replay = VllmReplay(at(url), pack, pack.model, weighs=True)
        prepared = replay.prepare(prompts, weighed={0: LAWS[0]})
    with answering(app(pack), port), pytest.raises(OtherInstrument, match="another instrument"):
        replay.run(prepared)
    silent = app(pack, None, no_weighing="")
    with answering(silent, port), pytest.raises(OtherInstrument, match="by the 1 laws"):
        replay.run(prepared)


@pytest.mark.parametrize(
    "changes",
    [
        {"laws": 1},
        {"laws": [1]},
        {"ends": [-1]},
        {"ends": 3},
        {"prompt_tokens": 3},
        {"prompt_tokens": 0},
    ],
)
def test_a_row_whose_answer_cannot_be_weighed_is_refused(
    changes: dict[str, Any], rows: list[Tokens]
) -> None:
    row = replace(
        rows[0], ids=(5, 6, 7), prompt_tokens=2, response_tokens=1, readable=np.ones(3, np.bool_)
    )
    marks = wire.Asked(tokens=row, laws=(LAWS[0],), ends=(1,)).marks
    assert wire.asked_of(row.ids, marks).laws == (LAWS[0],)
    with pytest.raises(BadInput):
        wire.asked_of(row.ids, marks | changes)


def test_what_a_server_weighs_feeds_the_witness_and_no_record_stops_the_worker(
    database: Engine, kafka_bootstrap: str, topic: str, whole: Any, pack: Any, at: At
) -> None:
    """From the topic to the identity's sums; among the records are some whose parameters make no sense."""
    plain = replace(pack, covariates=())
    answers = [f"answer {number}" for number in range(12)]
    values = records(answers[:8]) + [
        json.dumps(json.loads(value) | {"id": f"odd{number}"} | odd).encode()
        for number, (value, odd) in enumerate(
            zip(
                records(answers[8:]),
                (
                    {"temperature": -1.0, "prompt": "a"},
                    {"repetition_penalty": 0.0, "prompt": "b"},
                    {"top_p": 7.0, "top_k": -5, "prompt": "c"},
                    {"logit_bias": {"999999999": 5.0}, "prompt": "d"},
                ),
                strict=True,
            )
        )
    ]
    settings = settings_for(kafka_bootstrap, topic).model_copy(
        update={"identity": IdentitySettings(share=1.0)}
    )
    send(kafka_bootstrap, topic, values)
    with answering(app(plain, weigher(whole, 4), no_weighing="")) as url:
        replay = VllmReplay(at(url), plain, plain.model, weighs=True)
        with working(database, settings, replay, pack=plain) as worker:
            run_until(worker, database, "SELECT count(*) FROM monitor_data.scores", len(values))
    n = "SELECT sum(n)::int FROM monitor_data.identity_buckets WHERE segment = 'all'"
    assert number(database, n) == len(values)
    excess = "SELECT sum(excess) FROM monitor_data.identity_buckets WHERE segment = 'all'"
    assert number(database, excess) != 0
    drawn = "SELECT count(*) FROM monitor.weighed_answers WHERE weighing = 'sampled'"
    assert number(database, drawn) == len(values) - 1
