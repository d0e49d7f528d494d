"""How good a sparse autoencoder is, on tokens that it was not trained on.

Computed from the checkpoint as `monitor pack import sae` reads it, not by the trainer; variance
explained and L0 are `monitor.research.saes.fidelity`'s.

Legend: n = tokens, d = model width, k = latents, t = tokens of a pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from monitor.replay.model import LoadedModel
from monitor.replay.taps import steered
from monitor.research.answers.likelihood import response_log_probabilities
from monitor.research.packs.figures import rounded
from monitor.research.saes.autoencoder import SparseAutoencoder
from monitor.research.saes.fidelity import encoded
from monitor.values.prompts import Prompt


def rebuilt(sae: SparseAutoencoder, residual: torch.Tensor) -> torch.Tensor:
    """``x̂`` [n, d] of ``residual`` [n, d], for an SAE without input norm."""
    assert sae.input_norm == "none"
    found = (sae.decoder_bias.float() / sae.norm_factor).repeat(len(residual), 1)
    for part, latents in encoded(sae, residual):
        found.addmm_(latents, sae.decoder_rows(part).float())
    return found


def densities(sae: SparseAutoencoder, residual: torch.Tensor) -> torch.Tensor:
    """The share [k] of tokens of ``residual`` [n, d] that wake each latent."""
    return torch.cat([(latents > 0).float().mean(dim=0) for _, latents in encoded(sae, residual)])


def components_explained(train: torch.Tensor, held_out: torch.Tensor, count: int) -> float | None:
    """Variance explained on ``held_out`` [n, d] by ``count`` principal components of ``train`` [n, d].

    What an SAE with that many active latents has to beat.
    """
    centred = train.double() - train.double().mean(dim=0)
    _, vectors = torch.linalg.eigh(centred.T @ centred)
    chosen = vectors[:, -count:]
    rest = held_out.double() - train.double().mean(dim=0)
    left = rest - rest @ chosen @ chosen.T
    total = held_out.double() - held_out.double().mean(dim=0)
    return rounded(1.0 - float(left.square().sum() / total.square().sum()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Replacement:
    """Puts ``x̂`` in the place of the residual stream: an edit as `monitor.replay.taps.steered` makes it.

    The first token keeps its residual, as it had no part in training. ``filling`` [d]: the same for
    every token (zero ablation, mean ablation) in place of the reconstruction by ``sae``.
    """

    site: int
    sae: SparseAutoencoder | None = None
    filling: torch.Tensor | None = None

    def applied(self, residual: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
        assert positions is not None
        flat = residual.reshape(-1, residual.shape[-1])
        if self.sae is None:
            assert self.filling is not None
            made = self.filling.expand_as(flat)
        else:
            made = rebuilt(self.sae, flat)
        return torch.where((positions >= 1)[..., None], made.view_as(residual), residual)


def loss_recovered(
    loaded: LoadedModel, sae: SparseAutoencoder, mean: torch.Tensor, prompts: Sequence[Prompt]
) -> dict[str, Any]:
    """Cross-entropy of the responses of ``prompts``, in nats per token, with ``x̂`` in place of x.

    ``recovered`` is (zero - sae) / (zero - clean), with the residuals of all tokens but the first
    zeroed; ``recovered_against_mean`` the same with ``mean`` [d] in place of zero, which is harder.
    """
    cases: dict[str, list[Replacement]] = {
        "clean": [],
        "sae": [Replacement(site=sae.site, sae=sae)],
        "zero": [Replacement(site=sae.site, filling=torch.zeros_like(mean))],
        "mean": [Replacement(site=sae.site, filling=mean)],
    }
    losses = {}
    tokens = 0
    for name, edits in cases.items():
        with steered(loaded.blocks, edits):
            sums, counts = response_log_probabilities(loaded, prompts)
        tokens = int(counts.sum())
        losses[name] = -float(np.sum(sums)) / tokens
    return {
        "tokens": tokens,
        "nats_per_token": {name: rounded(loss) for name, loss in losses.items()},
        "recovered": recovered(losses, "zero"),
        "recovered_against_mean": recovered(losses, "mean"),
    }


def recovered(losses: dict[str, float], ablation: str) -> float | None:
    """(ablated - sae) / (ablated - clean): 1 when the SAE costs nothing, 0 when it says nothing."""
    return rounded((losses[ablation] - losses["sae"]) / (losses[ablation] - losses["clean"]))
