"""Proof at load: the copy runs before anyone relies on it, and is packed only if packing changes nothing.

**Tried.** Every copy reads one short prompt. What cannot be run is refused here, by name, and not at
the first prompt of a topic.

**Proven.** An architecture that is not on the tested list reads a handful of random prompts one by one with its stock
attention, then packed, with shared prefixes, and where that reads otherwise, in batches. Their lengths cross its sliding
window and its chunk, where it has them and a replay is long enough to notice. Where the residual streams behind the deepest
block agree token by token within `TOLERANCE`, its prompts are run so; else one at a time.

Legend: t = tokens of a prompt, d = model width.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from transformers import PreTrainedConfig

from monitor.errors import ModelError
from monitor.logs import get_logger
from monitor.replay.answer import answered
from monitor.replay.attention import PACKED, PROVEN_ARCHITECTURES
from monitor.replay.checkpoint import quiet
from monitor.replay.forward import Forward, RowReader
from monitor.replay.loaded import LoadedModel, Packing
from monitor.replay.plan import PADDING, plan
from monitor.replay.recurrent import recurrent_places

TOLERANCE: Final = {torch.float32: 2e-4, torch.float64: 1e-9, torch.bfloat16: 3e-2}
"""Largest difference of a token's residual stream, relative to its length, that counts as equal."""
BORDERS: Final = (
    "sliding_window",
    "attention_chunk_size",
    "sliding_window_size",
    "window_size",
    "attention_window",
    "local_attention",
    "floor_scale",
    "index_topk",
    "chunk_size",
    "mamba_chunk_size",
)
"""Fields of configurations that hold a number of tokens from which on attention is another."""
SHARED: Final = 16
"""Tokens of the prefix that the short prompts share."""
BEYOND: Final = 9
"""Tokens by which a prompt exceeds a border."""
SEED: Final = 20
log = get_logger(__name__)


def excluded(config: PreTrainedConfig, limit: int) -> str:
    """Why short prompts could not find out that several are read otherwise than one; empty if they could.

    Rotary frequencies that depend on the longest prompt of a pass (dynamic, longrope) allow several
    only while every prompt stays within the original positions; ``limit`` is the longest replay.
    """
    if getattr(config, "use_bidirectional_attention", None) in (True, "all"):
        return "its attention looks ahead"
    rope = getattr(config, "rope_parameters", None) or {}
    for part in (rope, *(v for v in rope.values() if isinstance(v, dict))):
        if part.get("rope_type") in ("dynamic", "longrope"):
            original = (
                part.get("original_max_position_embeddings") or config.max_position_embeddings
            )
            if limit > original:
                return f"its positions are rescaled beyond {original} tokens"
    return ""


def unpackable(config: PreTrainedConfig) -> str:
    """Why packing is not even tried; empty if it is.

    Sparse attention picks the keys that a token sees, which packed attention would show it all.
    """
    sparse = any(name.startswith("index_topk") for name in vars(config))
    return "its attention is sparse" if sparse else ""


def is_tested(config: PreTrainedConfig) -> bool:
    """Whether the project's tests compare this architecture's packed readings with transformers."""
    return config.model_type in PROVEN_ARCHITECTURES


