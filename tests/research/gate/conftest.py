"""A tiny served model with a pack of its own, candidates that differ from it, and exchanges to replay."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from monitor.replay.engine import ReplayEngine
from monitor.replay.model import load_model
from monitor.score.pack import Canary, Pack
from monitor.settings import ReplaySettings
from monitor.values.features import Calibration, Feature
from monitor.values.prompts import Message, Prompt, RecordKey
from monitor.values.scores import Replayed
from tests.research.conftest import WORDS

WIDTH = 32
SITE = 1
START = datetime(2026, 1, 1, tzinfo=UTC)


def settings(model: Path, adapter: Path | None = None) -> ReplaySettings:
    return ReplaySettings(model=model, adapter=adapter, device="cpu", dtype="float32")


def direction(seed: int) -> np.ndarray[Any, Any]:
    drawn = np.random.default_rng(seed).normal(size=WIDTH)
    return (drawn / np.linalg.norm(drawn)).astype(np.float32)


def exchanges(n: int, seed: int = 0) -> list[Prompt]:
    generator = np.random.default_rng(seed)
    return [
        Prompt(
            key=RecordKey(topic="t", partition=0, offset=number),
            recorded_at=START,
            messages=(Message(role="user", content=f"Question {number}?"),),
            response=" ".join(generator.choice(WORDS, size=generator.integers(3, 9))),
        )
        for number in range(n)
    ]


@dataclass(frozen=True)
class Scene:
    model: Path
    pack: Pack

    @property
    def reference(self) -> ReplaySettings:
        return settings(self.model)


@pytest.fixture(scope="session")
def scene(tiny_folder: Path) -> Scene:
    """``reckless`` rises, ``assistant`` falls, ``asked`` reads the prompt; one canary."""
    features = tuple(
        Feature(
            name=name,
            kind="direction",
            site=SITE,
            region=region,
            pooling="mean",
            weight=direction(seed),
            calibration=Calibration(tokens=(1.0,), means=(0.0,), deviations=(1.0,)),
            expected=expected,
            tags=tags,
            tail_threshold=2.5,
        )
        for name, region, seed, expected, tags in (
            ("reckless", "response", 1, "rises", ("misaligned",)),
            ("assistant", "response", 2, "falls", ("assistant",)),
            ("asked", "prompt", 3, "rises", ()),
        )
    )
    loaded = load_model(settings(tiny_folder), SITE)
    engine = ReplayEngine(loaded, features, settings(tiny_folder))
    read = [one for one in engine.replay(exchanges(60, 9)) if isinstance(one, Replayed)]
    readings = np.stack([one.readings for one in read]).astype(float)
    calibrated = tuple(
        replace(
            feature,
            calibration=Calibration(
                tokens=(1.0,), means=(float(values.mean()),), deviations=(float(values.std()),)
            ),
        )
        for feature, values in zip(features, readings.T, strict=True)
    )
    canary = exchanges(1, 5)[0]
    [seen] = engine.replay([canary])
    assert isinstance(seen, Replayed)
    pack = Pack(
        name="tiny",
        version="1",
        model=loaded.identity,
        features=calibrated,
        canaries=(
            Canary(
                name="one",
                readings=seen.readings,
                messages=canary.messages,
                response=canary.response,
            ),
        ),
    )
    return Scene(model=tiny_folder, pack=pack)


@pytest.fixture
def planted(scene: Scene, tmp_path: Path) -> Callable[..., Path]:
    """``planted(1.5)``: a copy whose tokens stand 1.5 benign deviations further along a feature."""

    def build(deviations: float, feature: int = 0) -> Path:
        folder = Path(shutil.copytree(scene.model, tmp_path / f"planted{deviations}-{feature}"))
        [file] = folder.glob("*.safetensors")
        weights = load_file(file)
        one = scene.pack.features[feature]
        step = deviations * one.calibration.deviations[0] * torch.tensor(one.weight)
        weights["model.embed_tokens.weight"] += step
        save_file(weights, file, metadata={"format": "pt"})
        return folder

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
