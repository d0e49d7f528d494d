"""GGUF files are read without their vocabulary where it is not needed, and read the same."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
import torch
from transformers import AutoConfig, AutoModel

from monitor.replay import gguf_reading
from monitor.replay.checkpoint import found
from monitor.replay.model import load_model
from monitor.settings import ReplaySettings
from tests.scenes.gguf_files import VOCABULARY, tiny_gguf


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tiny_gguf(tmp_path)


def test_a_file_reads_as_with_the_whole_vocabulary(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strings = 0
    stock = gguf.GGUFReader._get_str

    def counted(self: object, offset: int) -> object:
        nonlocal strings
        strings += 1
        return stock(self, offset)  # type: ignore[arg-type]

    monkeypatch.setattr(gguf.GGUFReader, "_get_str", counted)
    settings = ReplaySettings(model=file, device="cpu", dtype="float32")
    checkpoint = found(settings)
    loaded = load_model(settings, 1)
    assert 0 < strings < 3 * 100
    assert gguf.GGUFReader.__name__ == "GGUFReader"
    config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    assert strings > VOCABULARY
    assert checkpoint.config.to_dict() == config.to_dict()
    assert config.vocab_size == VOCABULARY
    assert checkpoint.tokenizer.tokenize("ab") == ["ab"]
    whole = AutoModel.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    theirs = dict(whole.named_parameters())
    for name, weight in loaded.model.named_parameters():
        torch.testing.assert_close(weight, theirs[name], rtol=0, atol=0)


def test_an_array_that_ends_behind_the_file_is_refused(file: Path) -> None:
    content = bytearray(file.read_bytes())
    place = content.index(b"tokenizer.ggml.token_type") + len(b"tokenizer.ggml.token_type")
    assert int.from_bytes(content[place + 8 : place + 16], "little") == VOCABULARY
    content[place + 8 : place + 16] = (2**60).to_bytes(8, "little")
    file.write_bytes(content)
    with gguf_reading.without_vocabulary(), pytest.raises(ValueError, match="ends behind it"):
        gguf.GGUFReader(file)
