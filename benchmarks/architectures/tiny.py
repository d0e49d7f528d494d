"""Tiny configurations of every decoder that transformers ships, and checkpoints with random weights.

Each has four blocks, 32 numbers wide, and a window or chunk of eight tokens where it has one, so that
short prompts cross it.
"""

from __future__ import annotations

import copy
import inspect
from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CONFIG_MAPPING,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    set_seed,
)

from monitor.replay.layers import model_class

VOCABULARY: Final = 400
WIDTH: Final = 32
LAYERS: Final = 4
WINDOW: Final = 8
MIXED: Final = ["sliding_attention", "full_attention"] * (LAYERS // 2)
RECURRENT: Final = ["linear_attention", "full_attention"] * (LAYERS // 2)

SMALL: Final[dict[str, Any]] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "head_dim": 8,
    "sliding_window": WINDOW,
    "attention_chunk_size": WINDOW,
    "num_local_experts": 4,
    "num_experts": 4,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "moe_num_experts": 4,
    "moe_k": 2,
    "shared_expert_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "index_n_heads": 2,
    "index_head_dim": 16,
    "index_topk": 4,
    "index_topk_blocks": 2,
    "index_block_size": 4,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "mamba_num_heads": 8,
    "mamba_n_heads": 8,
    "mamba_head_dim": 8,
    "mamba_d_head": 8,
    "mamba_d_ssm": 64,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "ssm_state_size": 8,
    "query_pre_attn_scalar": 8,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 8,
    "num_kv_shared_layers": 2,
    "global_head_dim": 8,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
    "n_embd": WIDTH,
    "n_layer": LAYERS,
    "n_head": 4,
    "n_positions": 256,
    "word_embed_proj_dim": WIDTH,
    "ffn_dim": 48,
}
"""Fields of a small decoder; a configuration gets those that it has."""


def tiny_config(kind: str, **changes: Any) -> PreTrainedConfig:
    """A small configuration of model type ``kind``, text or multimodal; ``changes`` to its text part."""
    made: Any = CONFIG_MAPPING[kind]
    own = _own(kind) | changes
    parts = getattr(made, "sub_configs", {})
    if "text_config" not in parts:
        plain: PreTrainedConfig = made(**(_fields(made, SMALL) | own))
        return plain
    default = made()
    given: dict[str, Any] = {"text_config": _text(default, own).to_dict()}
    for name in parts:
        if name != "text_config" and getattr(default, name, None) is not None:
            given[name] = _media(getattr(default, name)).to_dict()
    config: PreTrainedConfig = made(**given)
    if not hasattr(config, "pad_token_id"):
        config.pad_token_id = None
    return config


def _text(default: PreTrainedConfig, own: dict[str, Any]) -> PreTrainedConfig:
    made: Any = type(default.get_text_config())
    small: PreTrainedConfig = made(**(_fields(made, SMALL) | _own(made.model_type) | own))
    return small


MEDIA: Final[dict[str, Any]] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "embed_dim": 16,
    "depth": 1,
    "num_heads": 2,
    "image_size": 28,
    "patch_size": 14,
    "out_hidden_size": WIDTH,
    "d_model": 16,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "num_layers": 1,
}


def _own(kind: str) -> dict[str, Any]:
    # Configurations write into the dictionaries that they are given.
    return copy.deepcopy(OWN.get(kind, {}))


def _media(default: PreTrainedConfig) -> PreTrainedConfig:
    made: Any = type(default)
    small: PreTrainedConfig = made(**_fields(made, MEDIA))
    return small


def _fields(made: Any, small: dict[str, Any]) -> dict[str, Any]:
    known = set(inspect.signature(made.__init__).parameters) | set(
        getattr(made, "__dataclass_fields__", {})
    )
    names = {value: name for name, value in getattr(made, "attribute_map", {}).items()}
    return {
        name: value for name, value in small.items() if name in known and name not in names.values()
    }


_LATENT: Final = {"num_key_value_heads": 4}
_ROTARY: Final = {"rope_type": "default", "rope_theta": 10_000.0}
_THREE_AXES: Final = {"rope_parameters": {**_ROTARY, "mrope_section": [2, 1, 1]}}
_SHARED_KEYS: Final = {"layer_types": MIXED}
_CONVOLVED: Final = {"layer_types": ["conv", "full_attention"] * (LAYERS // 2)}
OWN: Final[dict[str, dict[str, Any]]] = {
    "codegen": {"rotary_dim": 4},
    "deepseek_v2": _LATENT,
    "deepseek_v3": _LATENT,
    "deepseek_v32": _LATENT,
    "gemma3_text": {"layer_types": MIXED},
    "gemma3n_text": _SHARED_KEYS,
    "gemma4_text": _SHARED_KEYS
    | {"per_layer_config": {str(block): {"head_dim": 16} for block in range(1, LAYERS, 2)}},
    "gemma4_unified_text": _SHARED_KEYS,
    "glm4_moe_lite": _LATENT,
    "glm4v_moe_text": {
        "rope_parameters": {**_ROTARY, "mrope_section": [2, 1, 1], "partial_rotary_factor": 1.0}
    },
    "glm4v_text": _THREE_AXES,
    "glm_moe_dsa": _LATENT,
    "gpt_oss": {"layer_types": MIXED},
    "gptj": {"rotary_dim": 4},
    "lfm2": _CONVOLVED,
    "lfm2_moe": _CONVOLVED,
    "longcat_flash": _LATENT,
    "mamba2": {"num_heads": 8, "state_size": 8, "n_groups": 1},
    "minicpm3": _LATENT,
    "phimoe": {"sliding_window": 131_072},
    "qwen2": {"use_sliding_window": True, "layer_types": MIXED},
    "qwen2_5_vl_text": _THREE_AXES,
    "qwen2_vl_text": _THREE_AXES,
    "qwen3_5_moe_text": {"layer_types": RECURRENT, **_THREE_AXES},
    "qwen3_5_text": {"layer_types": RECURRENT, **_THREE_AXES},
    "qwen3_next": {"layer_types": RECURRENT},
    "qwen3_vl_moe_text": _THREE_AXES,
    "qwen3_vl_text": _THREE_AXES,
    "youtu": _LATENT,
}
"""What single model types need beside."""


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    words = {f"w{i}": i for i in range(VOCABULARY)}
    backend = Tokenizer(models.WordLevel(words, unk_token="w3"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made: Any = PreTrainedTokenizerFast
    tokenizer: PreTrainedTokenizerFast = made(
        tokenizer_object=backend, bos_token="w0", eos_token="w2"
    )
    return tokenizer


def save_tiny(config: PreTrainedConfig, folder: Path, seed: int = 7) -> None:
    """A checkpoint of ``config`` with random weights, its attention strong enough to be got wrong."""
    set_seed(seed)
    model: Any = model_class(config, full=True)(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim >= 2 and "norm" not in name and weight.is_floating_point():
                weight.normal_(0.0, 1.4 / weight.shape[-1] ** 0.5)
            elif name.rpartition(".")[2] in ("sinks", "attention_sink_bias"):
                weight.normal_(0.0, 1.0)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
