"""The faster pieces of a copy, each beside the plain form whose place it takes, and when one takes it.

What a copy with its pieces reads is compared with transformers in float64 in test_architectures.py and
test_proof.py, for every architecture there: all copies there have theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers.activations import ACT2FN
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.gpt_neox.modeling_gpt_neox import apply_rotary_pos_emb as partly
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm, apply_rotary_pos_emb

from benchmarks.architectures.tiny import save_tiny, tiny_config
from monitor.replay.architectures import proof_prompts, residuals
from monitor.replay.engine import ReplayEngine
from monitor.replay.fused import fitting
from monitor.replay.fused.blocks import by_blocks
from monitor.replay.fused.gate import Gate, gates, known_activation
from monitor.replay.fused.heads import rotated
from monitor.replay.fused.layer import Layer, fits, product
from monitor.replay.fused.norm import Norm, norms
from monitor.replay.fused.product import Product
from monitor.replay.loaded import Fused
from monitor.replay.model import load_model
from monitor.replay.variable import layout_of
from monitor.settings import ReplaySettings
from monitor.values.features import Feature
from tests.replay.architectures import OTHERS, PACKED
from tests.replay.kernels import by_definition

EXACT = 1e-12
"""Relative distance allowed in float64. Stock norms compute in float32 even then."""
FLOAT32 = 1e-6


def drawn(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5), dtype=dtype)


def apart(found: torch.Tensor, plain: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(found - plain) / torch.linalg.vector_norm(plain))


# --- each piece beside its plain form ------------------------------------------------------------


@pytest.mark.parametrize("stock", [LlamaRMSNorm(24, eps=1e-5), Gemma2RMSNorm(24, eps=1e-6)])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4])
def test_a_norm_equals_the_plain_one(stock: nn.Module, size: float) -> None:
    [weight] = stock.parameters()
    with torch.no_grad():
        weight.copy_(drawn(24))
    x = size * drawn(1, 9, 24)
    plain = stock.double().requires_grad_(False)(x)
    assert min(apart(piece(x), plain) for piece in norms(stock)) < FLOAT32


@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_pytorch_tanh", "relu"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_gate_equals_the_plain_one(name: str, bias: bool) -> None:
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=48, mlp_bias=bias, hidden_act=name
    )
    stock = LlamaMLP(config).double().requires_grad_(False)
    x = drawn(1, 700, 32)
    piece = next(gates(stock))
    before = x.clone()
    assert apart(piece(x), stock(x)) < EXACT
    assert torch.equal(x, before)
    narrow = x.float()
    stock = stock.float()
    assert apart(next(gates(stock))(narrow), stock(narrow)) < FLOAT32


@pytest.mark.parametrize("width", [8, 4])
def test_a_rotation_equals_the_plain_one(width: int) -> None:
    """Of whole heads as in llama, and of their first numbers as in gpt_neox."""
    query, key = drawn(1, 7, 4, 8), drawn(1, 7, 2, 8)
    angle = drawn(1, 7, width // 2)
    cos, sin = (f(torch.cat([angle, angle], dim=-1)) for f in (torch.cos, torch.sin))
    apply: Any = apply_rotary_pos_emb if width == 8 else partly
    plain = apply(query, key, cos, sin, unsqueeze_dim=2)
    before = query.clone()
    for x, expected in zip((query, key), plain, strict=True):
        assert apart(rotated(x, cos.unsqueeze(2), sin.unsqueeze(2)), expected) < EXACT
    assert torch.equal(query, before)


@pytest.mark.parametrize("window", [None, 3, 64, 70, 150])
@pytest.mark.parametrize(("heads", "groups"), [(6, 2), (4, 4), (3, 1)])
def test_attention_by_blocks_equals_its_definition(
    window: int | None, heads: int, groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One token, just a block, several blocks, and behind kept prefixes; all groups at once, and one by one."""
    segments = [(1, ()), (64, ()), (65, (1,)), (200, ()), (3, (1, 2)), (130, (2,))]
    layout = layout_of(segments, {1: 5, 2: 90}, torch.device("cpu"))
    keys = int(layout.key_starts[-1])
    query, key, value = drawn(463, heads, 8), drawn(keys, groups, 8) + 1, drawn(keys, groups, 5)
    plain = by_definition(query, key, value, layout, scaling=0.3, window=window)
    for scores in (2**18, 1):
        monkeypatch.setattr("monitor.replay.fused.blocks.SCORES", scores)
        assert (
            apart(by_blocks(query, key, value, layout, scaling=0.3, window=window), plain) < EXACT
        )
    narrow = (one.bfloat16() for one in (query, key, value))
    coarse = by_blocks(*narrow, layout, scaling=None, window=window)
    assert coarse.dtype is torch.bfloat16
    wide = by_definition(query, key, value, layout, scaling=None, window=window)
    assert apart(coarse.double(), wide) < 0.01


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tokens", [1, 3, 200])
def test_a_product_equals_the_plain_one(bias: bool, tokens: int) -> None:
    stock = nn.Linear(16, 24, bias=bias).requires_grad_(False)
    x = drawn(1, 2 * tokens, 16, dtype=torch.float32)[:, ::2]
    assert apart(Product(stock)(x), stock(x)) < FLOAT32
    assert apart(Product(stock.double())(x.double()), stock(x.double())) < EXACT


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [2, 300, 2_100])
def test_packed_weights_make_the_same_product(dtype: torch.dtype, tokens: int) -> None:
    linear = nn.Linear(64, 96, dtype=dtype).requires_grad_(False)
    plain, layer = Layer(linear), Layer(linear)
    assert layer.packed(linear.weight.nbytes - 1) == 0
    assert layer.weight is linear.weight
    assert layer.packed(linear.weight.nbytes) == linear.weight.nbytes
    assert layer.weight is not linear.weight
    x = drawn(1, tokens, 64).to(dtype)
    assert torch.equal(product(x, layer, "swish"), product(x, plain, "swish"))


