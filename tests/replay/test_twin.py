"""The copy's own answers beside served ones, on a tiny model."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from monitor.replay.answer import answered, stock_attention
from monitor.replay.engine import ReplayEngine
from monitor.replay.model import load_model
from monitor.replay.sampler import truncated
from monitor.replay.twin import Draw, answers_of
from monitor.settings import ReplaySettings
from monitor.values.prompts import Message, Prompt, RecordKey, Sampling
from monitor.values.scores import Replayed
from monitor.values.surprise import NotWeighed
from monitor.values.twin import Pair, TwinAsked
from tests.scenes.models import save_lettered
from tests.scenes.packs import START, drawn, feature

FEATURES = [
    feature("said", drawn(1)),
    feature("asked", drawn(2), region="prompt"),
    feature("peak", drawn(3), pooling="max_rolling_mean"),
    feature("whole", drawn(4), region="all"),
]
PLAIN = Sampling(temperature=1.0, max_tokens=400)
GREEDY = Sampling(temperature=0.0)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> ReplayEngine:
    folder = save_lettered(tmp_path_factory.mktemp("lettered"))
    settings = ReplaySettings(model=folder, device="cpu", dtype="float32", max_tokens=200)
    return ReplayEngine(load_model(settings, 1, full=True), FEATURES, settings)


def chat(question: str, response: str | None, **given: Any) -> Prompt:
    return Prompt(
        key=RecordKey(topic="t", partition=0, offset=0),
        recorded_at=START,
        messages=(Message(role="user", content=question),),
        response=response,
        **given,
    )


def asked(law: Sampling = PLAIN, *, tokens: int = 12, seed: int = 1) -> TwinAsked:
    return TwinAsked(law=law, tokens=tokens, seed=seed)


def run(engine: ReplayEngine, prompts: list[Prompt], twins: dict[int, TwinAsked]) -> list[Replayed]:
    found = engine.run(engine.prepare(prompts, twins=twins))
    assert all(isinstance(one, Replayed) for one in found)
    return [one for one in found if isinstance(one, Replayed)]


def pair(engine: ReplayEngine, prompt: Prompt, twin: TwinAsked) -> Pair:
    [found] = run(engine, [prompt], {0: twin})
    assert isinstance(found.twin, Pair)
    return found.twin


@pytest.mark.parametrize(
    "law",
    [
        Sampling(temperature=0.8),
        Sampling(temperature=1.3, top_p=0.7),
        Sampling(temperature=1.0, top_k=4),
    ],
)
def test_twins_are_drawn_by_the_record_s_own_law(engine: ReplayEngine, law: Sampling) -> None:
    ids = (5, 80, 31, 7)
    with stock_attention(engine.loaded) as whole, torch.inference_mode():
        logits = whole(input_ids=torch.tensor([ids])).logits[0, -1:]
    expected = truncated((logits / law.temperature).log_softmax(dim=1), law).exp()[0].numpy()
    n = 600
    told = answers_of(engine.loaded, [Draw(ids, law, 1, seed) for seed in range(n)])
    counts = Counter(one[0] for one in told if not isinstance(one, NotWeighed))
    assert counts.total() == n
    for token, p in enumerate(expected):
        assert abs(counts[token] - n * p) <= 5 * np.sqrt(n * p * (1 - p)) + 0.5


def test_a_row_s_answer_is_its_own_whoever_stands_beside_it(engine: ReplayEngine) -> None:
    """Laws, lengths, seeds and padding of the others do not matter; penalties count its own words alone."""
    penalised = Sampling(temperature=1.0, presence_penalty=1.0, repetition_penalty=1.2)
    rows = [
        Draw((5, 80, 31, 7), PLAIN, 10, 3),
        Draw((9,) * 30, GREEDY, 5, 4),
        Draw((11, 12, 13), penalised, 14, 5),
    ]
    together = answers_of(engine.loaded, rows)
    assert together == [answers_of(engine.loaded, [row])[0] for row in rows]
    assert [len(one) for one in together if not isinstance(one, NotWeighed)] == [10, 5, 14]
    assert together[1] == answered(engine.loaded, (9,) * 30, 5)
    again = answers_of(engine.loaded, [replace_seed(rows[0], 99)])
    assert again[0] != together[0]


def replace_seed(row: Draw, seed: int) -> Draw:
    return Draw(row.ids, row.law, row.tokens, seed)


def test_the_twin_is_read_as_the_served_answer_is(engine: ReplayEngine) -> None:
    """Logged as a server would have it, the twin's answer gives the very readings."""
    prompt = chat("what is a heron?", "a bird that stands in water and waits")
    both = pair(engine, prompt, asked(seed=5))
    tokens = engine.prepare([prompt]).tokens[0]
    (ids,) = answers_of(engine.loaded, [Draw(tokens.ids[: tokens.prompt_tokens], PLAIN, 12 + 4, 5)])
    assert not isinstance(ids, NotWeighed)
    text = engine._tokeniser.spoken(ids)
    logged = engine.prepare([replace(prompt, response=text)]).tokens[0]
    begin = engine._tokeniser.spoken(logged.ids[logged.prompt_tokens :][:12])
    [alone] = run(engine, [replace(prompt, response=begin)], {})
    np.testing.assert_allclose(both.readings[1], alone.readings, atol=1e-5)
    assert both.pooled_tokens[1, 0] == alone.pooled_tokens[0] == 12


