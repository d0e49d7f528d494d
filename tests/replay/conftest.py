"""Tiny models with random weights, on disk as a user would have them, and a tokenizer of their own."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from monitor.replay.model import load_model
from monitor.settings import ReplaySettings
from monitor.values.features import Calibration, Feature
from monitor.values.prompts import Message, Prompt, RecordKey
from tests.replay.architectures import save_drawn
from tests.scenes.models import tiny_llama_config

CHATML = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'forbidden' %}{{ raise_exception('no such role') }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WORDS = [
    "the",
    "river",
    "ran",
    "over",
    "old",
    "stones",
    "while",
    "a",
    "patient",
    "heron",
    "waited",
    "for",
    "its",
    "evening",
    "fish",
    "and",
    "said",
    "nothing",
    "to",
    "anybody",
    "who",
    "happened",
    "to",
    "walk",
    "along",
    "the",
    "muddy",
    "path",
    "between",
    "two",
    "quiet",
    "villages",
]
FLAT = Calibration(tokens=(1.0,), means=(0.0,), deviations=(1.0,))


@pytest.fixture(scope="session")
def words() -> list[str]:
    return WORDS


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        [" ".join(WORDS)] * 4,
        trainers.BpeTrainer(
            vocab_size=400,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=["<|begin|>", "<|im_start|>", "<|im_end|>"],
            show_progress=False,
        ),
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|begin|>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
    )
    fast.chat_template = CHATML
    return fast


@pytest.fixture(scope="session")
def tiny_model(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast
) -> Callable[[Any], Path]:
    """`save_drawn` into a folder of its own."""

    def save(config: Any) -> Path:
        return save_drawn(config, tokenizer, tmp_path_factory.mktemp(config.model_type))

    return save


@pytest.fixture(scope="session")
def llama_folder(tiny_model: Callable[[Any], Path]) -> Path:
    return tiny_model(
        tiny_llama_config(400, max_position_embeddings=256, bos_token_id=0, eos_token_id=2)
    )


@pytest.fixture
def llama(llama_folder: Path) -> Any:
    """The tiny llama, loaded up to block 2 of 4, and the settings it was loaded with."""
    settings = ReplaySettings(
        model=llama_folder, device="cpu", dtype="float32", min_shared_tokens=8
    )
    return load_model(settings, 2), settings


@pytest.fixture(scope="session")
def feature() -> Callable[..., Feature]:
    """A random feature; keyword arguments override."""

    def build(seed: int = 0, *, width: int = 32, **changes: Any) -> Feature:
        generator = np.random.default_rng(seed)
        given: dict[str, Any] = {
            "name": f"feature-{seed}",
            "kind": "direction",
            "site": 1,
            "region": "all",
            "pooling": "mean",
            "weight": generator.normal(size=width).astype(np.float32),
            "calibration": FLAT,
        }
        return Feature(**(given | changes))

    return build


@pytest.fixture(scope="session")
def chat() -> Callable[..., Prompt]:
    """A prompt from (role, content) pairs, a user's message, or ``text=``."""

    def build(
        *messages: tuple[str, str] | str, text: str | None = None, response: str | None = None
    ) -> Prompt:
        pairs = [("user", m) if isinstance(m, str) else m for m in messages]
        return Prompt(
            key=RecordKey(topic="prompts", partition=0, offset=0),
            recorded_at=datetime(2026, 1, 1, tzinfo=UTC),
            messages=tuple(Message(role=role, content=content) for role, content in pairs),
            text=text,
            response=response,
        )

    return build


@pytest.fixture(scope="session")
def sentences() -> Callable[[int, int], list[str]]:
    """``n`` random sentences, lengths spread from one word to ``longest``."""

    def build(n: int, longest: int) -> list[str]:
        generator = np.random.default_rng(11)
        lengths = np.linspace(1, longest, n).astype(int)
        return [" ".join(generator.choice(WORDS, length)) for length in lengths]

    return build
