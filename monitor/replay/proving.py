"""Whether another form of a copy's forward pass reads what its plain form reads, asked on short prompts.

Legend: t = tokens, d = model width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from monitor.replay.attention import KeysValues, PackedRow, PackedSegment, standing
from monitor.replay.layers import blocks
from monitor.replay.taps import tapped
from monitor.replay.variable import VariableKernel, sent

PREFIX = 11
FIRST_ROW, CONTINUED = (1, 19, 7), (1, 23, 5)
"""Tokens of prompts beside a kept prefix, and of prompts that continue it."""
ALLOWED = 4.0
"""How many times as far from the open softmax as the plain form may another form be."""
LEAST_ALLOWED = {
    torch.float32: 1e-5,
    torch.float64: 1e-12,
    torch.bfloat16: 0.02,
    torch.float16: 0.02,
}
"""Relative distance that rounding alone makes, within a factor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """Largest relative distances of a token's residual from the same with an open softmax."""

    plain: float
    other: float
    dtype: torch.dtype

    @property
    def holds(self) -> bool:
        """False as well where something is not finite."""
        return self.other <= max(ALLOWED * self.plain, LEAST_ALLOWED[self.dtype])


def kernel_proof(model: PreTrainedModel, kernel: VariableKernel) -> Proof:
    """``kernel`` against attention segment by segment, through the whole of ``model`` (packed)."""
    openly = short_residuals(model, exact_softmax=True)
    return Proof(
        plain=distance(short_residuals(model), openly),
        other=distance(short_residuals(model, kernel=kernel), openly),
        dtype=next(model.parameters()).dtype,
    )


def short_residuals(
    model: PreTrainedModel, *, kernel: VariableKernel | None = None, exact_softmax: bool = False
) -> torch.Tensor:
    """Residuals behind the last block [t, d], float32, of a few made-up prompts in two packed rows."""
    device = next(model.parameters()).device
    drawn = torch.Generator().manual_seed(17)
    kept: dict[int, dict[int, KeysValues]] = {}
    found: list[torch.Tensor] = []
    stack = blocks(model)
    last = len(stack) - 1
    for first, lengths, chain in ((0, (PREFIX, *FIRST_ROW), ()), (PREFIX, CONTINUED, (0,))):
        ends = torch.tensor(lengths).cumsum(0).tolist()
        row = PackedRow(
            segments=tuple(
                PackedSegment(
                    start=end - length,
                    stop=end,
                    first=first,
                    chain=chain,
                    keep=0 if not chain and end == PREFIX else None,
                )
                for end, length in zip(ends, lengths, strict=True)
            ),
            kept=kept,
            exact_softmax=exact_softmax,
            kernel=kernel,
        )
        ids = torch.randint(model.config.vocab_size, (1, ends[-1]), generator=drawn)
        positions = torch.cat([torch.arange(first, first + length) for length in lengths])
        with (
            torch.inference_mode(),
            standing(row),
            tapped(stack, {last: lambda residual: found.append(residual[0].float())}),
        ):
            model(
                input_ids=sent(ids, device),
                position_ids=sent(positions[None], device),
                use_cache=False,
            )
    return torch.cat(found)


def distance(residuals: torch.Tensor, reference: torch.Tensor) -> float:
    """Largest relative distance of a token's residual [t, d] from its ``reference``."""
    apart = torch.linalg.vector_norm(residuals - reference, dim=1)
    return float((apart / torch.linalg.vector_norm(reference, dim=1)).max())
