"""A tiny served model with a pack of its own, and exchanges to replay."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from monitor.score.pack import Pack
from monitor.settings import ReplaySettings
from monitor.values.prompts import Message, Prompt, RecordKey
from tests.scenes.packs import START, on_cpu
from tests.scenes.texts import WORDS


@dataclass(frozen=True)
class Scene:
    model: Path
    pack: Pack

    @property
    def reference(self) -> ReplaySettings:
        return on_cpu(self.model)


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
