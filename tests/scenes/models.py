"""Tiny models with random weights and a tokenizer of bytes, in folders as a user would have them.

Torch is imported where a model is made: a test that needs none is collected without it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

WIDTH = 32
PLAIN = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_tokenizer(template: str = PLAIN) -> Any:
    """A token for every byte, behind the two special ones of ``template``."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<|im_start|>", "<|im_end|>"] if template == CHATML else ["<|begin|>", "<|end|>"]
    pieces = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    named: dict[str, Any] = (
        {"additional_special_tokens": special[:1]}
        if template == CHATML
        else {"bos_token": special[0]}
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=special[1], **named)
    tokenizer.chat_template = template
    return tokenizer


def tiny_llama_config(vocab_size: int, **changes: Any) -> Any:
    """The configuration of a llama of four narrow blocks."""
    from transformers import LlamaConfig

    given: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
    }
    return LlamaConfig(**(given | changes))


def save_tiny(
    folder: Path,
    *,
    seed: int,
    template: str = PLAIN,
    weights: Callable[[Any, Any], None] | None = None,
    **config: Any,
) -> Path:
    """A tiny llama with its tokenizer in ``folder``; ``weights`` may change model and tokenizer first."""
    import torch
    from transformers import LlamaForCausalLM, set_seed

    tokenizer = byte_tokenizer(template)
    set_seed(seed)
    model = LlamaForCausalLM(tiny_llama_config(len(tokenizer), **config))
    if weights is not None:
        with torch.no_grad():
            weights(model, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def normal_weights(scale: Callable[[str, int], float]) -> Callable[[Any, Any], None]:
    """Matrices drawn anew, each with the deviation that ``scale`` says by its name and last size."""

    def drawn(model: Any, _tokenizer: Any) -> None:
        for name, weight in model.named_parameters():
            if weight.ndim >= 2:
                weight.normal_(0.0, scale(name, weight.shape[-1]))

    return drawn


LETTERS = "abcdefghijklmnop"


def save_lettered(folder: Path, seed: int = 5, *, heat: float = 1.0) -> Path:
    """A tiny llama that says letters alone, so that a log of its text holds every token of it.

    It says the likeliest letter most of the time; with ``heat`` 3 all of them.
    """
    return save_tiny(
        folder,
        seed=seed,
        weights=lambda tiny, tokenizer: _lettered(tiny, tokenizer, heat),
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=1,
    )


def _lettered(tiny: Any, tokenizer: Any, heat: float) -> None:
    """The first entry of the residual stream is the same everywhere, and silences all other tokens."""
    normal_weights(lambda name, size: (2.0 if "lm_head" in name else 1.0) * size**-0.5)(tiny, None)
    tiny.model.embed_tokens.weight[:, 0] = 5.0
    for block in tiny.model.layers:
        block.self_attn.o_proj.weight[0] = 0.0
        block.mlp.down_proj.weight[0] = 0.0
    tiny.lm_head.weight /= heat
    tiny.lm_head.weight[:, 0] = -30.0
    tiny.lm_head.weight[tokenizer.convert_tokens_to_ids(list(LETTERS)), 0] = 0.0


def changed_model(model: Path, folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of ``model`` in ``folder`` whose weights, by name, ``change`` has changed."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, folder, dirs_exist_ok=True)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def save_talker(folder: Path, seed: int) -> Path:
    """A tiny llama that says letters, other ones to other questions: its attention weighs more than the last token."""

    def weights(tiny: Any, tokenizer: Any) -> None:
        _lettered(tiny, tokenizer, 1.0)
        for block in tiny.model.layers:
            attention = block.self_attn
            attention.o_proj.weight[1:] *= 6
            attention.v_proj.weight *= 3
            attention.q_proj.weight *= 4
            attention.k_proj.weight *= 4

    return save_tiny(
        folder,
        seed=seed,
        weights=weights,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=1,
    )


def rounded(bits: int) -> Callable[[dict[str, Any]], None]:
    """The matrices of the blocks rounded to so many bits, with a scale for each of their rows."""

    def change(weights: dict[str, Any]) -> None:
        for name, weight in weights.items():
            if ".layers." in name and weight.ndim == 2:
                largest = weight.abs().amax(dim=1, keepdim=True).clamp_min(1e-12)
                scale = largest / (2 ** (bits - 1) - 1)
                weight.copy_((weight / scale).round() * scale)

    return change


def with_adapter(size: float, seed: int = 11) -> Callable[[dict[str, Any]], None]:
    """Matrices of the attention with a change of rank 2 merged in, ``size`` as large as they are."""

    def change(weights: dict[str, Any]) -> None:
        import torch

        generator = torch.Generator().manual_seed(seed)
        for name, weight in weights.items():
            if "q_proj" in name or "v_proj" in name:
                rows, columns = weight.shape
                low = torch.randn(rows, 2, generator=generator) @ torch.randn(
                    2, columns, generator=generator
                )
                weight.add_(size * low / low.norm() * weight.norm())

    return change
