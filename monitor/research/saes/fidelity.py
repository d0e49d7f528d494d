"""Is the SAE that was loaded the one that was published? Variance explained and L0 on real residuals.

A dropped threshold, a wrong bias rule or a wrong block each give a number far from the publisher's.
Legend: t = tokens, d = model width, n = latents.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from monitor.errors import BadInput
from monitor.replay.pooling import normalised
from monitor.replay.residuals import ResidualReader, not_finite
from monitor.research.saes.autoencoder import SparseAutoencoder
from monitor.values.features import InputNorm
from monitor.values.prompts import Prompt

L0_FACTOR: Final = 2.0
"""A mean L0 further than this from the expected one, either way, does not agree: L0 depends on the
text, and the publisher's was another."""
VARIANCE_BELOW: Final = 0.15
"""A fraction of variance explained that lies further below the expected one does not agree."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    """What an SAE does on ``tokens`` real residuals.

    ``variance_explained`` is 1 - Σ‖x - x̂‖² / Σ‖x - mean(x)‖²; ``l0`` the mean number of active
    latents; ``silent`` the share of latents that no token woke.
    """

    tokens: int
    variance_explained: float
    l0: float
    silent: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What the publisher states, or the person who imports; None where nobody does.

    Raises `BadInput` for what no SAE can have.
    """

    l0: float | None = None
    variance_explained: float | None = None

    def __post_init__(self) -> None:
        if self.l0 is not None and not 0.0 <= self.l0 < math.inf:
            raise BadInput(f"the L0 to expect (--expect-l0) must be finite, from 0: {self.l0}")
        if self.variance_explained is not None and not math.isfinite(self.variance_explained):
            raise BadInput(
                "the variance explained to expect (--expect-variance) must be finite: "
                f"{self.variance_explained}"
            )

    def over(self, other: Expected) -> Expected:
        """These, and the ``other``'s where these are silent."""
        return Expected(
            l0=other.l0 if self.l0 is None else self.l0,
            variance_explained=other.variance_explained
            if self.variance_explained is None
            else self.variance_explained,
        )

    def disagreements(self, found: Fidelity) -> list[str]:
        """Sentences; empty when everything stated was found (`L0_FACTOR`, `VARIANCE_BELOW`)."""
        problems = []
        if self.l0 is not None and not (self.l0 / L0_FACTOR <= found.l0 <= self.l0 * L0_FACTOR):
            problems.append(f"mean L0 is {found.l0:.1f}, expected {self.l0:g}")
        if self.variance_explained is not None and not (
            found.variance_explained >= self.variance_explained - VARIANCE_BELOW
        ):
            problems.append(
                f"variance explained is {found.variance_explained:.3f}, "
                f"expected {self.variance_explained:g}"
            )
        return problems


def token_residuals(
    reader: ResidualReader, prompts: Sequence[Prompt], site: int, tokens: int, skip_tokens: int
) -> torch.Tensor:
    """Residuals [t, d] behind block ``site`` of whole prompts, without the first ``skip_tokens``.

    From the first prompts until there are ``tokens`` of them, or no more prompts. Raises `BadInput`
    for a prompt that cannot be replayed, or when no token is left, `ModelError` for residuals that are
    not finite.
    """
    found: list[torch.Tensor] = []

    def collect(weights: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        found.append(residual[(weights > 0).any(dim=0)].cpu())
        return weights[:, :1]

    sizes = reader.token_counts(prompts, "all", skip_tokens)
    needed = next((i for i in range(len(sizes)) if sum(sizes[: i + 1]) >= tokens), len(sizes) - 1)
    reader.pooled(prompts[: needed + 1], [site], "all", collect, 1, skip_tokens)
    residuals = torch.cat(found)[:tokens] if found else torch.empty(0)
    if not residuals.numel():
        raise BadInput(f"the texts have no token behind the first {skip_tokens}")
    if not torch.isfinite(residuals).all():
        raise not_finite(
            f"{reader.loaded.model_id} gives residuals that are not finite behind block {site}"
        )
    return residuals


def median_norm(residuals: torch.Tensor) -> float:
    """The median length of ``residuals`` [t, d]."""
    return float(torch.linalg.vector_norm(residuals, dim=1).median())


def encoded(
    sae: SparseAutoencoder, residuals: torch.Tensor
) -> Iterator[tuple[slice, torch.Tensor]]:
    """All latents of ``residuals`` [t, d], part by part: which latents, and float32 [t, part].

    A top-k encodes twice: once for the k-th largest of every token, once for the latents.
    """
    inputs = normalised(residuals.to(torch.float32), sae.input_norm)
    last = _last_place(sae, inputs) if sae.k is not None else None
    for part in sae.parts():
        rows = sae.rows(part)
        a = torch.addmm(rows.bias.float(), inputs, rows.weight.float().T)
        a = torch.where(a > rows.threshold.float(), a, 0.0)
        yield part, a if last is None else torch.where(a >= last, a, 0.0)


def measure(sae: SparseAutoencoder, residuals: torch.Tensor) -> Fidelity:
    """How well ``sae`` rebuilds ``residuals`` [t, d], and from how many latents.

    Raises `BadInput` where the SAE holds, or makes, numbers that are not finite, and for residuals
    that are too few to vary.
    """
    x = residuals.to(torch.float32)
    rebuilt = sae.decoder_offset().float().repeat(len(x), 1)
    active = torch.zeros(len(x))
    awake = 0
    for part, latents in encoded(sae, x):
        rebuilt.addmm_(latents, sae.decoder_rows(part).float())
        active += (latents > 0).sum(dim=1)
        awake += int((latents > 0).any(dim=0).sum())
    error = (x - _denormalised(rebuilt, x, sae.input_norm)).double().square().sum()
    variance = (x - x.mean(dim=0)).double().square().sum()
    if not variance > 0:
        raise BadInput(
            f"{len(x)} tokens of benign text are left to verify the SAE on: they do not vary",
            hint="give a larger --norm-multiple, a smaller --skip-tokens, or more texts with --data",
        )
    if not torch.isfinite(error):
        raise BadInput(
            f"{sae.path}: what the SAE rebuilds is not finite",
            hint="its numbers are too large for the residuals of this model",
        )
    return Fidelity(
        tokens=len(x),
        variance_explained=float(1.0 - error / variance),
        l0=float(active.mean()),
        silent=1.0 - awake / sae.latents,
    )


def _last_place(sae: SparseAutoencoder, inputs: torch.Tensor) -> torch.Tensor:
    """The k-th largest pre-activation of every token: [t, 1]."""
    best = torch.empty(len(inputs), 0)
    for part in sae.parts():
        rows = sae.rows(part)
        a = torch.addmm(rows.bias.float(), inputs, rows.weight.float().T)
        best = torch.cat([best, a], dim=1)
        best = best.topk(min(sae.k or 1, best.shape[1]), dim=1, sorted=False).values
    return best.amin(dim=1, keepdim=True)


def _denormalised(rebuilt: torch.Tensor, x: torch.Tensor, norm: InputNorm) -> torch.Tensor:
    if norm == "rescale":
        lengths: torch.Tensor = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        return rebuilt * lengths / math.sqrt(x.shape[1])
    if norm == "layer_norm":
        return rebuilt * x.std(dim=1, keepdim=True) + x.mean(dim=1, keepdim=True)
    return rebuilt
