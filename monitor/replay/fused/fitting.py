"""Which pieces of a copy have a faster equal: found by their shape, and taken only where they compute the same.

Each candidate is asked beside the module whose place it would take, then all of them together through
the whole copy. They stand in their places while a replay's forward pass runs (`Fused.at_work`), and at no
other time: whoever tunes, steers or asks the copy finds it as transformers made it.

Legend: t = tokens, d = width of what a module is given.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import Any, Final
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import AttentionInterface

from monitor.logs import get_logger
from monitor.replay.architectures import TOLERANCE, proof_prompts, residuals
from monitor.replay.attention import packed_attention
from monitor.replay.checkpoint import quiet
from monitor.replay.fused.gate import Gate, gates
from monitor.replay.fused.heads import Heads, Observed, attends, heads
from monitor.replay.fused.layer import fits
from monitor.replay.fused.norm import Norm, norms
from monitor.replay.fused.product import Product
from monitor.replay.loaded import Fused, LoadedModel
from monitor.replay.swapped import Place

OBSERVED: Final = "monitor_observed"
"""Under this name transformers knows the attention that `_observed` looks through."""
SIZES: Final = (1e-3, 1.0, 30.0)
"""Of the numbers in what a module is asked: far below, at and far above a normed stream's."""
TOKENS: Final = 5
PACKED_BYTES: Final = 256 << 20
"""Of weights that are held once more in the order in which they are multiplied."""
SEED: Final = 33
log = get_logger(__name__)


def fused(loaded: LoadedModel, packed_bytes: int = PACKED_BYTES) -> LoadedModel:
    """``loaded`` with every piece that was found and holds. Blocks for about as long as two short rows take.

    So many bytes of weights, at most, are held packed besides.

    Only on a CPU: on a GPU they were not measured.
    """
    if loaded.device.type != "cpu":
        return loaded
    start = time.perf_counter()
    try:
        candidate = replace(loaded, fused=Fused(places=tuple(_places(loaded))))
        prompts = proof_prompts(loaded, 0)
        most = sum(map(len, prompts))
        plain = residuals(loaded, prompts, most)
        apart = _typical_difference(plain, residuals(candidate, prompts, most))
    except Exception as error:
        # Whatever a piece raises in an architecture that nobody tried: the module itself ran in `tried`.
        log.warning("replay.fused", holds=False, error=f"{type(error).__name__}: {error}")
        return loaded
    holds = apart <= TOLERANCE[loaded.dtype]
    packed = _packed(candidate.fused.places, packed_bytes) if holds else 0
    (log.info if holds else log.warning)(
        "replay.fused",
        holds=holds,
        pieces=candidate.fused.kinds,
        distance=apart,
        packed_mib=packed >> 20,
        seconds=round(time.perf_counter() - start, 2),
    )
    return candidate if holds else loaded


def _packed(places: Sequence[Place], room: int) -> int:
    """Pack the layers of the pieces, first block first, while there is ``room``; how many bytes they take."""
    taken = 0
    for layer in (layer for place in places for layer in getattr(place.other, "layers", ())):
        taken += layer.packed(room - taken)
    return taken


def _places(loaded: LoadedModel) -> Iterator[Place]:
    """The outermost modules of the blocks that have a piece, each with the first that computes what it does."""
    modules = list(loaded.blocks.modules())
    with torch.inference_mode():
        pieces: dict[nn.Module, nn.Module] = {}
        for stock in modules:
            equal = (one for one in _candidates(stock) if _same_when_asked(stock, one, loaded))
            if (piece := next(equal, None)) is not None:
                pieces[stock] = piece
        pieces |= _heads(loaded, pieces)
    within: set[nn.Module] = set()
    for parent in modules:
        for name, stock in parent.named_children():
            if parent in within or stock in pieces:
                within.add(stock)
            if stock in pieces and parent not in within:
                yield Place(parent, name, stock, pieces[stock])


