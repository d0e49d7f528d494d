"""The command line as a person calls it, a configuration file, and a tiny model with its pack."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from monitor.cli.main import main
from monitor.replay.engine import ReplayEngine
from monitor.replay.model import load_model
from monitor.score.pack import Canary, Pack, save_pack
from monitor.settings import ReplaySettings
from monitor.values.features import Calibration, Feature
from monitor.values.prompts import Message
from monitor.values.scores import Replayed

WIDTH = 32
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


Cli = Callable[..., Ended]


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in os.environ:
        if variable.startswith("MONITOR_"):
            monkeypatch.delenv(variable)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """``cli("alerts", "list", config=file)``: the console script's code, output and errors."""

    def call(*arguments: object, config: Path | None = None) -> Ended:
        given = [str(argument) for argument in arguments]
        if config:
            given += ["--config", str(config)]
        monkeypatch.setattr(sys, "argv", ["monitor", *given])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        assert isinstance(end.value.code, int)
        return Ended(end.value.code, *capsys.readouterr())

    return call


@pytest.fixture
def configured(tmp_path: Path) -> Callable[..., Path]:
    """``configured(replay={...})``: a configuration file with these sections."""

    def write(**sections: Any) -> Path:
        file = tmp_path / "monitor.yaml"
        file.write_text(yaml.safe_dump(sections), encoding="utf-8")
        return file

    return write


@pytest.fixture
def on_database(migrated_url: str, configured: Callable[..., Path]) -> Path:
    """A configuration of a new database with the current schema, and nothing else."""
    return configured(postgres={"url": migrated_url})


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random llama of four blocks with a tokenizer of bytes."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    special = ["<|im_start|>", "<|im_end|>"]
    pieces = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=special[1], additional_special_tokens=special[:1]
    )
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    set_seed(7)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(pieces),
            hidden_size=WIDTH,
            intermediate_size=48,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            bos_token_id=None,
            eos_token_id=1,
        )
    )
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim >= 2:
                weight.normal_(0.0, weight.shape[-1] ** -0.5)
    model.save_pretrained(folder)
    return folder


def _feature(name: str, region: Any, seed: int) -> Feature:
    return Feature(
        name=name,
        kind="direction",
        site=1,
        region=region,
        pooling="mean",
        weight=np.random.default_rng(seed).normal(size=WIDTH).astype(np.float32),
        calibration=Calibration(tokens=(1.0,), means=(0.5,), deviations=(2.0,)),
    )


@pytest.fixture(scope="session")
def pack_folder(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    """A pack of two features of the tiny llama: one of prompts, one of responses; one canary."""
    features = (_feature("curt", "prompt", 1), _feature("toxic", "response", 2))
    settings = ReplaySettings(model=model_folder, device="cpu")
    engine = ReplayEngine(loaded := load_model(settings, 1), features, settings)
    canary = Canary(
        name="greeting",
        readings=np.zeros(2, dtype=np.float32),
        messages=(Message(role="user", content="hello"),),
        response="good day",
    )
    (read,) = engine.replay([canary.prompt(0, datetime(2026, 1, 1, tzinfo=UTC))])
    assert isinstance(read, Replayed)
    pack = Pack(
        name="tiny",
        version="1",
        model=loaded.identity,
        features=features,
        canaries=(replace(canary, readings=read.readings),),
    )
    save_pack(pack, folder := tmp_path_factory.mktemp("pack"))
    return folder


@pytest.fixture
def other_model_folder(tmp_path: Path, model_folder: Path) -> Path:
    """The same llama with one weight file and the chat template of another."""
    return _shifted(model_folder, tmp_path / "other-llama", 0.25)


@pytest.fixture
def nan_model_folder(tmp_path: Path, model_folder: Path) -> Path:
    """The same llama with weights that are no numbers."""
    return _shifted(model_folder, tmp_path / "nan-llama", float("nan"))


def _shifted(model: Path, folder: Path, by: float) -> Path:
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, folder)
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: weight + by for name, weight in weights.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    return folder