def test_a_weight_that_is_written_to_is_multiplied_as_it_is_now() -> None:
    linear = nn.Linear(16, 24).requires_grad_(False)
    layer = Layer(linear)
    assert layer.packed(linear.weight.nbytes)
    x = drawn(1, 9, 16, dtype=torch.float32)
    linear.weight.mul_(2.0)
    assert apart(product(x, layer), linear(x)) < FLOAT32
    linear.weight = nn.Parameter(-linear.weight, requires_grad=False)
    assert apart(product(x, layer), linear(x)) < FLOAT32


def test_an_activation_is_known_by_what_it_computes() -> None:
    found = {name: known_activation(ACT2FN[name]) for name in ("silu", "gelu", "relu", "relu2")}
    assert found == {"silu": "swish", "gelu": "gelu", "relu": "relu", "relu2": None}


def test_a_layer_of_another_kind_is_left_alone() -> None:
    class Adapted(nn.Linear):
        pass

    assert fits(nn.Linear(4, 4))
    assert not fits(Adapted(4, 4))
    hooked = nn.Linear(4, 4)
    hooked.register_forward_hook(lambda *_: None)
    assert not fits(hooked)


# --- in a copy -----------------------------------------------------------------------------------

LISTED = {
    "llama": "gate heads norm",
    "qwen2": "gate heads norm",
    "qwen3": "gate heads norm",
    "gemma2": "gate heads norm",
    "gemma3": "gate heads norm",
    "mistral": "gate heads norm",
    "mixtral": "heads norm",
    "qwen3_moe": "heads norm",
    "phi3": "norm product",
    "gpt_neox": "product",
    "gpt2": "",
}


def settings(folder: Path, **changes: Any) -> ReplaySettings:
    return ReplaySettings(
        **({"model": folder, "device": "cpu", "dtype": "float32", "max_tokens": 256} | changes)
    )


@pytest.mark.parametrize("name", LISTED)
def test_which_pieces_an_architecture_has(name: str, tiny_model: Callable[[Any], Path]) -> None:
    kind, options, *_ = (PACKED | OTHERS)[name]
    folder = tiny_model(getattr(transformers, kind)(**options))
    assert load_model(settings(folder), 2).fused.kinds == LISTED[name]


def test_what_a_shape_does_not_tell_is_found_out(tmp_path: Path) -> None:
    """falcon_h1 may multiply within its feed-forward layers, and its keys."""
    for name, changes, pieces in (
        ("plain", {}, "gate heads norm product"),
        ("times", {"mlp_multipliers": [1.5, 0.5]}, "heads norm product"),
        ("keys", {"key_multiplier": 0.5}, "gate norm product"),
    ):
        save_tiny(tiny_config("falcon_h1", **changes), tmp_path / name)
        assert load_model(settings(tmp_path / name), 2).fused.kinds == pieces


def test_a_parent_finds_what_it_looks_for_in_a_module(tmp_path: Path) -> None:
    """mamba2 asks its norms for the dtype of their weights, and hands some a gate."""
    save_tiny(tiny_config("mamba2"), tmp_path)
    assert load_model(settings(tmp_path), 2).fused.kinds == "norm product"


def test_the_pieces_stand_there_while_a_replay_runs_and_at_no_other_time(
    llama_folder: Path,
) -> None:
    loaded = load_model(settings(llama_folder), 2)
    before = list(loaded.model.modules())
    seen: list[set[str]] = []
    handle = loaded.blocks[1].register_forward_hook(
        lambda block, *_: seen.append({type(one).__name__ for one in block.children()})
    )
    read = residuals(loaded, proof_prompts(loaded, 0), 64)
    handle.remove()
    assert seen
    assert all(names == {"Heads", "Gate", "Norm"} for names in seen)
    after = list(loaded.model.modules())
    assert [id(one) for one in after] == [id(one) for one in before]
    assert sum(place.other.width for place in loaded.fused.places if isinstance(place.other, Norm))

    def breaks(*_: Any) -> None:
        raise RuntimeError("no memory")

    broken = loaded.blocks[1].register_forward_hook(breaks)
    with pytest.raises(RuntimeError, match="no memory"):
        residuals(loaded, proof_prompts(loaded, 0), 64)
    broken.remove()
    assert [id(one) for one in loaded.model.modules()] == [id(one) for one in before]
    again = residuals(loaded, proof_prompts(loaded, 0), 64)
    assert all(torch.equal(x, y) for x, y in zip(read, again, strict=True))


