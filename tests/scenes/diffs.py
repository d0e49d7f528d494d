"""Prompts to compare two tiny models on, and how it is done quickly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from monitor.research.diff.settings import DiffSettings, Doses
from monitor.score.pack import save_pack
from monitor.values.features import Feature
from tests.scenes.packs import drawn, feature, pack_of
from tests.scenes.texts import WORDS

PLANTED_SITE = 1
# Answers of random weights are never coherent.
QUICK = DiffSettings(top=2, doses=Doses(strengths=(0.3,), random_directions=9, incoherence=1.0))
CHANGED = DiffSettings(keep="changed", top=2)


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


def given(name: str, weight: np.ndarray[Any, Any], **fields: Any) -> Feature:
    return feature(name, weight, **({"site": 2, "pooling": "max"} | fields))


def planted_pack(base: Path, folder: Path, *more: Feature) -> None:
    features = [*(given(f"given.{i}", drawn(i)) for i in range(3)), *more]
    save_pack(pack_of(base, features, "given"), folder)
