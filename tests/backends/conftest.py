"""A tiny model and a pack that reads several sites, regions and poolings of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from monitor.research.texts import exchange
from monitor.score.pack import save_pack
from monitor.settings import ReplaySettings
from monitor.values.features import Covariate
from monitor.values.prompts import Message, Prompt, RecordKey
from tests.scenes.models import CHATML, normal_weights, save_tiny
from tests.scenes.packs import drawn, feature, pack_of
from tests.scenes.texts import WORDS


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(
        tmp_path_factory.mktemp("tiny"),
        seed=3,
        template=CHATML,
        weights=normal_weights(lambda _, size: size**-0.5),
        bos_token_id=None,
        eos_token_id=1,
    )


@pytest.fixture(scope="session")
def pack(model: Path) -> Any:
    features = [
        feature("mean", drawn(1), site=0),
        feature("peak", drawn(2), site=2, pooling="max_rolling_mean", rolling_tokens=4),
        feature("asked", drawn(3), site=1, region="prompt", pooling="max"),
        feature("last", drawn(4), site=2, region="last_prompt_token", pooling="last"),
    ]
    made = pack_of(model, features, canary=exchange((Message(role="user", content="hi"),), "yes"))
    return replace(
        made, covariates=(Covariate(name="prompt.1", site=1, region="prompt", weight=drawn(9)),)
    )


@pytest.fixture(scope="session")
def pack_folder(tmp_path_factory: pytest.TempPathFactory, pack: Any) -> Path:
    folder = tmp_path_factory.mktemp("pack")
    save_pack(pack, folder)
    return folder


@pytest.fixture(scope="session")
def prompts() -> list[Prompt]:
    """Exchanges of 1 to 40 words, some without an answer, two of them equal."""
    generator = np.random.default_rng(5)

    def text(words: int) -> str:
        return " ".join(generator.choice(WORDS, words))

    made = [
        Prompt(
            key=RecordKey(topic="prompts", partition=0, offset=index),
            recorded_at=datetime(2026, 1, 1, tzinfo=UTC),
            messages=(Message(role="user", content=text(1 + index * 4)),),
            response=None if index == 3 else text(1 + index),
        )
        for index in range(9)
    ]
    return [*made, replace(made[4], key=RecordKey(topic="prompts", partition=0, offset=9))]


@pytest.fixture
def at(model: Path) -> Callable[..., ReplaySettings]:
    """Settings of backend vllm at a URL."""

    def settings(url: str, **changes: Any) -> ReplaySettings:
        given = {"model": model, "backend": "vllm", "url": url, "timeout": 20, "max_tokens": 512}
        return ReplaySettings(**(given | changes))

    return settings
