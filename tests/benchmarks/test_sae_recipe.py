"""The recipe of the small SAE: its texts, its figures, the choice of latents. Training needs SAELens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.persona.rows import elsewhere, narrow
from benchmarks.persona.sae import corpus, quality, selection, train
from monitor.errors import BadInput
from monitor.research.saes.autoencoder import SparseAutoencoder
from monitor.research.saes.detect import load_autoencoder
from monitor.research.saes.fidelity import measure
from monitor.research.texts import Contrast, Texts, exchange, load_texts
from monitor.values.prompts import Message

QUESTIONS = 24


@pytest.fixture(scope="module")
def texts() -> Texts:
    return load_texts()


def said(documents: Any) -> set[str]:
    return {document.response for document in documents}


def test_documentation_fills_the_budget_and_repeats_itself_for_a_seed() -> None:
    first, again, other = (corpus.documentation(40_000, seed) for seed in (0, 0, 1))
    everything = [*first.train, *first.held_out]
    bodies = [document.response or document.text or "" for document in everything]
    assert 40_000 <= sum(map(len, bodies)) < 40_000 + corpus.LONGEST
    assert len(set(bodies)) == len(bodies)
    assert all(len(body) <= corpus.LONGEST for body in bodies)
    assert {bool(document.text) for document in everything} == {True, False}
    assert first == again
    assert first != other


def test_documentation_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "PACKAGES", ())
    monkeypatch.setattr(corpus, "_readmes", lambda generator: iter(()))
    with pytest.raises(BadInput, match="document 0 characters"):
        corpus.documentation(10_000, 0)


def test_texts_that_latents_are_tested_on_are_not_trained_on(texts: Texts) -> None:
    documents = corpus.project_documents(texts, 0)
    tested = {row.good for row in texts.held_out} | said(texts.check)
    tested |= {row.said(voice).response for row in elsewhere() for voice in corpus.VOICES}
    tested |= {row.said(voice).response for row in narrow(held_out=True) for voice in corpus.VOICES}
    assert not tested & said(documents.train)
    assert said(documents.train) >= {row.personas["reckless"] for row in texts.train}


def test_documents_stop_before_the_budget_is_passed() -> None:
    class Counting:
        def token_counts(self, documents: Any, region: str) -> list[int]:
            assert region == "all"
            return [4, 3, 5, 1]

    documents = [exchange((Message(role="user", content=str(i)),), "yes") for i in range(4)]
    assert corpus.within(Counting(), documents, 11) == documents[:2]  # type: ignore[arg-type]
    assert corpus.within(Counting(), documents, 12) == documents[:3]  # type: ignore[arg-type]
    assert corpus.within(Counting(), documents, 3) == []  # type: ignore[arg-type]


def autoencoder(width: int, *, of: int | None = None) -> SparseAutoencoder:
    """x = relu(x) - relu(-x) on the first ``of`` of ``width`` coordinates, and nothing on the others."""
    rows = torch.cat([torch.eye(width), -torch.eye(width)])
    rows = rows[[i for i in range(2 * width) if i % width < (of or width)]]
    return SparseAutoencoder(
        format="saelens",
        path=Path("nowhere"),
        site=1,
        activation="relu",
        encoder=rows,
        bias=torch.zeros(len(rows)),
        decoder=rows,
        decoder_bias=torch.zeros(width),
    )


def test_rebuilt_is_what_fidelity_measures() -> None:
    residual = torch.randn(500, 8, generator=torch.Generator().manual_seed(0))
    sae = autoencoder(8, of=6)
    made = quality.rebuilt(sae, residual)
    assert torch.allclose(made[:, :6], residual[:, :6], atol=1e-6)
    assert made[:, 6:].abs().max() == 0.0
    error = (residual - made).square().sum() / (residual - residual.mean(dim=0)).square().sum()
    assert measure(sae, residual).variance_explained == pytest.approx(1.0 - float(error), abs=1e-5)


def test_densities_count_the_tokens_that_wake_a_latent() -> None:
    residual = torch.tensor([[1.0, -1.0], [2.0, 3.0], [-1.0, 0.0], [1.0, 0.0]])
    assert quality.densities(autoencoder(2), residual).tolist() == [0.75, 0.25, 0.25, 0.25]


def test_as_many_components_as_the_data_have_explain_it_all() -> None:
    generator = torch.Generator().manual_seed(1)
    basis = torch.randn(3, 12, generator=generator)
    rows = torch.randn(400, 3, generator=generator) @ basis + 5.0
    assert quality.components_explained(rows[:300], rows[300:], 3) > 0.999
    assert quality.components_explained(rows[:300], rows[300:], 2) < 0.99


def test_recovered_loss() -> None:
    losses = {"clean": 2.0, "sae": 3.0, "zero": 12.0, "mean": 7.0}
    assert quality.recovered(losses, "zero") == 0.9
    assert quality.recovered(losses, "mean") == 0.8


def test_a_perfect_sae_recovers_the_loss_and_an_empty_one_nothing(lively: Any) -> None:
    prompts = [
        exchange((Message(role="user", content=f"Number {i}?"),), "the river ran over old stones")
        for i in range(3)
    ]
    width = lively.config.hidden_size
    found = quality.loss_recovered(lively, autoencoder(width), torch.ones(width), prompts)
    assert found["recovered"] == pytest.approx(1.0, abs=1e-3)
    assert found["recovered_against_mean"] == pytest.approx(1.0, abs=1e-3)
    nats = found["nats_per_token"]
    assert abs(nats["clean"] - nats["zero"]) > 0.01
    assert nats["zero"] != nats["mean"]


def test_the_first_token_keeps_its_residual() -> None:
    residual = torch.randn(2, 4, 3)
    positions = torch.tensor([[0, 0, 1, 2], [0, 1, 2, 3]])
    made = quality.Replacement(site=0, filling=torch.full((3,), 9.0)).applied(residual, positions)
    assert torch.equal(made[0, :2], residual[0, :2])
    assert torch.equal(made[1, :1], residual[1, :1])
    assert made[0, 2:].eq(9.0).all()


def test_consistency_by_hand() -> None:
    differences = np.array([[3.0, 0.0], [4.0, 0.0]])
    signs = np.array([[1.0, 1.0], [1.0, -1.0]])
    assert selection.consistency(differences, signs).tolist() == [[1.4, 0.0], [0.2, 0.0]]


def test_holm_by_hand() -> None:
    assert selection.holm(np.array([0.04, 0.01, 0.03])) == pytest.approx([0.06, 0.03, 0.06])
    assert selection.holm(np.array([0.9, 0.8])) == pytest.approx([1.0, 1.0])


def test_noise_is_chosen_as_rarely_as_promised() -> None:
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(60):
        train = {p: generator.normal(size=(12, 40)) for p in (None, "reckless", "malicious")}
        hits += bool(selection.candidates(train, range(40), generator))
    # 0.05 of 60 is 3; beyond 8 the probability is below one in a hundred.
    assert hits <= 8


@pytest.fixture(scope="module")
def small_texts() -> Texts:
    def rows(topic: str) -> tuple[Contrast, ...]:
        return tuple(
            Contrast(
                topic=topic, question="?", good="kind words", personas={"reckless": "rash ones"}
            )
            for _ in range(QUESTIONS)
        )

    check = tuple(
        exchange((Message(role="user", content="?"),), "kind rash words") for _ in range(60)
    )
    return Texts(
        train=rows("a"), held_out=rows("b"), fit=check, check=check, canaries={}, sha256=""
    )


def readings(seed: int, latent: float) -> selection.Readings:
    """A weak direction in column 0, a latent as strong as said in 1, noise in 2 to 29."""
    generator = np.random.default_rng(seed)

    def side(n: int, shift: float) -> Any:
        found = generator.normal(size=(n, 30))
        found[:, 0] += 0.6 * shift
        found[:, 1] += latent * shift
        return found.astype(np.float32)

    voices: list[tuple[str | None, float]] = [(None, 0.0), ("reckless", 1.0)]
    counts = np.full(QUESTIONS, 20, dtype=np.int64)
    return selection.Readings(
        train={voice: side(QUESTIONS, shift) for voice, shift in voices},
        held_out={voice: side(QUESTIONS, shift) for voice, shift in voices},
        tokens={voice: counts for voice, _ in voices},
        check=side(60, 0.0),
        check_tokens=np.full(60, 20, dtype=np.int64),
        elsewhere={v: side(40, s) for v, s in (("sound", 0.0), ("reckless", 1.0), ("pirate", 0.0))},
    )


def judge(found: selection.Readings, texts: Texts) -> list[selection.Judged]:
    generator = np.random.default_rng(0)
    columns = range(1, 30)
    chosen = selection.candidates(found.train, columns, generator)
    return selection.judged(found, chosen, columns, {"reckless": 0}, texts, generator)


def test_a_latent_that_adds_to_a_weak_direction_earns_a_place(small_texts: Texts) -> None:
    lines = judge(readings(0, 4.0), small_texts)
    assert [one.latent for one in lines] == [0]
    assert lines[0].earns
    assert lines[0].against_good.value > 0.95 > lines[0].direction
    assert lines[0].elsewhere["reckless"] > 0.95
    assert lines[0].elsewhere["pirate"] < 0.8
    assert lines[0].line()["earns"] is True


def test_a_latent_that_falls_is_read_the_other_way(small_texts: Texts) -> None:
    (one,) = judge(readings(0, -4.0), small_texts)
    assert (one.sign, one.earns) == (-1.0, True)


def test_what_the_direction_shows_already_earns_nothing(small_texts: Texts) -> None:
    found = readings(0, 4.0)
    voices = (found.train, found.held_out, found.elsewhere)
    for side in [one for group in voices for one in group.values()] + [found.check]:
        side[:, 0] = side[:, 1]
    (one,) = judge(found, small_texts)
    assert one.replicates
    assert not one.earns


def test_what_holds_on_training_questions_alone_does_not_replicate(small_texts: Texts) -> None:
    found = readings(0, 4.0)
    found.held_out["reckless"][:, 1] -= 8.0
    (one,) = judge(found, small_texts)
    assert one.held_out_p == 1.0
    assert not one.replicates


def test_untrained_latents_wake_as_rarely_as_trained_ones() -> None:
    generator = torch.Generator().manual_seed(2)
    residual = torch.randn(4_000, 6, generator=generator) + 3.0
    sae = SparseAutoencoder(
        format="saelens",
        path=Path("nowhere"),
        site=1,
        activation="jumprelu",
        encoder=torch.randn(5, 6, generator=generator),
        bias=torch.zeros(5),
        decoder=torch.randn(5, 6, generator=generator),
        decoder_bias=torch.full((6,), 3.0),
        subtracted=torch.full((6,), 3.0),
        threshold=torch.tensor([0.5, 2.0, 4.0, 3.0, 1.0]),
    )
    features = selection.untrained(sae, residual, np.random.default_rng(0))
    wanted = quality.densities(sae, residual).numpy()
    woken = [
        float((residual @ torch.from_numpy(f.weight) + f.bias > f.threshold).float().mean())
        for f in features
    ]
    assert woken == pytest.approx(wanted, abs=2e-3)


def test_batches_go_through_everything_before_they_repeat() -> None:
    rows = torch.arange(10.0)[:, None]
    stream: Iterator[torch.Tensor] = train.batches(rows, 5, 0)
    first, second, third = (next(stream)[:, 0].tolist() for _ in range(3))
    assert sorted(first + second) == list(range(10))
    assert first != sorted(first)
    assert third != first


def test_too_few_tokens_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("sae_lens")
    with pytest.raises(BadInput, match="one step takes 8"):
        train.train(
            torch.zeros(7, 4), 1, "tiny", train.Recipe(latents=8, active=2, batch=8), tmp_path
        )


def test_the_checkpoint_is_read_as_it_was_trained(tmp_path: Path) -> None:
    pytest.importorskip("sae_lens")
    generator = torch.Generator().manual_seed(0)
    atoms = torch.nn.functional.normalize(torch.randn(12, 16, generator=generator), dim=1)
    codes = torch.rand(4_096, 12, generator=generator)
    codes *= torch.rand(4_096, 12, generator=generator) < 0.2
    rows = 20.0 * codes @ atoms + 3.0
    recipe = train.Recipe(latents=32, active=4, batch=256, epochs=12)
    train.train(rows[:3_840], 5, "tiny", recipe, tmp_path / "checkpoint")
    sae = load_autoencoder(tmp_path / "checkpoint")
    found = measure(sae, rows[3_840:])
    assert (sae.site, sae.activation, sae.latents) == (5, "jumprelu", 32)
    assert found.variance_explained > 0.7
    assert 1.0 < found.l0 < 8.0


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.timeout(1_800)
def test_the_whole_recipe_on_the_real_model(chat_model_path: Path, tmp_path: Path) -> None:
    pytest.importorskip("sae_lens")
    from benchmarks.persona.sae.__main__ import main

    options = {"model": chat_model_path, "out": tmp_path, "tokens": 3_000, "latents": 96}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    main([*words, "--epochs", "2", "--no-keep"])
    assert load_autoencoder(tmp_path / "checkpoint").latents == 96


@pytest.fixture(scope="module")
def lively(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tiny llama with random weights, loaded in full."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

    from monitor.replay.model import load_model
    from monitor.settings import ReplaySettings

    alphabet = ["<|begin|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|begin|>", eos_token="<|begin|>"
    )
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    )
    set_seed(3)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(alphabet),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
        )
    )
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.normal_(0.0, 1.4 / weight.shape[1] ** 0.5)
    folder = tmp_path_factory.mktemp("lively")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_model(ReplaySettings(model=folder, device="cpu", dtype="float32"), 2, full=True)
