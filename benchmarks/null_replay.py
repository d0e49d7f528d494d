"""A replay without a model: readings are drawn from the content's hash. For the paths around the model."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType

import numpy as np

from monitor.score.pack import Pack
from monitor.values.arrays import Counts, Floats
from monitor.values.features import Calibration, Covariate, Feature
from monitor.values.identity import ModelIdentity
from monitor.values.likelihood import DrawnBy
from monitor.values.prompts import Prompt
from monitor.values.scores import Lineage, Replayed, Unreplayable
from monitor.values.twin import TwinAsked

WIDTH = 8
TOKENS = 10


def null_pack(
    features: int = 32,
    *,
    falling: int = 0,
    tail_threshold: float = 2.0,
    covariates: Sequence[Covariate] = (),
) -> Pack:
    """A pack of directions that no model has, calibrated for `NullReplay`'s standard normal readings.

    The last ``falling`` of its features are expected to fall.
    """
    return Pack(
        name="null",
        version="1",
        model=ModelIdentity(
            model_id="null", architecture="null", hidden_size=WIDTH, layers=1, vocab_size=1
        ),
        features=tuple(
            Feature(
                name=f"null-{index}",
                kind="direction",
                site=0,
                region="response",
                pooling="mean",
                weight=np.eye(1, WIDTH, index % WIDTH, dtype=np.float32)[0],
                calibration=Calibration(tokens=(1.0,), means=(0.0,), deviations=(1.0,)),
                tail_threshold=tail_threshold,
                expected="falls" if index >= features - falling else "rises",
            )
            for index in range(features)
        ),
        covariates=tuple(covariates),
    )


class NullReplay:
    """Answers like the engine, ``seconds_per_prompt`` slow; every content has its own fixed readings."""

    def __init__(self, features: int = 32, *, seconds_per_prompt: float = 0.0) -> None:
        self._features = features
        self._seconds = seconds_per_prompt
        self._pooled_tokens: Counts = np.full(features, TOKENS, dtype=np.int64)

    def prepare(
        self,
        prompts: Sequence[Prompt],
        own_answers: Collection[int] = (),
        weighed: Mapping[int, DrawnBy] = MappingProxyType({}),
        twins: Mapping[int, TwinAsked] = MappingProxyType({}),
    ) -> list[Prompt]:
        return list(prompts)

    def run(self, prepared: Sequence[Prompt]) -> list[Replayed | Unreplayable]:
        time.sleep(self._seconds * len(prepared))
        return [self._replayed(prompt) for prompt in prepared]

    def _replayed(self, prompt: Prompt) -> Replayed:
        text = prompt.text or " ".join(message.content for message in prompt.messages)
        seed = hashlib.blake2b(text.encode(), digest_size=8).digest()
        return Replayed(
            prompt=prompt,
            readings=_drawn(seed, self._features),
            pooled_tokens=self._pooled_tokens,
            prompt_tokens=TOKENS,
            response_tokens=TOKENS,
        )

    def lineage(self, pack_id: str) -> Lineage:
        return Lineage(
            pack_id=pack_id,
            model_id="null",
            model_hash="null",
            dtype="float32",
            attention="none",
            device="cpu",
            engine="null/1",
            rules="{}",
        )


@lru_cache(maxsize=65_536)
def _drawn(seed: bytes, features: int) -> Floats:
    """Kept: to draw anew for contents that come again takes longer than anything that is done with them."""
    generator = np.random.default_rng(int.from_bytes(seed, "big"))
    drawn: Floats = generator.standard_normal(features).astype(np.float32)
    drawn.flags.writeable = False
    return drawn
