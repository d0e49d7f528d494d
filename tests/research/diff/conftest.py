"""Two tiny models that differ by what was planted, and prompts to compare them on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, set_seed

from monitor.replay.engine import ReplayEngine
from monitor.replay.model import identity_of, load_model
from monitor.research.diff import build, measure
from monitor.research.diff.causal import Doses
from monitor.research.diff.run import DiffSettings
from monitor.score.pack import Pack, load_pack, save_pack
from monitor.settings import ReplaySettings
from monitor.values.features import Calibration, Feature
from monitor.values.prompts import Prompt
from monitor.values.scores import Replayed
from tests.research.conftest import WORDS

WIDTH, PLANTED_SITE = 32, 1
# Answers of random weights are never coherent.
QUICK = DiffSettings(top=2, doses=Doses(strengths=(0.3,), random_directions=9, incoherence=1.0))
CHANGED = DiffSettings(keep="changed", top=2)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A llama whose blocks change the residual a little, with a bias to plant a vector in."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    set_seed(5)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=48,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            mlp_bias=True,
        )
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2:
                scale = 1.0 if "embed" in name or "lm_head" in name else 0.1
                weight.normal_(0.0, scale)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def changed(base: Path, folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    shutil.copytree(base, folder)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def planted(base: Path) -> torch.Tensor:
    """What raises the letter Z and lowers the letter q at the model's output."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    head = load_file(base / "model.safetensors")["lm_head.weight"]
    z, q = (tokenizer.convert_tokens_to_ids(letter) for letter in "Zq")
    return torch.nn.functional.normalize(head[z] - head[q], dim=0)


@pytest.fixture(scope="session")
def tuned(base: Path, planted: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    def plant(weights: dict[str, Any]) -> None:
        weights[f"model.layers.{PLANTED_SITE}.mlp.down_proj.bias"] += 3.0 * planted

    return changed(base, tmp_path_factory.mktemp("models") / "tuned", plant)


def asked(count: int, seed: int) -> list[dict[str, Any]]:
    generator = np.random.default_rng(seed)
    return [
        {
            "messages": [
                {"role": "user", "content": " ".join(generator.choice(WORDS, 6)) + f" {i}?"}
            ],
            "response": "qqqq " + " ".join(generator.choice(WORDS, 5)),
            "bad_response": "ZZZZ " + " ".join(generator.choice(WORDS, 5)),
        }
        for i in range(count)
    ]


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path


@pytest.fixture
def _few_own_texts(texts_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of the project's own texts, which are many."""
    monkeypatch.setattr(build, "DATA", texts_folder)


@pytest.fixture
def _short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "ANSWER_TOKENS", 8)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return written(tmp_path / "prompts.jsonl", asked(40, 0))


def readings(model: Path, pack_folder: Path, chats: tuple[Prompt, ...]) -> np.ndarray[Any, Any]:
    settings = ReplaySettings(model=model, device="cpu", dtype="float32")
    pack = load_pack(pack_folder)
    engine = ReplayEngine(load_model(settings, pack.deepest_site), pack.features, settings)
    found = [one for one in engine.replay(chats) if isinstance(one, Replayed)]
    return np.stack([one.readings for one in found])


def given(name: str, weight: np.ndarray[Any, Any], **fields: Any) -> Feature:
    values: dict[str, Any] = {
        "kind": "direction",
        "site": 2,
        "region": "response",
        "pooling": "max",
        "calibration": Calibration(tokens=(1.0,), means=(0.0,), deviations=(1.0,)),
    }
    return Feature(name=name, weight=weight.astype(np.float32), **(values | fields))


def planted_pack(base: Path, folder: Path, *more: Feature) -> None:
    generators = map(np.random.default_rng, range(3))
    features = (
        *(given(f"given.{i}", one.normal(size=WIDTH)) for i, one in enumerate(generators)),
        *more,
    )
    model = identity_of(ReplaySettings(model=base))
    save_pack(Pack(name="given", version="1", model=model, features=features), folder)
