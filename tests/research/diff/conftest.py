"""Two tiny models that differ by what was planted, and prompts to compare them on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from monitor.research.diff import build, misbehaviour
from tests.scenes.diffs import PLANTED_SITE, asked
from tests.scenes.models import changed_model, normal_weights, save_tiny
from tests.scenes.texts import write_rows


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama whose blocks change the residual a little, with a bias to plant a vector in."""
    little = normal_weights(lambda name, _: 1.0 if "embed" in name or "lm_head" in name else 0.1)
    return save_tiny(tmp_path_factory.mktemp("base"), seed=5, weights=little, mlp_bias=True)


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

    return changed_model(base, tmp_path_factory.mktemp("models") / "tuned", plant)


@pytest.fixture
def _few_own_texts(texts_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of the project's own texts, which are many."""
    monkeypatch.setattr(build, "DATA", texts_folder)


@pytest.fixture
def _short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(misbehaviour, "ANSWER_TOKENS", 8)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "prompts.jsonl", asked(40, 0))
