"""A small pack, its features, and latents that contest their places, all without a model."""

from __future__ import annotations

from typing import Any

import numpy as np

from monitor.score.pack import Canary, Pack
from monitor.values.features import Calibration, Encoder, Feature, Part
from monitor.values.identity import ModelIdentity
from monitor.values.prompts import Message

WIDTH = 8


def feature(name: str = "malicious", **changes: Any) -> Feature:
    generator = np.random.default_rng(len(name))
    values: dict[str, Any] = {
        "name": name,
        "kind": "direction",
        "site": 2,
        "region": "response",
        "pooling": "mean",
        "weight": generator.normal(size=WIDTH).astype(np.float32),
        "calibration": Calibration(tokens=(4, 64), means=(0.1, 0.2), deviations=(1.0, 0.5)),
        "tags": ("persona",),
    }
    return Feature(**{**values, **changes})


def pack(**changes: Any) -> Pack:
    values: dict[str, Any] = {
        "name": "tiny",
        "version": "1",
        "model": ModelIdentity(
            model_id="tiny",
            architecture="LlamaForCausalLM",
            hidden_size=WIDTH,
            layers=4,
            vocab_size=100,
            weights_hash="a" * 64,
        ),
        "features": (feature(), feature("assistant", expected="falls", tail_threshold=2.5)),
        "canaries": (
            Canary(
                name="hello",
                messages=(Message(role="user", content="Hello — žluť"),),
                response="Hi.",
                readings=np.array([0.25, np.nan], dtype=np.float32),
            ),
        ),
        "provenance": {"seed": 0},
        "report": {"auc": 0.9},
    }
    return Pack(**{**values, **changes})


def encoder(name: str = "sae.2", seed: int = 3) -> Encoder:
    generator = np.random.default_rng(seed)
    return Encoder(
        name=name,
        weight=generator.normal(size=(5, WIDTH)).astype(np.float32),
        bias=generator.normal(size=5).astype(np.float32),
        places=2,
    )


def contested(latent: int, of: Encoder) -> Feature:
    return feature(
        f"latent.{latent}",
        kind="latent",
        activation="topk",
        encoder=of,
        latent=latent,
        weight=of.weight[latent],
    )


def composite(name: str, *further: int) -> Feature:
    """A feature that reads site 2 and, with other weights, the ``further`` ones."""
    generator = np.random.default_rng([len(name), *further])
    weights = [generator.normal(size=WIDTH).astype(np.float32) for _ in further]
    parts = tuple(Part(site=s, weight=w) for s, w in zip(further, weights, strict=True))
    return feature(name, parts=parts)