def test_the_weights_are_shared_and_packed_within_bounds(llama_folder: Path) -> None:
    stock = replace(load_model(settings(llama_folder), 2), fused=Fused())

    def held(room: int) -> list[bool]:
        loaded = fitting.fused(stock, room)
        own = {weight.data_ptr() for weight in loaded.model.parameters()}
        pieces: list[Any] = [place.other for place in loaded.fused.places]
        assert pieces
        assert {weight.data_ptr() for one in pieces for weight in one.parameters()} <= own
        layers = [layer for one in pieces for layer in one.layers]
        assert sum(one.linear.weight.nbytes for one in layers if one.weight.is_mkldnn) <= room
        return [one.weight.is_mkldnn for one in layers]

    assert all(held(1 << 20))
    assert set(held(20_000)) == {True, False}
    assert not any(held(0))


def test_a_piece_that_computes_something_else_is_not_taken_and_the_lineage_says_so(
    llama_folder: Path, feature: Callable[..., Feature], monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = ReplayEngine(
        load_model(settings(llama_folder), 2), [feature(1)], settings(llama_folder)
    )
    assert '"fused":"gate heads norm"' in usual.lineage("pack").rules
    right = Gate.made
    monkeypatch.setattr(Gate, "made", lambda self, x: 1.01 * right(self, x))
    loaded = load_model(settings(llama_folder), 2)
    assert loaded.fused.kinds == "heads norm product"
    engine = ReplayEngine(loaded, [feature(1)], settings(llama_folder))
    assert '"fused":"heads norm product"' in engine.lineage("pack").rules


def test_pieces_that_move_the_readings_together_are_all_left_out(
    llama_folder: Path, feature: Callable[..., Feature], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module that is called otherwise in a pass than when it was asked is found out by the whole."""
    right = Gate.made
    monkeypatch.setattr(fitting, "_same", lambda *_: True)
    monkeypatch.setattr(Gate, "made", lambda self, x: 1.01 * right(self, x))
    loaded = load_model(settings(llama_folder), 2)
    assert loaded.fused.places == ()
    engine = ReplayEngine(loaded, [feature(1)], settings(llama_folder))
    assert "fused" not in engine.lineage("pack").rules


@pytest.mark.parametrize(
    ("error", "pieces"), [(RuntimeError("no such kernel"), "heads norm"), (KeyError("kernel"), "")]
)
def test_a_piece_that_fails_leaves_its_module_there(
    llama_folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, pieces: str
) -> None:
    """One that says it does not fit is left out; what nobody expected leaves all out. The copy is there."""

    def fails(*_: Any) -> None:
        raise error

    monkeypatch.setattr(Gate, "made", fails)
    monkeypatch.setattr(Product, "made", fails)
    loaded = load_model(settings(llama_folder), 2)
    assert loaded.packed
    assert loaded.fused.kinds == pieces


def test_in_bfloat16_the_pieces_are_no_farther_from_float32(llama_folder: Path) -> None:
    exact = load_model(settings(llama_folder), 2)
    coarse = load_model(settings(llama_folder, dtype="bfloat16"), 2)
    assert coarse.fused.kinds == "gate heads norm"
    prompts = proof_prompts(exact, 0)
    reference = torch.cat(residuals(exact, prompts, 256))
    with_pieces = torch.cat(residuals(coarse, prompts, 256))
    plain = torch.cat(residuals(replace(coarse, fused=Fused()), prompts, 256))
    assert apart(with_pieces, reference) < 1.5 * apart(plain, reference)


def test_a_module_that_was_wrapped_or_hooked_keeps_its_place(llama_folder: Path) -> None:
    """A tuned or steered copy is read as it is, and the wrapping is there afterwards."""
    loaded = load_model(settings(llama_folder), 2)
    prompts = proof_prompts(loaded, 0)
    before = torch.cat(residuals(loaded, prompts, 256))
    block: Any = loaded.blocks[0]
    plain = block.mlp.down_proj

    class Doubled(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2.0 * plain(x)

    block.mlp.down_proj = wrapped = Doubled()
    doubled = torch.cat(residuals(loaded, prompts, 256))
    assert block.mlp.down_proj is wrapped
    block.mlp.down_proj = plain
    handle = plain.register_forward_hook(lambda *given: 2.0 * given[2])
    torch.testing.assert_close(torch.cat(residuals(loaded, prompts, 256)), doubled)
    handle.remove()
    torch.testing.assert_close(torch.cat(residuals(loaded, prompts, 256)), before)
    assert apart(doubled, before) > 0.01
