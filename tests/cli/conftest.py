"""The command line as a person calls it, a configuration file, and a tiny model with its pack."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from monitor.cli import show
from monitor.cli.main import main
from monitor.research.texts import exchange
from monitor.score.pack import save_pack
from monitor.values.features import Calibration
from monitor.values.prompts import Message
from tests.scenes.models import CHATML, changed_model, normal_weights, save_tiny
from tests.scenes.packs import drawn, feature, pack_of


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


Cli = Callable[..., Ended]


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in os.environ:
        if variable.startswith("MONITOR_") and variable != "MONITOR_PACK__ALLOW_UNJUDGED":
            monkeypatch.delenv(variable)
    monkeypatch.setenv("COLUMNS", "200")
    # The consoles may have been made before, under another width: a process runs many files.
    monkeypatch.setattr(show.out, "width", 200)
    monkeypatch.setattr(show.err, "width", 200)


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
    return save_tiny(
        tmp_path_factory.mktemp("tiny-llama"),
        seed=7,
        template=CHATML,
        weights=normal_weights(lambda _, size: size**-0.5),
        bos_token_id=None,
        eos_token_id=1,
    )


@pytest.fixture(scope="session")
def pack_folder(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    """A pack of two features of the tiny llama: one of prompts, one of responses; one canary."""
    level = Calibration(tokens=(1.0,), means=(0.5,), deviations=(2.0,))
    features = [
        feature(name, drawn(seed), region=region, calibration=level)
        for name, region, seed in (("curt", "prompt", 1), ("toxic", "response", 2))
    ]
    greeting = exchange((Message(role="user", content="hello"),), "good day")
    folder = tmp_path_factory.mktemp("pack")
    save_pack(pack_of(model_folder, features, canary=greeting), folder)
    return folder


@pytest.fixture(scope="session")
def answers_pack_folder(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    """A pack of the tiny llama that reads nothing but responses."""
    folder = tmp_path_factory.mktemp("answers-pack")
    save_pack(pack_of(model_folder, [feature("toxic", drawn(2))], name="answers"), folder)
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
    def shift(weights: dict[str, Any]) -> None:
        for name in weights:
            weights[name] = weights[name] + by

    return changed_model(model, folder, shift)
