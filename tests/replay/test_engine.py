"""The engine end to end on a tiny model: what it saves, what it survives, what it never leaves behind."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from monitor.errors import BadInput, ConfigurationError, ModelError
from monitor.replay.attention import ROW
from monitor.replay.engine import ReplayEngine
from monitor.replay.loaded import Packing
from monitor.replay.model import LoadedModel, identity_of, load_model
from monitor.replay.residuals import ResidualReader
from monitor.replay.taps import tapped
from monitor.settings import ReplaySettings
from monitor.values.features import Covariate, Feature
from monitor.values.fidelity import counted, fidelity
from monitor.values.prompts import DeadReason, Prompt, ServedCounts, ToolCall
from monitor.values.scores import Replayed, Unreplayable

Llama = tuple[LoadedModel, ReplaySettings]
TOLERANCE = 1e-4


@pytest.fixture
def features(feature: Callable[..., Feature]) -> list[Feature]:
    return [
        feature(1, site=1, region="all"),
        feature(2, site=2, region="response"),
        feature(3, site=2, region="prompt", pooling="max"),
        feature(4, site=2, region="last_prompt_token", pooling="last"),
    ]


@pytest.fixture
def traffic(
    chat: Callable[..., Prompt], sentences: Callable[[int, int], list[str]], words: list[str]
) -> list[Prompt]:
    """Twelve prompts below one system prompt, a duplicate, and two of their own."""
    system = ("system", " ".join(words))
    texts = sentences(12, 30)
    prompts = [chat(system, text, response=texts[-1 - i]) for i, text in enumerate(texts)]
    return [*prompts, prompts[3], chat("a heron"), chat(text="the evening fish")]


def readings(outcomes: list[Replayed | Unreplayable]) -> np.ndarray:
    assert all(isinstance(o, Replayed) for o in outcomes), outcomes
    return np.stack([o.readings for o in outcomes if isinstance(o, Replayed)])


def hooks(loaded: LoadedModel) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in loaded.model.modules())


@pytest.mark.parametrize(
    "changes",
    [
        {"share_prefixes": False},
        {"batch_tokens": 16},
        {"share_prefixes": False, "batch_tokens": 16},
        {"min_shared_tokens": 1},
        {"attention": "eager"},
    ],
)
def test_readings_do_not_depend_on_how_prompts_are_batched(
    changes: dict[str, Any], llama: Llama, features: list[Feature], traffic: list[Prompt]
) -> None:
    loaded, settings = llama
    usual = readings(ReplayEngine(loaded, features, settings).replay(traffic))
    other = settings.model_copy(update=changes)
    again = load_model(other, 2) if "attention" in changes else loaded
    engine = ReplayEngine(again, features, other)
    np.testing.assert_allclose(readings(engine.replay(traffic)), usual, atol=TOLERANCE)


def test_covariates_are_read_in_the_same_pass_and_stand_beside_the_features(
    llama: Llama, features: list[Feature], traffic: list[Prompt]
) -> None:
    loaded, settings = llama
    plain = ReplayEngine(loaded, features, settings)
    weight = np.random.default_rng(5).normal(size=32).astype(np.float32)
    covariate = Covariate(name="prompt.1", site=1, region="prompt", weight=weight)
    engine = ReplayEngine(loaded, features, settings, [covariate])
    usual, beside = plain.replay(traffic), engine.replay(traffic)
    np.testing.assert_allclose(readings(beside), readings(usual), atol=TOLERANCE)
    assert engine.statistics == plain.statistics
    as_feature = ReplayEngine(loaded, [covariate.as_feature()], settings).replay(traffic)
    read = np.stack([one.covariates for one in beside if isinstance(one, Replayed)])
    np.testing.assert_allclose(read, readings(as_feature), atol=TOLERANCE)
    assert all(one.covariates is None for one in usual if isinstance(one, Replayed))
    assert all(
        one.pooled_tokens.shape == one.readings.shape == (len(features),)
        for one in beside
        if isinstance(one, Replayed)
    )


def test_a_prompt_of_which_only_covariates_are_read_is_not_scored(
    llama: Llama, feature: Callable[..., Feature], chat: Callable[..., Prompt]
) -> None:
    loaded, settings = llama
    covariate = Covariate(
        name="prompt.1", site=1, region="prompt", weight=np.ones(32, dtype=np.float32)
    )
    engine = ReplayEngine(loaded, [feature(1, region="response")], settings, [covariate])
    [outcome] = engine.replay([chat("a heron")])
    assert isinstance(outcome, Unreplayable)
    assert outcome.reason is DeadReason.NO_TOKENS


def test_order_and_company_do_not_matter(
    llama: Llama, features: list[Feature], traffic: list[Prompt]
) -> None:
    loaded, settings = llama
    engine = ReplayEngine(loaded, features, settings)
    together = readings(engine.replay(traffic))
    backwards = readings(engine.replay(traffic[::-1]))[::-1]
    alone = np.concatenate([readings(engine.replay([prompt])) for prompt in traffic])
    np.testing.assert_allclose(backwards, together, atol=TOLERANCE)
    np.testing.assert_allclose(alone, together, atol=TOLERANCE)


def test_shared_prefix_and_duplicates_are_run_once(
    llama: Llama, features: list[Feature], traffic: list[Prompt]
) -> None:
    loaded, settings = llama
    seen: list[int] = []
    handle = loaded.model.register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    engine = ReplayEngine(loaded, features, settings)
    prepared = engine.prepare(traffic)
    engine.run(prepared)
    handle.remove()
    statistics = engine.statistics
    asked = sum(len(prepared.replays[r].ids) for r in prepared.replay_of.values())
    assert sum(seen) == statistics.tokens_run
    assert asked == statistics.tokens_run + statistics.tokens_duplicate + statistics.tokens_shared
    system = len(loaded.tokenizer(traffic[0].messages[0].content)["input_ids"])
    assert statistics.tokens_shared >= 11 * system
    assert statistics.tokens_duplicate == len(prepared.replays[prepared.replay_of[3]].ids)


def test_same_text_under_other_regions_is_not_a_duplicate(
    llama: Llama, features: list[Feature], chat: Callable[..., Prompt]
) -> None:
    loaded, settings = llama
    engine = ReplayEngine(loaded, features, settings)
    scaffold = "<|begin|><|im_start|>user\na heron<|im_end|>\n<|im_start|>assistant\n"
    prompts = [chat("a heron", response="said"), chat(text=scaffold + "said")]
    prepared = engine.prepare(prompts)
    assert prepared.tokens[0].ids == prepared.tokens[1].ids
    chatted, raw = engine.run(prepared)
    assert isinstance(chatted, Replayed)
    assert isinstance(raw, Replayed)
    assert (chatted.rendering, raw.rendering) == ("chat", "parsed_text")
    assert (chatted.response_tokens > 0, raw.response_tokens) == (True, 0)
    assert np.isnan(raw.readings[1])


def test_the_same_words_under_other_tools_or_reasoning_are_no_duplicates(
    llama: Llama, features: list[Feature], chat: Callable[..., Prompt]
) -> None:
    loaded, settings = llama
    plain = chat("a heron", response="said")
    call = ToolCall(name="walk", arguments='{"path": "muddy"}')
    same = [
        plain,
        replace(plain, served=ServedCounts(prompt_tokens=9, completion_tokens=2)),
        replace(plain, reasoning="its evening fish"),
        replace(plain, tool_calls=(call,)),
    ]
    engine = ReplayEngine(loaded, features, settings)
    prepared = engine.prepare(same)
    assert prepared.replay_of == {0: 0, 1: 0, 2: 1, 3: 2}
    outcomes = engine.run(prepared)
    assert all(isinstance(one, Replayed) for one in outcomes)
    assert len({one.readings[0] for one in outcomes if isinstance(one, Replayed)}) == 3


def test_reasoning_is_a_region_of_its_own(
    llama: Llama, feature: Callable[..., Feature], chat: Callable[..., Prompt]
) -> None:
    loaded, settings = llama
    regions = [feature(1, region=name) for name in ("reasoning", "response", "all")]
    thinking = replace(chat("a heron", response="said"), reasoning="its evening fish")
    first, second = ReplayEngine(loaded, regions, settings).replay(
        [thinking, chat("a", response="b")]
    )
    assert isinstance(first, Replayed)
    assert isinstance(second, Replayed)
    assert first.pooled_tokens[0] > 0
    assert first.pooled_tokens[2] > first.pooled_tokens[0] + first.pooled_tokens[1]
    assert np.isnan(second.readings[0])
    without = settings.model_copy(update={"replay_reasoning": False})
    [left_out] = ReplayEngine(loaded, regions, without).replay([thinking])
    assert isinstance(left_out, Replayed)
    assert (left_out.reasoning_tokens, left_out.counts) == (
        0,
        counted(thinking, prompt_tokens=first.prompt_tokens, answer_tokens=None),
    )


def test_counts_are_those_before_the_cut_and_each_prompts_own(
    llama: Llama, features: list[Feature], chat: Callable[..., Prompt], words: list[str]
) -> None:
    loaded, settings = llama
    engine = ReplayEngine(loaded, features, settings.model_copy(update={"max_tokens": 32}))
    text = " ".join(words)
    # Alike after the cut, which takes the middle.
    prompts = [chat(text * times, response="said") for times in (4, 6)]
    prepared = engine.prepare(prompts)
    assert prepared.replay_of == {0: 0, 1: 0}
    outcomes = [one for one in engine.run(prepared) if isinstance(one, Replayed)]
    whole = [
        len(
            loaded.tokenizer.apply_chat_template(
                [{"role": "user", "content": one.messages[0].content}],
                add_generation_prompt=True,
                return_dict=False,
            )
        )
        for one in prompts
    ]
    assert [one.counts.prompt_tokens for one in outcomes] == whole
    served = replace(prompts[0], served=outcomes[0].counts)
    found = fidelity(served, outcomes[1].counts)
    assert found is not None
    assert found.verdict == "prompt"


def test_the_servers_own_template_is_used_and_told(
    llama: Llama, features: list[Feature], chat: Callable[..., Prompt], tmp_path: Path
) -> None:
    loaded, settings = llama
    file = tmp_path / "served.jinja"
    file.write_text("{% for m in messages %}<|im_start|>{{ m.content }}{{ greeting }}{% endfor %}")
    served = settings.model_copy(
        update={"chat_template": file, "template_options": {"greeting": "river"}}
    )
    other = load_model(served, 2)
    engine = ReplayEngine(other, features, served)
    [tokens] = engine.prepare([chat("a heron")]).replays
    assert loaded.tokenizer.decode(tokens.ids) == "<|im_start|>a heronriver"
    usual = ReplayEngine(loaded, features, settings)
    assert engine.lineage("p").rules != usual.lineage("p").rules
    assert other.identity.template_hash != loaded.identity.template_hash
    assert identity_of(served).template_hash == other.identity.template_hash
    with pytest.raises(ModelError, match=r"replay\.chat_template"):
        load_model(settings.model_copy(update={"chat_template": tmp_path / "none.jinja"}), 2)


def test_no_hook_survives_an_exception(
    llama: Llama, features: list[Feature], traffic: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, settings = llama
    engine = ReplayEngine(loaded, features, settings)

    def broken(*_: Any) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(engine._bank, "project", broken)
        with pytest.raises(ZeroDivisionError):
            engine.replay(traffic)
    assert hooks(loaded) == 0
    readings(engine.replay(traffic))
    assert hooks(loaded) == 0


def test_no_hook_survives_a_tap_on_a_site_that_is_not_there(llama: Llama) -> None:
    loaded, _ = llama
    with pytest.raises(IndexError), tapped(loaded.blocks, {0: print, 9: print}):
        pass
    assert hooks(loaded) == 0


class Memory:
    """Lets no forward pass of more than ``limit`` tokens through, as a full device would."""

    def __init__(self, loaded: LoadedModel, limit: int, error: type[RuntimeError] | None = None):
        self.limit = limit
        self.refused = 0
        loaded.blocks[1].register_forward_pre_hook(self)
        self.error = error or torch.OutOfMemoryError

    def __call__(self, _module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if inputs[0].shape[:2].numel() > self.limit:
            self.refused += 1
            raise self.error("DefaultCPUAllocator: can't allocate memory: you tried to allocate")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
@pytest.mark.parametrize("share", [True, False])
def test_out_of_memory_halves_the_batch_and_goes_on(
    error: type[RuntimeError],
    share: bool,
    llama: Llama,
    features: list[Feature],
    traffic: list[Prompt],
) -> None:
    loaded, settings = llama
    settings = settings.model_copy(update={"share_prefixes": share})
    engine = ReplayEngine(loaded, features, settings)
    usual = readings(engine.replay(traffic))
    memory = Memory(loaded, 150, error)
    np.testing.assert_allclose(readings(engine.replay(traffic)), usual, atol=TOLERANCE)
    assert memory.refused == engine.statistics.splits > 0


@pytest.fixture
def in_batches(llama: Llama) -> Llama:
    """The same model as one that cannot be packed."""
    loaded, settings = llama
    loaded.model.set_attn_implementation("sdpa")
    return replace(loaded, packing=Packing(ground="batched"), attention="sdpa"), settings


def test_batches_read_as_rows_in_their_order_and_are_halved(
    llama: Llama, in_batches: Llama, features: list[Feature], traffic: list[Prompt]
) -> None:
    loaded, settings = in_batches
    engine = ReplayEngine(loaded, features, settings)
    found = readings(engine.replay(traffic))
    one_by_one = replace(loaded, packing=Packing(ground="excluded"))
    alone = ReplayEngine(one_by_one, features, settings)
    np.testing.assert_allclose(found, readings(alone.replay(traffic)), atol=TOLERANCE)
    assert engine.statistics.passes < alone.statistics.passes == len(traffic) - 1
    assert engine.statistics.tokens_run == alone.statistics.tokens_run
    memory = Memory(loaded, 250)
    np.testing.assert_allclose(readings(engine.replay(traffic)), found, atol=TOLERANCE)
    assert memory.refused == engine.statistics.splits > 0


def test_residuals_are_read_in_batches_too(in_batches: Llama, traffic: list[Prompt]) -> None:
    loaded, settings = in_batches
    alone = replace(loaded, packing=Packing(ground="excluded"))
    usual, found = (
        ResidualReader(copy, settings).mean_residuals(traffic, (1, 2), "response")
        for copy in (alone, loaded)
    )
    np.testing.assert_allclose(found, usual, atol=TOLERANCE)


def test_prompt_too_large_for_memory_is_a_dead_letter(
    llama: Llama, features: list[Feature], traffic: list[Prompt]
) -> None:
    loaded, settings = llama
    engine = ReplayEngine(loaded, features, settings)
    Memory(loaded, 30)
    outcomes = engine.replay(traffic)
    reasons = [o.reason for o in outcomes if isinstance(o, Unreplayable)]
    assert reasons == [DeadReason.OUT_OF_MEMORY] * 13
    assert all(isinstance(o, Replayed) for o in outcomes[-2:])


def test_prompt_behind_a_prefix_that_does_not_fit_is_tried_alone(
    llama: Llama,
    features: list[Feature],
    traffic: list[Prompt],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded, settings = llama
    engine = ReplayEngine(loaded, features, settings)
    usual = readings(engine.replay(traffic))
    block = type(loaded.blocks[1])
    forward = block.forward

    def full(self: Any, *args: Any, **kwargs: Any) -> Any:
        row = ROW.get()
        if any(segment.keep is not None for segment in row.segments):
            raise torch.OutOfMemoryError("no room for keys and values")
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(block, "forward", full)
    np.testing.assert_allclose(readings(engine.replay(traffic)), usual, atol=TOLERANCE)


def test_other_runtime_errors_are_not_taken_for_full_memory(
    llama: Llama, features: list[Feature], traffic: list[Prompt]
) -> None:
    loaded, settings = llama
    loaded.blocks[1].register_forward_pre_hook(lambda *_: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="size"):
        ReplayEngine(loaded, features, settings).replay(traffic)


def test_non_finite_reading_is_a_dead_letter(
    llama: Llama, features: list[Feature], chat: Callable[..., Prompt]
) -> None:
    loaded, settings = llama
    unusual = loaded.tokenizer("?", add_special_tokens=False)["input_ids"][0]
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight[unusual] = torch.nan
    good, bad, also_good = ReplayEngine(loaded, features, settings).replay(
        [chat("a heron"), chat("a heron?"), chat("two villages")]
    )
    assert isinstance(bad, Unreplayable)
    assert bad.reason is DeadReason.NON_FINITE
    assert isinstance(good, Replayed)
    assert isinstance(also_good, Replayed)


def test_absent_response_reads_nan(
    llama: Llama, features: list[Feature], chat: Callable[..., Prompt]
) -> None:
    loaded, settings = llama
    [outcome] = ReplayEngine(loaded, features, settings).replay([chat("a heron")])
    assert isinstance(outcome, Replayed)
    assert np.isnan(outcome.readings).tolist() == [False, True, False, False]
    assert (outcome.pooled_tokens == 0).tolist() == [False, True, False, False]
    assert outcome.response_tokens == 0


def test_nothing_to_read_is_a_dead_letter(
    llama: Llama, feature: Callable[..., Feature], chat: Callable[..., Prompt]
) -> None:
    loaded, settings = llama
    engine = ReplayEngine(loaded, [feature(1, region="response")], settings)
    [outcome] = engine.replay([chat("a heron")])
    assert isinstance(outcome, Unreplayable)
    assert outcome.reason is DeadReason.NO_TOKENS


def test_empty_chunk(llama: Llama, features: list[Feature]) -> None:
    loaded, settings = llama
    assert ReplayEngine(loaded, features, settings).replay([]) == []


def test_long_prompt_is_cut_to_the_models_positions(
    llama: Llama, features: list[Feature], chat: Callable[..., Prompt], words: list[str]
) -> None:
    loaded, settings = llama
    engine = ReplayEngine(loaded, features, settings)
    long, short = engine.replay([chat(" ".join(words * 30)), chat("a heron")])
    assert isinstance(long, Replayed)
    assert long.cut
    assert long.prompt_tokens == 256
    assert json.loads(engine.lineage("pack").rules)["max_tokens"] == 256
    assert isinstance(short, Replayed)
    assert not short.cut


def test_lineage_names_what_readings_depend_on(llama: Llama, features: list[Feature]) -> None:
    loaded, settings = llama
    lineage = ReplayEngine(loaded, features, settings).lineage("pack")
    assert lineage == ReplayEngine(loaded, features, settings).lineage("pack")
    assert (lineage.dtype, lineage.device, lineage.attention) == ("float32", "cpu", "packed-blocks")
    for changes in ({"mask_template": False}, {"max_tokens": 64}, {"share_prefixes": False}):
        other = ReplayEngine(loaded, features, settings.model_copy(update=changes))
        assert other.lineage("pack").rules != lineage.rules


def test_preparing_in_another_thread_while_running(
    llama: Llama, features: list[Feature], traffic: list[Prompt]
) -> None:
    loaded, settings = llama
    engine = ReplayEngine(loaded, features, settings)
    usual = readings(engine.replay(traffic))
    stop, failures = threading.Event(), []

    def prepare() -> None:
        while not stop.is_set():
            try:
                engine.prepare(traffic)
            except Exception as error:
                failures.append(error)

    thread = threading.Thread(target=prepare)
    thread.start()
    try:
        for _ in range(5):
            np.testing.assert_array_equal(readings(engine.run(engine.prepare(traffic))), usual)
    finally:
        stop.set()
        thread.join()
    assert failures == []


def test_bfloat16_is_close(llama: Llama, features: list[Feature], traffic: list[Prompt]) -> None:
    loaded, settings = llama
    usual = readings(ReplayEngine(loaded, features, settings).replay(traffic))
    half = settings.model_copy(update={"dtype": "bfloat16"})
    engine = ReplayEngine(load_model(half, 2), features, half)
    values = readings(engine.replay(traffic))
    assert engine.lineage("pack").dtype == "bfloat16"
    scale = np.nanstd(usual, axis=0)
    assert np.nanmax(np.abs(values - usual) / scale) < 0.2
    assert np.nanmax(np.abs(values - usual)) > 0


def test_generated_answer_is_greedy_and_read(
    llama: Llama, features: list[Feature], chat: Callable[..., Prompt]
) -> None:
    _, settings = llama
    settings = settings.model_copy(update={"mode": "generate", "generate_tokens": 6})
    loaded = load_model(settings, 2, full=True)
    engine = ReplayEngine(loaded, features, settings)
    asked, logged = chat("a patient heron"), chat("a patient heron", response="said")
    first, second, alone = engine.run(engine.prepare([asked, logged, asked], own_answers=[0]))
    assert isinstance(alone, Replayed)
    assert not alone.generated, "an equal prompt that wants no answer gets none"
    assert alone.response_tokens == 0
    assert isinstance(first, Replayed)
    assert first.generated
    assert 1 <= first.response_tokens <= 6
    assert not np.isnan(first.readings).any()
    assert isinstance(second, Replayed)
    assert not second.generated
    prompt = list(engine.prepare([asked]).replays[0].ids)
    answer = list(prompt)
    whole: Any = loaded.answerer
    whole.set_attn_implementation("eager")
    for _ in range(first.response_tokens):
        answer.append(int(whole(torch.tensor([answer])).logits[0, -1].argmax()))
    whole.set_attn_implementation("monitor_packed")
    tokens = engine._with_answers(engine.prepare([asked], own_answers=[0])).replays[0]
    assert list(tokens.ids) == answer
    assert hooks(loaded) == 0


def test_generating_needs_the_whole_model(
    llama: Llama, features: list[Feature], chat: Callable[..., Prompt]
) -> None:
    loaded, settings = llama
    engine = ReplayEngine(loaded, features, settings)
    with pytest.raises(ConfigurationError, match="whole model"):
        engine.run(engine.prepare([chat("a heron")], own_answers=[0]))


def test_mean_residuals_project_to_the_engines_readings(
    llama: Llama, feature: Callable[..., Feature], traffic: list[Prompt]
) -> None:
    loaded, settings = llama
    one = feature(1, site=2, region="response")
    usual = readings(ReplayEngine(loaded, [one, feature(2, site=0)], settings).replay(traffic))[
        :, 0
    ]
    reader = ResidualReader(loaded, settings)
    means = reader.mean_residuals(traffic, [0, 2], "response")
    assert means.shape == (len(traffic), 2, 32)
    assert means.dtype == np.float32
    np.testing.assert_allclose(means[:, 1] @ one.weight, usual, atol=TOLERANCE)
    assert reader.token_counts(traffic, "response")[-1] == 0
    assert hooks(loaded) == 0


def test_residuals_of_an_unreplayable_prompt_are_refused(
    llama: Llama, chat: Callable[..., Prompt]
) -> None:
    loaded, settings = llama
    with pytest.raises(BadInput, match="prompt 1 cannot be replayed: template_refused"):
        ResidualReader(loaded, settings).mean_residuals(
            [chat("a heron"), chat(("forbidden", "x"))], [0], "all"
        )


@pytest.mark.model
def test_readings_of_real_text_do_not_measure_length(
    chat_model_path: Any,
    feature: Callable[..., Feature],
    chat: Callable[..., Prompt],
    words: list[str],
) -> None:
    """With the attention sink pooled, the mean over tokens would be 1/length in disguise."""
    settings = ReplaySettings(model=chat_model_path, device="cpu", dtype="float32")
    loaded = load_model(settings, 15)
    generator = np.random.default_rng(3)
    lengths = np.geomspace(6, 120, 24).astype(int)
    texts = [" ".join(generator.choice(words, length)) for length in lengths]
    chosen = [feature(seed, width=576, site=15) for seed in range(16)]
    engine = ReplayEngine(loaded, chosen, settings)
    values = readings(engine.replay([chat(text=text) for text in texts]))

    prepared = engine.prepare([chat(text=text) for text in texts])
    activations, _ = engine._activations(prepared.plan, prepared.replays)
    sunk = np.stack([activations[prepared.replay_of[i]].mean(dim=0) for i in range(len(texts))])

    def correlation(table: np.ndarray) -> float:
        inverse = 1.0 / lengths
        each = [abs(np.corrcoef(table[:, c], inverse)[0, 1]) for c in range(table.shape[1])]
        return float(np.median(each))

    assert correlation(sunk) > 0.9
    assert correlation(values) < 0.5
