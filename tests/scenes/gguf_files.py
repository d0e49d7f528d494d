"""A model in a GGUF file, made here."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
from transformers.convert_slow_tokenizer import bytes_to_unicode

WIDTH, INNER, BLOCKS, VOCABULARY = 64, 96, 3, 2_000


def tiny_gguf(folder: Path) -> Path:
    """A tiny Llama in float32, with as many tokens as are taken for a vocabulary."""
    writer = gguf.GGUFWriter(folder / "tiny.gguf", "llama")
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
    return folder / "tiny.gguf"
