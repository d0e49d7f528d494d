"""What is read of a model's files beside its weights is read once for each state of the files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from monitor.replay.model import identity_of, load_model
from tests.scenes.models import save_tiny
from tests.scenes.packs import on_cpu


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders of which a tokenizer was read."""
    found: list[Path] = []
    read = AutoTokenizer.from_pretrained

    def counted(folder: Path, **options: Any) -> Any:
        found.append(folder)
        return read(folder, **options)

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", counted)
    return found


def test_identity_and_model_need_one_tokenizer(tmp_path: Path, loads: list[Path]) -> None:
    settings = on_cpu(save_tiny(tmp_path / "model", seed=1))
    identity = identity_of(settings)
    assert load_model(settings, 1).identity == identity
    assert identity_of(settings) == identity
    assert len(loads) == 1


def test_a_changed_template_is_read_again(tmp_path: Path, loads: list[Path]) -> None:
    folder = save_tiny(tmp_path / "model", seed=1, template="{{ messages[0].content }}")
    before = identity_of(on_cpu(folder))
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    after = identity_of(on_cpu(folder))
    assert len(loads) == 2
    assert before.template_hash != after.template_hash
    assert before.tokenizer_hash == after.tokenizer_hash


def test_a_configuration_that_a_copy_changed_is_not_shared(tmp_path: Path) -> None:
    settings = on_cpu(save_tiny(tmp_path / "model", seed=1))
    first = load_model(settings, 1)
    first.config.hidden_size = 7
    assert load_model(settings, 1).config.hidden_size != 7
