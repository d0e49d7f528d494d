"""Latents of a top-k SAE: on every token they compete with all the others for k places.

Legend: t = tokens, d = model width, n = latents of the SAE, m = latents that are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch.nn.functional import linear

from monitor.values.features import Encoder

PARTIAL_ENTRIES: Final = 1 << 24
"""Pre-activations held at once, 64 MiB: a row of tokens is encoded in parts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """An encoder on the device: ``weight`` [n, d], ``bias`` [n], the read ``latents`` [m]."""

    latents: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    places: int

    def activations(self, inputs: torch.Tensor) -> torch.Tensor:
        """``relu(a)`` of the read latents where a is among the row's largest, else 0: [t, m].

        Of ``inputs`` [t, d], already normalised. All n pre-activations are computed only on tokens
        where one of the read latents is positive: elsewhere they all read 0 whoever wins. Latents
        that tie for the last place all have it.
        """
        found = torch.zeros(len(inputs), len(self.latents), device=inputs.device)
        alone = linear(inputs, self.weight[self.latents], self.bias[self.latents])
        # Written so that a NaN counts as awake, and comes out as NaN.
        awake = (~(alone <= 0.0)).any(dim=1).nonzero()[:, 0]
        for part in torch.split(awake, max(1, PARTIAL_ENTRIES // len(self.bias))):
            everyone = linear(inputs[part], self.weight, self.bias)
            last = everyone.topk(self.places, dim=1, sorted=False).values.amin(dim=1, keepdim=True)
            ours = everyone[:, self.latents]
            found[part] = torch.where(ours < last, 0.0, ours.relu())
        return found


def contest(encoder: Encoder, latents: Sequence[int], device: torch.device) -> Contest:
    """``encoder`` on ``device``, of which ``latents`` are read."""
    return Contest(
        latents=torch.tensor(list(latents), device=device),
        weight=torch.from_numpy(np.asarray(encoder.weight, dtype=np.float32)).to(device),
        bias=torch.from_numpy(np.asarray(encoder.bias, dtype=np.float32)).to(device),
        places=encoder.places,
    )
