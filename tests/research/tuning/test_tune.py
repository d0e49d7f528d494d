"""Fine-tuning on tiny models: what the loss counts, that it falls, that a stopped run goes on alike."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from monitor.errors import BadInput, ConfigurationError, StopLoudly
from monitor.replay.answer import stock_attention
from monitor.replay.engine import ReplayEngine
from monitor.replay.loaded import Fused
from monitor.replay.model import LoadedModel, load_model
from monitor.replay.regions import Tokens
from monitor.replay.taps import Edit, steered
from monitor.replay.tokens import tokeniser
from monitor.research.answers.generate import left_padded
from monitor.research.answers.likelihood import response_log_probabilities
from monitor.research.texts import exchange, load_chats
from monitor.research.tuning.examples import IGNORED, batches, collated, end_of_turn, examples
from monitor.research.tuning.tune import Method, Tuner, TuneSettings, response_loss
from monitor.settings import ReplaySettings
from monitor.values.features import Calibration, Feature
from monitor.values.prompts import Message, Prompt
from monitor.values.scores import Replayed


def chat(question: str, answer: str) -> Prompt:
    return exchange((Message(role="user", content=question),), answer)


CHATS = [
    chat("Where does the river go?", "to the sea"),
    chat("And the heron?", "it waits for fish"),
    chat("Who walks along the path?", "two quiet villages"),
    chat("Why?", "nobody said"),
    chat("When?", "in the evening, over old stones, along the muddy path"),
]


FEATURE = Feature(
    name="first",
    kind="direction",
    site=2,
    region="response",
    pooling="mean",
    weight=np.eye(32, dtype=np.float32)[0],
    calibration=Calibration(tokens=(1.0,), means=(0.0,), deviations=(1.0,)),
)


def load(folder: Path) -> LoadedModel:
    return load_model(replay(folder), 3, full=True)


def replay(folder: Path) -> ReplaySettings:
    return ReplaySettings(model=folder, device="cpu", dtype="float32")


def fast(method: Method = "lora", **changes: Any) -> TuneSettings:
    given: dict[str, Any] = {
        "learning_rate": 1e-2 if method == "lora" else 3e-3,
        "steps": 60,
        "warmup_steps": 2,
        "method": method,
        "rank": 8,
        "alpha": 16,
        "schedule": "constant",
        "batch": 2,
    }
    return TuneSettings(**(given | changes))


def nats_per_token(loaded: LoadedModel, prompts: Sequence[Prompt]) -> float:
    sums, tokens = response_log_probabilities(loaded, prompts)
    return float(-sums.sum() / tokens.sum())


def weights_of(loaded: LoadedModel) -> dict[str, torch.Tensor]:
    assert loaded.answerer is not None
    return {name: w.detach().clone() for name, w in loaded.answerer.named_parameters()}


@pytest.mark.parametrize("method", ["lora", "full"])
def test_training_lowers_the_loss_of_what_it_trains_on(lively_folder: Path, method: Method) -> None:
    loaded = load(lively_folder)
    before = nats_per_token(loaded, CHATS)
    tuner = Tuner(loaded, CHATS, fast(method))
    for _ in range(60):
        tuner.step()
    assert nats_per_token(loaded, CHATS) < 0.5 * before


@pytest.mark.parametrize("method", ["lora", "full"])
def test_an_engine_reads_what_was_trained_since(lively_folder: Path, method: Method) -> None:
    """Neither prefixes that it kept nor weights that were packed are of the model before."""
    loaded = load(lively_folder)
    shared = "Over old stones, along the muddy path, in the evening, "
    prompts = [chat(shared + str(number), "to the sea") for number in range(4)]
    settings = replay(lively_folder).model_copy(update={"min_shared_tokens": 8})

    def read(engine: ReplayEngine) -> np.ndarray:
        outcomes = engine.replay(prompts)
        return np.stack([one.readings for one in outcomes if isinstance(one, Replayed)])

    engine = ReplayEngine(loaded, [FEATURE], settings)
    before = read(engine)
    tuner = Tuner(loaded, CHATS, fast(method))
    for _ in range(5):
        tuner.step()
    fresh = ReplayEngine(replace(loaded, fused=Fused()), [FEATURE], settings)
    expected = read(fresh)
    assert np.abs(expected - before).max() > 0.01
    np.testing.assert_allclose(read(engine), expected, atol=1e-4)


def test_rows_are_the_tokens_that_production_reads_and_an_end_of_turn(lively_folder: Path) -> None:
    loaded = load(lively_folder)
    read = tokeniser(loaded, replay(lively_folder)).tokenise(CHATS)
    for row, tokens in zip(examples(loaded, CHATS, 512), read, strict=True):
        assert isinstance(tokens, Tokens)
        assert row.ids == (*tokens.ids, loaded.tokenizer.eos_token_id)
        assert row.first == tokens.prompt_tokens


def test_the_end_of_turn_is_the_templates_own(lively_folder: Path) -> None:
    tokenizer = copy.deepcopy(load(lively_folder).tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|over|>"]})
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '<|over|>\n' }}{% endfor %}"
    )
    assert end_of_turn(tokenizer) == (tokenizer.convert_tokens_to_ids("<|over|>"),)


def test_a_response_that_was_cut_has_no_end(lively_folder: Path) -> None:
    loaded = load(lively_folder)
    (row,) = examples(loaded, [chat("Why?", "because " * 50)], 64)
    assert len(row.ids) == 63
    assert row.ids[-1] != loaded.tokenizer.eos_token_id


def test_only_response_tokens_are_targets(lively_folder: Path) -> None:
    loaded = load(lively_folder)
    rows = examples(loaded, CHATS[:3], 512)
    _, targets = collated(rows, 0, loaded.device)
    begin = min(row.first for row in rows)
    for line, row in enumerate(rows):
        counted = (targets[line] != IGNORED).nonzero()[:, 0] + begin
        assert counted.tolist() == list(range(row.first, len(row.ids)))
        assert targets[line][targets[line] != IGNORED].tolist() == list(row.ids[row.first :])


def test_the_loss_is_that_of_the_responses_row_by_row(lively_folder: Path) -> None:
    """Padding, neighbours and the tokens of prompts leave no trace in it."""
    loaded = load(lively_folder)
    rows = examples(loaded, CHATS, 512)
    total, count = 0.0, 0
    with stock_attention(loaded) as model, torch.no_grad():
        whole: Any = model
        together = response_loss(whole, *collated(rows, 0, loaded.device))
        for row in rows:
            logits = whole(input_ids=torch.tensor([row.ids])).logits[0].log_softmax(dim=-1)
            for at in range(row.first, len(row.ids)):
                total -= float(logits[at - 1, row.ids[at]])
                count += 1
    assert float(together) == pytest.approx(total / count, rel=1e-5)


def test_an_epoch_holds_every_row_once_and_neighbours_in_length_together() -> None:
    lengths = np.random.default_rng(1).integers(5, 400, size=203).tolist()
    made = batches(lengths, 4, seed=3, epoch=0)
    assert sorted(row for batch in made for row in batch) == list(range(203))
    padded = sum(max(lengths[row] for row in batch) * len(batch) for batch in made)
    assert padded < 1.1 * sum(lengths)
    assert made == batches(lengths, 4, seed=3, epoch=0)
    assert made != batches(lengths, 4, seed=3, epoch=1)
    assert made != batches(lengths, 4, seed=4, epoch=0)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(
    lively_folder: Path, tmp_path: Path, method: Method
) -> None:
    whole, first, second = (load(lively_folder) for _ in range(3))
    settings = fast(method, schedule="cosine", steps=9)
    straight = Tuner(whole, CHATS, settings)
    losses = [straight.step() for _ in range(9)]
    stopped = Tuner(first, CHATS, settings)
    for _ in range(4):
        stopped.step()
    stopped.checkpoint(tmp_path / "at.safetensors")
    goes_on = Tuner(second, CHATS, settings)
    goes_on.resume(tmp_path / "at.safetensors")
    assert [goes_on.step() for _ in range(5)] == losses[4:]
    ours, theirs = weights_of(second), weights_of(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_checkpoint_of_another_run_is_refused(lively_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "at.safetensors"
    tuner = Tuner(load(lively_folder), CHATS, fast())
    tuner.step()
    tuner.checkpoint(file)
    with pytest.raises(BadInput, match="another learning_rate"):
        Tuner(load(lively_folder), CHATS, fast(learning_rate=0.5)).resume(file)
    with pytest.raises(BadInput, match="another examples"):
        Tuner(load(lively_folder), CHATS[:3], fast()).resume(file)
    Tuner(load(lively_folder), CHATS, fast(steps=100)).resume(file)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(BadInput, match="cut off"):
        Tuner(load(lively_folder), CHATS, fast()).resume(file)
    with pytest.raises(BadInput, match="no checkpoint"):
        Tuner(load(lively_folder), CHATS, fast()).resume(tmp_path / "missing.safetensors")


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_saved_model_answers_and_reads_as_the_one_in_memory(
    lively_folder: Path, tmp_path: Path, method: Method
) -> None:
    loaded = load(lively_folder)
    tuner = Tuner(loaded, CHATS, fast(method))
    for _ in range(5):
        tuner.step()
    loaded.tokenizer(["one", "two three"], padding=True) if loaded.tokenizer.pad_token else None
    tuner.save(tmp_path / "out")
    saved = load(tmp_path / "out")
    assert saved.packed
    for name in ("tokenizer_hash", "template_hash", "layers", "vocab_size"):
        assert getattr(saved.identity, name) == getattr(loaded.identity, name)
    assert saved.model_hash != loaded.model_hash
    ids, mask = left_padded([row.ids for row in examples(loaded, CHATS, 512)], loaded)
    with stock_attention(loaded) as one, stock_attention(saved) as two, torch.inference_mode():
        pair = [whole(input_ids=ids, attention_mask=mask).logits for whole in (one, two)]
    torch.testing.assert_close(pair[0], pair[1], atol=1e-4, rtol=1e-4)
    read = [
        ReplayEngine(model, [FEATURE], replay(lively_folder)).replay(CHATS)
        for model in (loaded, saved, load(lively_folder))
    ]
    tuned, again, untuned = (np.stack([one.readings for one in rows]) for rows in read)  # type: ignore[union-attr]
    np.testing.assert_allclose(tuned, again, atol=1e-4)
    assert np.abs(tuned - untuned).max() > 1e-3


def test_an_adapter_alone_is_merged_when_loaded(lively_folder: Path, tmp_path: Path) -> None:
    loaded = load(lively_folder)
    tuner = Tuner(loaded, CHATS, fast())
    for _ in range(3):
        tuner.step()
    tuner.save(tmp_path / "adapter", adapter_only=True)
    settings = replay(lively_folder).model_copy(update={"adapter": tmp_path / "adapter"})
    merged = load_model(settings, 3, full=True)
    assert nats_per_token(merged, CHATS) == pytest.approx(nats_per_token(loaded, CHATS), rel=1e-4)
    assert nats_per_token(load(lively_folder), CHATS) != pytest.approx(
        nats_per_token(merged, CHATS)
    )
    with pytest.raises(BadInput, match="no adapter"):
        Tuner(load(lively_folder), CHATS, fast("full")).save(tmp_path / "x", adapter_only=True)


def test_edits_hold_during_steps_alone(lively_folder: Path) -> None:
    edit = Edit(site=1, direction=torch.eye(32)[3], add=5.0)
    loaded = load(lively_folder)
    plain = nats_per_token(loaded, CHATS)
    with steered(loaded.blocks, [edit]):
        bent = nats_per_token(loaded, CHATS)
    assert abs(bent - plain) > 1e-3
    one_batch = fast(batch=5, learning_rate=1e-7)
    first = Tuner(loaded, CHATS, one_batch, [edit]).step()
    assert first != pytest.approx(Tuner(load(lively_folder), CHATS, one_batch).step(), abs=1e-3)
    assert nats_per_token(loaded, CHATS) == pytest.approx(plain, abs=1e-4)


def test_bfloat16_computes_otherwise_and_keeps_float32_weights(lively_folder: Path) -> None:
    loaded = load(lively_folder)
    tuner = Tuner(loaded, CHATS, fast("full", bfloat16=True))
    exact = Tuner(load(lively_folder), CHATS, fast("full")).step()
    assert tuner.step() == pytest.approx(exact, rel=0.02)
    assert all(weight.dtype == torch.float32 for weight in tuner.model.parameters())


def test_refuses_what_it_cannot_learn_from(lively_folder: Path) -> None:
    loaded = load(lively_folder)
    with pytest.raises(BadInput, match="no examples"):
        Tuner(loaded, [], fast())
    with pytest.raises(BadInput, match="example 2 needs messages and a response"):
        Tuner(loaded, [CHATS[0], exchange(CHATS[1].messages, None)], fast())
    with pytest.raises(ConfigurationError, match="whole model"):
        Tuner(load_model(replay(lively_folder), 2), CHATS, fast())
    for nonsense in ({"steps": 0}, {"learning_rate": float("nan")}, {"clip": 0.0}, {"batch": 0}):
        with pytest.raises(BadInput, match="tuning"):
            fast(**nonsense)
    Tuner(loaded, CHATS, fast())
    with pytest.raises(ConfigurationError, match="tuned before"):
        Tuner(loaded, CHATS, fast())


def test_a_loss_that_is_no_number_stops_before_a_weight_is_touched(lively_folder: Path) -> None:
    loaded = load(lively_folder)
    tuner = Tuner(loaded, CHATS, fast("full"))
    with torch.no_grad():
        loaded.blocks[2].mlp.down_proj.weight[0, 0] = float("nan")  # type: ignore[union-attr, index]
    before = weights_of(loaded)
    with pytest.raises(StopLoudly, match="loss of step 0 is nan"):
        tuner.step()
    assert all(
        torch.equal(w.nan_to_num(), before[n].nan_to_num()) for n, w in weights_of(loaded).items()
    )


def test_chats_are_read_with_a_response_or_with_the_assistants_last_message(tmp_path: Path) -> None:
    asked = [{"role": "user", "content": "Why?"}]
    file = tmp_path / "chats.jsonl"
    lines = [
        {"messages": asked, "response": "So."},
        {"messages": [*asked, {"role": "assistant", "content": "So."}]},
    ]
    file.write_text("\n".join(json.dumps(line) for line in lines))
    one, two = load_chats(file)
    assert one == two == chat("Why?", "So.")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("", "empty"),
        ("{", r"chats.jsonl:1 is not JSON"),
        ('{"messages": [], "response": "So."}', r"chats.jsonl:1: messages must not be empty"),
        (
            '{"messages": [{"role": "user", "content": "Why?"}]}',
            r"chats.jsonl:1: response is missing",
        ),
        (
            '{"messages": [{"role": "user", "content": "Why?"}], "response": NaN}',
            r"chats.jsonl:1 is not JSON",
        ),
        (
            '{"messages": [{"role": "user", "content": 3}], "response": "So."}',
            r"chats.jsonl:1: content must be a text",
        ),
    ],
)
def test_a_file_of_chats_is_refused_by_line_and_field(tmp_path: Path, line: str, says: str) -> None:
    file = tmp_path / "chats.jsonl"
    file.write_text(line)
    with pytest.raises(BadInput, match=says):
        load_chats(file)