def _candidates(stock: nn.Module) -> Iterator[Norm | Gate | Product]:
    yield from norms(stock)
    yield from gates(stock)
    if isinstance(stock, nn.Linear) and fits(stock):
        yield Product(stock)


def _same_when_asked(stock: nn.Module, piece: Norm | Gate | Product, loaded: LoadedModel) -> bool:
    """Whether both make the same of random numbers of several sizes."""
    drawn = torch.Generator().manual_seed(SEED)
    sizes = torch.tensor(SIZES).repeat_interleave(TOKENS)[:, None]
    x = torch.randn(1, len(sizes), piece.width, generator=drawn) * sizes
    x = x.to(loaded.dtype)
    try:
        return _same(stock(x.clone()), piece(x), TOLERANCE[loaded.dtype])
    except (TypeError, RuntimeError, ValueError, AttributeError):
        return False  # it takes something else than one tensor, or of another shape


def _same(expected: torch.Tensor, found: torch.Tensor, tolerance: float) -> bool:
    """Whether no token's numbers [..., d] are farther apart than ``tolerance`` of their length."""
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return False
    length = torch.linalg.vector_norm(expected.double(), dim=-1)
    apart = torch.linalg.vector_norm(expected.double() - found.double(), dim=-1)
    return bool((apart <= tolerance * length).all())


def _typical_difference(plain: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> float:
    """Root mean square over tokens of ``|x - y| / |x|``; NaN if one is not finite.

    Not the largest: where both are rounded to bfloat16 block by block, single tokens drift apart that each
    is as near to float32 as the other.
    """
    x, y = torch.cat(list(plain)), torch.cat(list(other))
    apart = torch.linalg.vector_norm(x - y, dim=1) / torch.linalg.vector_norm(x, dim=1)
    return float(apart.square().mean().sqrt())


# --- attention -----------------------------------------------------------------------------------

_SEEN: WeakKeyDictionary[nn.Module, Observed] = WeakKeyDictionary()


def observed_attention(
    module: nn.Module, query: torch.Tensor, *given: Any, **options: Any
) -> tuple[torch.Tensor, None]:
    """`packed_attention`, which writes down how ``module`` called it."""
    _SEEN[module] = Observed(width=query.shape[-1], options=options)
    return packed_attention(module, query, *given, **options)


AttentionInterface.register(OBSERVED, observed_attention)


def _heads(loaded: LoadedModel, pieces: Mapping[nn.Module, nn.Module]) -> dict[nn.Module, Heads]:
    """Of the attention modules that have a piece: it computes what the module does in a packed row."""
    if not loaded.packed:
        return {}
    found: dict[nn.Module, Heads] = {}

    def beside(stock: nn.Module, args: tuple[Any, ...], given: dict[str, Any], output: Any) -> None:
        seen = _SEEN.pop(stock, None)
        if seen is None or not isinstance(output, tuple) or len(output) != 2:
            return
        own = {name: value for name, value in seen.options.items() if name not in given}
        piece = heads(stock, Observed(width=seen.width, options=own), pieces)
        with suppress(TypeError, RuntimeError, ValueError):
            result, _ = piece(*args, **given)
            if _same(output[0], result, TOLERANCE[loaded.dtype]):
                found[stock] = piece

    attending = [module for module in loaded.blocks.modules() if attends(module)]
    prompts = proof_prompts(loaded, 0)
    with _observed(loaded), ExitStack() as hooks:
        for module in attending:
            handle = module.register_forward_hook(beside, with_kwargs=True)
            hooks.callback(handle.remove)
        residuals(loaded, prompts, sum(map(len, prompts)))
    return found


@contextmanager
def _observed(loaded: LoadedModel) -> Iterator[None]:
    """Within the context the copy calls `observed_attention`."""
    whole: Any = loaded.answerer or loaded.model
    usual = loaded.model.config._attn_implementation
    try:
        with quiet():
            whole.set_attn_implementation(OBSERVED)
        yield
    finally:
        with quiet():
            whole.set_attn_implementation(usual)
