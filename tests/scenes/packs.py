"""Features and packs for tiny models."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from monitor.replay.engine import ReplayEngine
from monitor.replay.model import identity_of, load_model
from monitor.score.pack import Canary, Pack
from monitor.settings import ReplaySettings
from monitor.values.features import Calibration, Feature
from monitor.values.prompts import Prompt
from monitor.values.scores import Replayed
from tests.scenes.models import WIDTH

FLAT = Calibration(tokens=(1.0,), means=(0.0,), deviations=(1.0,))
"""Scores equal readings."""
START = datetime(2026, 1, 1, tzinfo=UTC)


def on_cpu(model: Path, adapter: Path | None = None) -> ReplaySettings:
    return ReplaySettings(model=model, adapter=adapter, device="cpu", dtype="float32")


def drawn(seed: int, width: int = WIDTH) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=width).astype(np.float32)


def feature(name: str, weight: np.ndarray[Any, Any], **changes: Any) -> Feature:
    """A direction read as the mean over the response behind block 1; keyword arguments override."""
    given: dict[str, Any] = {
        "name": name,
        "kind": "direction",
        "site": 1,
        "region": "response",
        "pooling": "mean",
        "weight": weight.astype(np.float32),
        "calibration": FLAT,
    }
    return Feature(**(given | changes))


def readings(
    model: Path, features: Sequence[Feature], prompts: Sequence[Prompt]
) -> np.ndarray[Any, Any]:
    """Readings [n, k] by the production engine; every prompt must be readable."""
    settings = on_cpu(model)
    loaded = load_model(settings, max(feature.sites[-1] for feature in features))
    replayed = ReplayEngine(loaded, features, settings).replay(prompts)
    found = [one for one in replayed if isinstance(one, Replayed)]
    assert len(found) == len(prompts)
    return np.stack([one.readings for one in found])


def pack_of(
    model: Path, features: Sequence[Feature], name: str = "tiny", canary: Prompt | None = None
) -> Pack:
    """``features`` as a pack of ``model``, with ``canary`` as it reads there."""
    canaries: tuple[Canary, ...] = ()
    if canary is not None:
        (seen,) = readings(model, features, [canary])
        canaries = (
            Canary(
                name="greeting",
                readings=seen,
                messages=canary.messages,
                response=canary.response,
            ),
        )
    return Pack(
        name=name,
        version="1",
        model=identity_of(ReplaySettings(model=model)),
        features=tuple(features),
        canaries=canaries,
    )
