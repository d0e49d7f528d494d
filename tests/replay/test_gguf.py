"""GGUF files are read without their vocabulary where it is not needed, and read the same."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel
from transformers.convert_slow_tokenizer import bytes_to_unicode

from monitor.replay import gguf_reading
from monitor.replay.checkpoint import found
from monitor.replay.model import load_model
from monitor.settings import ReplaySettings

WIDTH, INNER, BLOCKS, VOCABULARY = 64, 96, 3, 2_000


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A tiny Llama in float32, with as many tokens as are taken for a vocabulary."""
    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "llama")
    writer.add_block_count(BLOCKS)
    writer.add_context_length(512)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    letters = list(bytes_to_unicode().values())
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    tokens = [*letters, "ab", *(f"a{number}" for number in range(VOCABULARY - len(letters) - 1))]
    writer.add_token_list(tokens)
    writer.add_token_types([1] * VOCABULARY)
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(5)
    drawn = np.random.default_rng(0)
    shapes = {"token_embd": (VOCABULARY, WIDTH), "output_norm": (WIDTH,)}
    inside = {
        "attn_norm": (WIDTH,),
        "ffn_norm": (WIDTH,),
        "attn_q": (WIDTH, WIDTH),
        "attn_k": (32, WIDTH),
        "attn_v": (32, WIDTH),
        "attn_output": (WIDTH, WIDTH),
        "ffn_gate": (INNER, WIDTH),
        "ffn_up": (INNER, WIDTH),
        "ffn_down": (WIDTH, INNER),
    }
    for block in range(BLOCKS):
        shapes |= {f"blk.{block}.{name}": shape for name, shape in inside.items()}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", drawn.normal(size=shape).astype(np.float32) / 10)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "tiny.gguf"


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
