"""A tiny served model with a pack of its own, and candidates that differ from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from monitor.values.features import Calibration
from tests.scenes.gates import Scene, exchanges
from tests.scenes.models import changed_model
from tests.scenes.packs import drawn, feature, pack_of, readings


@pytest.fixture(scope="session")
def scene(tiny_folder: Path) -> Scene:
    """``reckless`` rises, ``assistant`` falls, ``asked`` reads the prompt; one canary."""
    features = [
        feature(
            name,
            drawn(seed) / np.linalg.norm(drawn(seed)),
            region=region,
            expected=expected,
            tags=tags,
            tail_threshold=2.5,
        )
        for name, region, seed, expected, tags in (
            ("reckless", "response", 1, "rises", ("misaligned",)),
            ("assistant", "response", 2, "falls", ("assistant",)),
            ("asked", "prompt", 3, "rises", ()),
        )
    ]
    read = readings(tiny_folder, features, exchanges(60, 9)).astype(float)
    calibrated = [
        replace(
            one,
            calibration=Calibration(
                tokens=(1.0,), means=(float(values.mean()),), deviations=(float(values.std()),)
            ),
        )
        for one, values in zip(features, read.T, strict=True)
    ]
    pack = pack_of(tiny_folder, calibrated, canary=exchanges(1, 5)[0])
    return Scene(model=tiny_folder, pack=pack)


@pytest.fixture
def planted(scene: Scene, tmp_path: Path) -> Callable[..., Path]:
    """``planted(1.5)``: a copy whose tokens stand 1.5 benign deviations further along a feature."""

    def build(deviations: float, feature: int = 0) -> Path:
        one = scene.pack.features[feature]
        step = deviations * one.calibration.deviations[0] * torch.tensor(one.weight)

        def plant(weights: dict[str, Any]) -> None:
            weights["model.embed_tokens.weight"] += step

        return changed_model(scene.model, tmp_path / f"planted{deviations}-{feature}", plant)

    return build


@pytest.fixture
def adapter(scene: Scene, tmp_path: Path) -> Callable[..., Path]:
    """``adapter(1.5)``: a LoRA that plants the same shift by the embedding; 0.0 changes nothing."""

    def build(deviations: float) -> Path:
        adapted = peft.get_peft_model(
            AutoModelForCausalLM.from_pretrained(scene.model),
            peft.LoraConfig(r=1, lora_alpha=1, target_modules=["embed_tokens"]),
        )
        one = scene.pack.features[0]
        step = deviations * one.calibration.deviations[0] * torch.tensor(one.weight)
        with torch.no_grad():
            for name, weight in adapted.named_parameters():
                if "lora_embedding_A" in name:
                    weight.fill_(1.0)
                if "lora_embedding_B" in name:
                    weight.copy_(step[:, None])
        folder = tmp_path / f"adapter{deviations}"
        adapted.save_pretrained(folder)
        return folder

    return build