def tried(loaded: LoadedModel, missing: Sequence[str]) -> None:
    """Run one short prompt, so that nothing loads and fails later; a model in full answers it, too.

    ``missing`` names weights of ``loaded.model`` that the files do not hold: a final norm may lack,
    since a replay ends before it. Raises `ModelError` for a copy that cannot be run, or lacks
    a weight that is used.
    """
    used: list[str] = []
    hooks = [
        loaded.model.get_submodule(name.rpartition(".")[0]).register_forward_pre_hook(
            lambda _module, _inputs, name=name: used.append(name)
        )
        for name in missing
    ]
    try:
        with quiet():
            [ids] = _random_prompts(loaded, (BEYOND,))
            residuals(loaded, [ids], BEYOND)
            if loaded.answerer is not None:
                answered(loaded, ids, 1)
    except ModelError:
        raise
    except Exception as error:
        # Whatever its parts raise: this architecture, in this precision, cannot be run here.
        raise ModelError(
            f"{loaded.model_id} ({loaded.config.model_type}) was loaded but cannot be run: "
            f"{type(error).__name__}: {error}",
            hint="give a copy of the model in bfloat16 or float32, without quantisation; if it is one, "
            "transformers cannot run this architecture here",
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    if used:
        raise ModelError(
            f"{loaded.model_id}: {len(missing)} weights are missing, first {used[0]}",
            hint="fetch the model again",
        )


@dataclass(frozen=True, slots=True)
class _Proof:
    """Random prompts as the copy reads them alone, against which its other ways are held."""

    prompts: Sequence[tuple[int, ...]]
    alone: Sequence[torch.Tensor]
    batch_tokens: int

    def outcome(self, loaded: LoadedModel) -> tuple[float | None, str]:
        """Largest difference of what ``loaded`` reads, and why that is not equal; empty if it is."""
        try:
            found = residuals(loaded, self.prompts, self.batch_tokens)
        except Exception as error:
            # Read alone they ran: whatever another way raises says that it does not fit.
            return None, f"it fails ({type(error).__name__})"
        difference = largest_difference(self.alone, found)
        if difference <= TOLERANCE[loaded.dtype]:
            return difference, ""
        return difference, f"its readings differ by {difference:.1g}"


def proven(loaded: LoadedModel, *, limit: int, batch_tokens: int) -> LoadedModel:
    """``loaded``, to be run in the fastest way that reads prompts as it reads them alone. Blocks for seconds.

    ``limit`` is the longest replay. The copy comes with its stock attention, and keeps it unless
    packing is proven.
    """
    start = time.perf_counter()
    try:
        found = _proven(loaded, proof_prompts(loaded, limit), batch_tokens)
    except ModelError as error:
        # It ran in `tried`: the prompts that cross its borders are too long for the memory.
        found = replace(loaded, packing=Packing(ground="disproven", reason=str(error)))
    packing = replace(found.packing, seconds=time.perf_counter() - start)
    log.info(
        "model.packing",
        architecture=loaded.config.model_type,
        ground=packing.ground,
        reason=packing.reason or None,
        difference=packing.difference,
        seconds=round(packing.seconds, 2),
    )
    return replace(found, packing=packing)


def _proven(
    loaded: LoadedModel, prompts: Sequence[tuple[int, ...]], batch_tokens: int
) -> LoadedModel:
    whole: Any = loaded.answerer or loaded.model
    stock = whole.config._attn_implementation
    proof = _Proof(prompts, residuals(loaded, prompts, batch_tokens), batch_tokens)
    reason = unpackable(loaded.config)
    if not reason:
        with quiet():
            whole.set_attn_implementation(PACKED)
        if loaded.model.config._attn_implementation != PACKED:
            reason = "its attention cannot be exchanged"
        else:
            packed = replace(
                loaded,
                packing=Packing(ground="proven"),
                attention=f"packed-{stock}",
                recurrent=recurrent_places(loaded.blocks),
            )
            difference, unequal = proof.outcome(packed)
            if not unequal:
                return replace(packed, packing=Packing(ground="proven", difference=difference))
            reason = f"packed, {unequal}"
        with quiet():
            whole.set_attn_implementation(stock)
    # Filled up by far more than in use, else not at all.
    for proof_padding, padding in ((1.0, PADDING), (0.0, 0.0)):
        batched = Packing(ground="batched", padding=proof_padding)
        difference, unequal = proof.outcome(replace(loaded, packing=batched))
        if not unequal:
            found = replace(batched, reason=reason, difference=difference, padding=padding)
            return replace(loaded, packing=found)
    reason = f"{reason}; in batches, {unequal}"
    return replace(
        loaded, packing=Packing(ground="disproven", reason=reason, difference=difference)
    )


def proof_prompts(loaded: LoadedModel, limit: int) -> list[tuple[int, ...]]:
    """Random prompts: short ones, some with a prefix in common or of one length, and two that cross the farthest border."""
    longest = _crossing(loaded.config, limit)
    lengths = (3, SHARED + 2 * BEYOND, 5, SHARED + BEYOND, BEYOND, BEYOND)
    short = _random_prompts(loaded, lengths)
    short[3] = (*short[1][:SHARED], *short[3][SHARED:])
    if not longest:
        return short
    first, second = _random_prompts(loaded, (longest, longest))
    common = longest - 2 * BEYOND
    return [*short, first, (*first[:common], *second[common:])]


def _crossing(config: PreTrainedConfig, limit: int) -> int:
    """Tokens of a prompt that crosses every border of ``config`` below ``limit``; 0 if there is none."""
    borders = [
        value
        for name in BORDERS
        if isinstance(value := getattr(config, name, None), int) and 0 < value < limit
    ]
    return min(limit, max(borders) + 3 * BEYOND) if borders else 0


def _random_prompts(loaded: LoadedModel, lengths: Sequence[int]) -> list[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(SEED)
    vocabulary = loaded.config.vocab_size
    return [
        tuple(torch.randint(vocabulary, (length,), generator=generator).tolist())
        for length in lengths
    ]


def residuals(
    loaded: LoadedModel, prompts: Sequence[tuple[int, ...]], batch_tokens: int
) -> list[torch.Tensor]:
    """The residual stream [t, d] behind the deepest block of each prompt, by the engine's own forward pass.

    Raises `ModelError` when one does not fit into memory, or the blocks give no such stream.
    """
    width = loaded.config.hidden_size
    work = plan(
        prompts,
        batch_tokens=batch_tokens,
        min_shared_tokens=SHARED // 2 if loaded.packed else None,
        way=loaded.packing.way,
        padding=loaded.packing.padding,
    )
    parts: dict[int, torch.Tensor] = {}

    def start_row(members: tuple[int, ...], total: int) -> RowReader:
        sizes = [len(work.segments[index].ids) for index in members]

        def read(_site: int, residual: torch.Tensor) -> None:
            if residual.shape != (total, width):
                raise ModelError(
                    f"{loaded.model_id} ({loaded.config.model_type}): its blocks do not give one "
                    f"residual stream of {width} numbers for each of {total} tokens, but "
                    f"{tuple(residual.shape)}",
                    hint="models with several residual streams cannot be replayed",
                )
            rows = torch.split(residual.to(torch.float32).cpu(), sizes)
            parts.update(zip(members, rows, strict=True))

        return read

    forward = Forward(loaded, work, (len(loaded.blocks) - 1,), start_row, lambda _members: None)
    forward.run()
    if forward.failed:
        raise ModelError(
            f"{loaded.model_id}: prompts of {max(map(len, prompts))} tokens do not fit into memory",
            hint="give the copy a larger device",
        )
    if parts.keys() != set(range(len(work.segments))):
        raise ModelError(
            f"{loaded.model_id} ({loaded.config.model_type}): it skips block {len(loaded.blocks) - 1}",
            hint="give a pack that reads at another site",
        )
    return [torch.cat([parts[index] for index in path]) for path in work.paths]


def largest_difference(alone: Sequence[torch.Tensor], packed: Sequence[torch.Tensor]) -> float:
    """The largest ``|x - y| / |x|`` over all tokens, x and y being residual streams; NaN if one is not finite."""
    found = [
        (torch.linalg.vector_norm(x - y, dim=1) / torch.linalg.vector_norm(x, dim=1)).max()
        for x, y in zip(alone, packed, strict=True)
    ]
    return float(torch.stack(found).max())
