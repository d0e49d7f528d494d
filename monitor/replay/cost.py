"""What a replay costs: the floating-point operations of a plan, and how many of them a device makes in a second.

Counted by formula: two operations for each weight that a token passes, and two for each number of a head's
query, key and value and each pair of a query and a key that it sees. Embeddings and norms count for nothing;
of a layer of experts only those count that a token is sent to. Windows are not taken off, so attention is an upper bound.

A device's limit is what it makes of matrix products alone. How much of it replays reach was measured: `SHARES`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import nn

from monitor.replay.fused.layer import Layer, product
from monitor.replay.plan import Plan

SHARES: Final = {
    ("cpu", "float32"): (0.58, 0.85),
    ("cpu", "bfloat16"): (0.72, 0.80),
    ("cuda", "float32"): (0.11, 0.23),
    ("cuda", "bfloat16"): (0.45, 0.65),
}
"""Least and largest share of the limit that the engine reached in benchmarks/results, by device and dtype.

One dense model for each: SmolLM2-135M, and in bfloat16 on a GPU one of 8B. None on a CPU with matrix units.
"""
EXPERTS: Final = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
CHOSEN: Final = ("num_experts_per_tok", "moe_topk", "moe_top_k", "moe_k", "top_k_experts")
"""Fields of configurations: how many experts a layer has, and how many of them a token is sent to."""
ROW: Final = {"cpu": 256, "cuda": 8_192}
WIDEST: Final = 4_096
SECONDS: Final = 0.5
"""Tokens and largest width of the products that are timed, and after how long no other one is begun."""
REPEATS: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Flops:
    """Floating-point operations of one run of a plan."""

    linear: float
    attention: float

    @property
    def total(self) -> float:
        return self.linear + self.attention


def weights_passed(blocks: nn.ModuleList, config: Any) -> float:
    """Weights of ``blocks`` that one token is multiplied with; ``config`` is that of the model (its text part)."""
    first = config.per_layer_config[0]
    experts, chosen = _first_of(first, EXPERTS), _first_of(first, CHOSEN)
    share = chosen / experts if experts and chosen else 1.0
    passed = 0.0
    for name, weight in blocks.named_parameters():
        if weight.ndim < 2 or name.endswith("bias"):
            continue
        one_of_many = "experts" in name.split(".") or (
            weight.ndim == 3 and weight.shape[0] == experts
        )
        passed += weight.numel() * (share if one_of_many else 1.0)
    return passed


def flops(blocks: nn.ModuleList, config: Any, work: Plan) -> Flops:
    """Of running ``work`` through ``blocks``."""
    pairs = 0
    for segment in work.segments:
        own = len(segment.ids)
        pairs += own * segment.first + own * (own + 1) // 2
    numbers = sum(_head_numbers(one) for one in list(config.per_layer_config)[: len(blocks)])
    return Flops(
        linear=2.0 * weights_passed(blocks, config) * work.tokens, attention=2.0 * numbers * pairs
    )


def product_shapes(blocks: nn.ModuleList) -> Counter[tuple[int, int]]:
    """Inputs and outputs of the linear layers of ``blocks``, with how many layers are so wide."""
    return Counter(
        (module.in_features, module.out_features)
        for module in blocks.modules()
        if isinstance(module, nn.Linear)
    )


def product_seconds(
    shape: tuple[int, int],
    tokens: int,
    device: torch.device,
    dtype: torch.dtype,
    clock: Callable[[], float],
) -> float:
    """Of one matrix product of a row of ``tokens`` with a layer of ``shape``: the mean of a few behind one more."""
    drawn: dict[str, Any] = {"device": device, "dtype": dtype}
    with torch.inference_mode():
        layer = Layer(nn.Linear(*shape, bias=False, **drawn))
        layer.packed(layer.linear.weight.nbytes)
        row = torch.randn(1, tokens, shape[0], **drawn)
        product(row, layer)
        start = clock()
        for _ in range(REPEATS):
            product(row, layer)
        return (clock() - start) / REPEATS


def product_rate(blocks: nn.ModuleList, device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of the matrix products of ``blocks`` on ``device``, timed for about a second at most.

    The commonest widths first, very wide ones cut. Raises `ValueError` for blocks without a linear layer or experts.
    """
    shapes: Counter[tuple[int, int]] = Counter()
    for (inputs, outputs), count in (product_shapes(blocks) or _other_shapes(blocks)).items():
        shapes[min(inputs, WIDEST), min(outputs, WIDEST)] += count * inputs * outputs
    if not shapes:
        raise ValueError("these blocks have no matrix products")
    tokens, clock = ROW["cuda" if device.type == "cuda" else "cpu"], partial(waited, device)
    begun, made, seconds = clock(), 0.0, 0.0
    for shape, weights in shapes.most_common():
        taken = product_seconds(shape, tokens, device, dtype, clock)
        made += weights
        seconds += weights * taken / (2.0 * tokens * shape[0] * shape[1])
        if clock() - begun > SECONDS:
            break
    return made / seconds


def waited(device: torch.device) -> float:
    """The time in seconds, once the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _other_shapes(blocks: nn.ModuleList) -> Counter[tuple[int, int]]:
    """Of layers that are no `nn.Linear`, as GPT-2's."""
    return Counter(
        (int(weight.shape[0]), int(weight.shape[1]))
        for weight in blocks.parameters()
        if weight.ndim == 2
    )


def _head_numbers(config: Any) -> int:
    """Numbers of the keys and values that one block's query heads see of a token."""
    heads = _first_of(config, ("num_attention_heads",))
    width = _first_of(config, ("qk_head_dim", "head_dim")) or config.hidden_size // max(heads, 1)
    return heads * (width + (_first_of(config, ("v_head_dim",)) or width))


def _first_of(config: Any, names: Iterable[str]) -> int:
    """The first of the fields ``names`` that ``config`` has, of several blocks' the first; 0 if it has none."""
    for name in names:
        found = getattr(config, name, None)
        if isinstance(found, Sequence) and found:
            found = found[0]
        if isinstance(found, int) and found > 0:
            return found
    return 0
