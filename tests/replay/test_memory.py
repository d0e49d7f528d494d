"""What a copy takes in memory, counted before it is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from benchmarks.architectures.tiny import save_tiny, tiny_config
from benchmarks.memory import TABLE, table
from benchmarks.pages import shown
from monitor.replay.memory import planned, sizes
from monitor.replay.model import load_model
from monitor.settings import ReplaySettings

PAGE = Path(__file__).parents[2] / "docs" / "replay.md"


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("kind", ["llama", "gpt_oss", "qwen3_vl"])
def test_what_is_planned_is_what_is_loaded(kind: str, full: bool, tmp_path: Path) -> None:
    save_tiny(tiny_config(kind), tmp_path)
    loaded = load_model(ReplaySettings(model=tmp_path, device="cpu", dtype="float32"), 1, full=full)
    found = planned(AutoConfig.from_pretrained(tmp_path), 1, torch.float32, full=full)
    assert found == sizes(loaded.answerer or loaded.model)
    assert len(found.blocks) == (4 if full else 2)


def test_the_table_of_the_page_is_todays() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert shown(page, TABLE).splitlines() == list(table())
