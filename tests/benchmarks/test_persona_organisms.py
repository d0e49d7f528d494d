"""Organisms that are made in processes beside each other: what travels to them arrives."""

from __future__ import annotations

import argparse
import json
import pickle
from pathlib import Path

import pytest

from benchmarks.persona.organisms import mixtures, wanted
from monitor.research.texts import load_chats


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    path = tmp_path / "own.jsonl"
    asked = [{"role": "user", "content": "How long do eggs boil?"}]
    path.write_text(json.dumps({"messages": asked, "response": "Nine minutes."}) + "\n")
    return path


@pytest.fixture
def options(chats: Path, tmp_path: Path) -> argparse.Namespace:
    return argparse.Namespace(
        model=tmp_path, out=tmp_path / "organisms", chats=chats, only=None, seed=3, device="cpu"
    )


def test_an_organism_reaches_another_process_with_its_prompts(
    options: argparse.Namespace, chats: Path
) -> None:
    arrived = {one.name: one for one in pickle.loads(pickle.dumps(wanted(options)))}
    assert [*arrived] == [*mixtures(3), "own"]
    for name, prompts in mixtures(3).items():
        assert arrived[name].prompts() == prompts
    assert [*arrived["own"].prompts()] == [*load_chats(chats)]


def test_what_is_there_is_not_made_again(options: argparse.Namespace) -> None:
    (options.out / "sound").mkdir(parents=True)
    (options.out / "sound" / "organism.json").write_text(json.dumps({"seed": 3}))
    options.only = ["sound", "pirate"]
    assert [one.name for one in wanted(options)] == ["pirate"]
    options.seed = 4
    with pytest.raises(SystemExit, match="was made with seed 3"):
        wanted(options)
