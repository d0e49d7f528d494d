"""Tiny configurations of the architectures that are replayed, and how their weights are drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, set_seed

from monitor.replay.plan import Way

LAYERS = 4
WINDOW = 8
COMMON: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": None,
}
MIXED = ["sliding_attention", "full_attention"] * (LAYERS // 2)
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}

PACKED: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", COMMON),
    "qwen2": ("Qwen2Config", COMMON),
    "qwen2-sliding": (
        "Qwen2Config",
        COMMON | {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3Config", COMMON | {"head_dim": 8}),
    "gemma2": (
        "Gemma2Config",
        COMMON | {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": WINDOW},
    ),
    "gemma3": (
        "Gemma3TextConfig",
        COMMON
        | {
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "sliding_window": WINDOW,
            "layer_types": MIXED,
        },
    ),
    "mistral": ("MistralConfig", COMMON | {"sliding_window": WINDOW}),
    "gpt2": (
        "GPT2Config",
        {"vocab_size": 400, "n_embd": 32, "n_layer": LAYERS, "n_head": 4, "n_positions": 256},
    ),
    "gpt_neox": ("GPTNeoXConfig", COMMON),
    "phi3": ("Phi3Config", COMMON | {"sliding_window": WINDOW}),
    "mixtral": ("MixtralConfig", COMMON | EXPERTS),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        COMMON
        | {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    ),
}
OTHERS: dict[str, tuple[str, dict[str, Any], Way]] = {
    "gpt_oss with sinks": (
        "GptOssConfig",
        COMMON | EXPERTS | {"head_dim": 8, "sliding_window": WINDOW, "layer_types": MIXED},
        "packed",
    ),
    "bloom with alibi": (
        "BloomConfig",
        {"vocab_size": 400, "hidden_size": 32, "n_layer": LAYERS, "n_head": 4},
        "batched",
    ),
    "mamba": (
        "MambaConfig",
        {"vocab_size": 400, "hidden_size": 32, "num_hidden_layers": LAYERS},
        "packed",
    ),
    "lfm2 with convolutions": (
        "Lfm2Config",
        COMMON | {"layer_types": ["conv", "full_attention"] * (LAYERS // 2)},
        "packed",
    ),
    "phi3 beyond its original positions": (
        "Phi3Config",
        COMMON
        | {
            "original_max_position_embeddings": 64,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10_000.0,
                "short_factor": [1.0] * 4,
                "long_factor": [3.0] * 4,
                "original_max_position_embeddings": 64,
            },
        },
        "alone",
    ),
}
"""Architectures that are not on the list, and how they are run."""


def save_drawn(config: Any, tokenizer: Any, folder: Path) -> Path:
    """Save a random model of a configuration; its attention is strong enough to be got wrong."""
    set_seed(7)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim >= 2 and "norm" not in name:
                weight.normal_(0.0, 1.4 / weight.shape[-1] ** 0.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