def test_both_answers_are_read_over_as_many_tokens(engine: ReplayEngine) -> None:
    """Of the served one the beginning, as if the rest had not been said, and without running it again."""
    long = "a bird that stands in water and waits for what swims by, for hours"
    [found] = run(engine, [chat("a heron?", long)], {0: asked(tokens=12)})
    assert isinstance(found.twin, Pair)
    [short] = run(engine, [chat("a heron?", long[:12])], {})
    np.testing.assert_allclose(found.twin.readings[0], short.readings, atol=1e-5)
    [plain] = run(engine, [chat("a heron?", long)], {})
    np.testing.assert_allclose(found.readings, plain.readings, atol=1e-5)
    assert found.response_tokens == plain.response_tokens


def test_a_limit_of_the_server_holds_for_the_twin(engine: ReplayEngine) -> None:
    prompt = chat("a heron?", "a bird that stands")
    for law in (replace(PLAIN, max_tokens=3), Sampling(temperature=1.0, finish_reason="length")):
        both = pair(engine, replace(prompt, response="bir"), asked(law))
        assert both.pooled_tokens[1, 0] <= 3
    both = pair(engine, prompt, asked(replace(PLAIN, finish_reason="stop")))
    assert both.pooled_tokens[1, 0] > 4


def test_at_temperature_0_the_copy_s_own_answer_is_its_twin(engine: ReplayEngine) -> None:
    prompt = chat("a heron?", None)
    tokens = engine.prepare([prompt]).tokens[0]
    said = engine._tokeniser.spoken(answered(engine.loaded, tokens.ids, 30))
    both = pair(engine, replace(prompt, response=said), asked(GREEDY))
    np.testing.assert_allclose(both.readings[0], both.readings[1], atol=1e-4)


def test_what_does_not_compare_is_said(engine: ReplayEngine) -> None:
    [cut] = run(engine, [chat("long " * 60, "yes")], {0: asked()})
    assert cut.twin is NotWeighed.CUT
    [none] = run(engine, [chat("a heron?", "yes")], {})
    assert none.twin is None


def test_memory_that_does_not_suffice_halves_the_batch(
    engine: ReplayEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from monitor.replay import twin as module

    real = module._decoded

    def narrow(loaded: Any, rows: Any) -> Any:
        if len(rows) > 1 or rows[0].seed == 2:
            raise torch.OutOfMemoryError("used up")
        return real(loaded, rows)

    rows = [Draw((5, 80, 31, 7), PLAIN, 4, seed) for seed in range(4)]
    whole = answers_of(engine.loaded, rows)
    monkeypatch.setattr(module, "_decoded", narrow)
    told = answers_of(engine.loaded, rows)
    assert told[2] is NotWeighed.OUT_OF_MEMORY
    assert [one for place, one in enumerate(told) if place != 2] == [
        one for place, one in enumerate(whole) if place != 2
    ]


def test_prompts_that_several_answers_follow_are_run_once(engine: ReplayEngine) -> None:
    question = "what is a heron, and where does it stand? " * 3
    before = engine.statistics
    run(engine, [chat(question, "a bird")], {0: asked(tokens=4)})
    after = engine.statistics
    length = engine.prepare([chat(question, "a bird")]).tokens[0].prompt_tokens
    ran = after.tokens_run - before.tokens_run
    assert ran < 2 * length
