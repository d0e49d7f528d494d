"""Parts of a model that carry a state from token to token, beside packed attention.

State-space mixers, linear attention and causal convolutions read whatever comes before a token in its row.
So while a packed row runs, `Recurrent` stands in such a part's place: it takes the row apart, lets the part read the
prompts below each other, each behind the prefixes that it continues, and puts the results back into the row. All the rest
of the model reads the row as one. What came into the part is kept of shared segments, so that its
state is computed anew for each prompt that continues one, and nothing else is.

Legend: t = tokens of the row, d = model width, b = prompts of a batch, l = tokens of its longest.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import nn

from monitor.replay.attention import ROW, PackedRow
from monitor.replay.batches import batches_of
from monitor.replay.swapped import Place

SIGNS: Final = ("A_log", "slope_rate")
"""Names under which a part of its own holds how fast its state fades."""


def recurrent_places(blocks: nn.ModuleList) -> tuple[Place, ...]:
    """The outermost parts of ``blocks`` that seem to carry a state, by what they hold. The proof at load says if it is all."""
    found: list[Place] = []
    within: set[nn.Module] = set()
    for block in blocks:
        for parent in block.modules():
            for name, part in parent.named_children():
                if parent in within:
                    within.add(part)
                elif _carries_state(part):
                    within.add(part)
                    found.append(Place(parent, name, part, Recurrent(part, len(found))))
    return tuple(found)


def _carries_state(part: nn.Module) -> bool:
    held = {
        name
        for name, _ in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False))
    }
    return bool(held & set(SIGNS)) or any(isinstance(one, nn.Conv1d) for one in part.children())


class Recurrent(nn.Module):
    """``part`` [b, l, d] → [b, l, d] over the row [1, t, d] that runs; without one it is the part itself."""

    def __init__(self, part: nn.Module, number: int) -> None:
        """``number`` tells the parts of one model apart."""
        super().__init__()
        # Not as a child: it stands in the model already.
        self._part = (part,)
        self._key = ~number

    def forward(self, *given: Any, **named: Any) -> Any:
        (part,) = self._part
        row = ROW.get(None)
        if row is None:
            return part(*given, **named)
        stream: torch.Tensor = given[0] if given else named.pop("hidden_states")
        self._keep(row, stream)
        known = row.batches.get(stream.device)
        if known is None:
            chains = {prefix for segment in row.segments for prefix in segment.chain}
            known = row.batches[stream.device] = batches_of(
                [(segment.stop - segment.start, segment.chain) for segment in row.segments],
                {prefix: row.kept[prefix][self._key][0].shape[2] for prefix in chains},
                stream.device,
            )
        kept = [row.kept[prefix][self._key][0][0, 0] for prefix in known.prefixes]
        tokens = torch.cat([*kept, stream[0]]) if kept else stream[0]
        output = torch.empty_like(stream)
        rest: tuple[Any, ...] | None = None
        for batch in known.batches:
            result = part(tokens[batch.taken], *given[1:], **named)
            if isinstance(result, tuple):
                result, *others = result
                rest = tuple(others)
            output[0, batch.into] = result.flatten(0, 1)[batch.own].to(output.dtype)
        return output if rest is None else (output, *rest)

    def _keep(self, row: PackedRow, stream: torch.Tensor) -> None:
        """Copy what comes in of the segments that others will continue: like keys of one head, without values."""
        for segment in row.segments:
            if segment.keep is not None:
                own = stream[:, None, segment.start : segment.stop].clone()
                kept = row.kept.setdefault(segment.keep, {})
                kept[self._key] = (own, own[..., :0].clone())
