"""A tiny model with random weights and a byte-level tokenizer, and a folder of texts to build from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from tests.scenes.models import changed_model, save_tiny
from tests.scenes.texts import three_voices


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"), seed=3)


@pytest.fixture(scope="session")
def lively_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with weights large enough that its answers depend on what stands before them."""
    model = LlamaForCausalLM.from_pretrained(tiny_folder)
    set_seed(4)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.normal_(0.0, 1.4 / weight.shape[1] ** 0.5)
    folder = tmp_path_factory.mktemp("lively")
    model.save_pretrained(folder)
    PreTrainedTokenizerFast.from_pretrained(tiny_folder).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def broken_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with one weight of its first block that is no number."""

    def broken(weights: dict[str, torch.Tensor]) -> None:
        weights["model.layers.0.mlp.down_proj.weight"][3, 5] = torch.nan

    return changed_model(tiny_folder, tmp_path_factory.mktemp("models") / "broken", broken)


@pytest.fixture
def texts_folder(tmp_path: Path) -> Path:
    """Twelve questions with three voices, and benign exchanges of many lengths."""
    return three_voices(tmp_path / "texts")
