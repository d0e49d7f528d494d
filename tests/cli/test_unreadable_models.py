"""A model that cannot be replayed is refused in a sentence by every command that reads one, before it begins."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Cli

CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "no decoder": ({"model_type": "clip"}, "no decoder that answers"),
    "two directions": ({"model_type": "paligemma"}, "read in both directions"),
    "encoder-decoder": ({"model_type": "t5"}, "encoder-decoder"),
    "no type": ({"model_type": None}, "cannot be loaded"),
    "its own code": (
        {"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}},
        "cannot be loaded",
    ),
}
COMMANDS: dict[str, Callable[[Path, Path, Path], list[object]]] = {
    "pack build": lambda model, pack, records: [
        *("pack", "build", "contrast", "--model", model, "--out", records.parent / "new"),
    ],
    "pack verify": lambda model, pack, records: ["pack", "verify", pack, "--model", model],
    "pack judge": lambda model, pack, records: ["pack", "judge", pack, "--model", model],
    "score": lambda model, pack, records: ["score", records, "--model", model, "--pack", pack],
    "gate": lambda model, pack, records: [
        *("gate", "--reference", model, "--candidate", model, "--prompts", records, "--pack", pack),
    ],
    "pack requalify": lambda model, pack, records: [
        *(
            "pack",
            "requalify",
            pack,
            "--model",
            model,
            "--to-dtype",
            "bfloat16",
            "--prompts",
            records,
        ),
    ],
    "steer": lambda model, pack, records: [
        *("steer", "--model", model, "--pack", pack, "--feature", "curt=0.5", "--prompt", "hello"),
    ],
}


@pytest.fixture
def unreadable(model_folder: Path, tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    def make(config: dict[str, Any]) -> Path:
        folder = Path(shutil.copytree(model_folder, tmp_path / "unreadable"))
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return make


@pytest.fixture
def records(tmp_path: Path) -> Path:
    file = tmp_path / "records.jsonl"
    file.write_text(json.dumps({"prompt": "hello", "response": "good day"}) + "\n")
    return file


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", CONFIGS)
def test_the_refusal_reaches_the_user(
    cli: Cli,
    unreadable: Callable[[dict[str, Any]], Path],
    pack_folder: Path,
    records: Path,
    command: str,
    kind: str,
) -> None:
    config, said = CONFIGS[kind]
    ended = cli(*COMMANDS[command](unreadable(config), pack_folder, records))
    assert ended.code == (3 if command in ("gate", "pack requalify") else 2), ended.err
    assert said in " ".join(ended.err.split())
    assert "Traceback" not in ended.err
    assert "defect" not in ended.err


@pytest.mark.parametrize("kind", CONFIGS)
def test_doctor_names_it_and_goes_on(
    cli: Cli,
    configured: Callable[..., Path],
    unreadable: Callable[[dict[str, Any]], Path],
    pack_folder: Path,
    migrated_url: str,
    kind: str,
) -> None:
    config, said = CONFIGS[kind]
    file = configured(
        replay={"model": str(unreadable(config)), "device": "cpu"},
        pack={"path": str(pack_folder)},
        postgres={"url": migrated_url},
        kafka={"bootstrap_servers": "127.0.0.1:1", "topics": ["prompts"]},
    )
    ended = cli("doctor", "--json", config=file)
    assert ended.code == 1
    findings = {one["part"]: one for one in json.loads(ended.out)}
    assert said in findings["model"]["seen"]
    assert findings["postgres"]["well"]
