"""Build a pack from chosen latents of a published sparse autoencoder.

Legend: t = tokens, d = model width.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch

from monitor.errors import BadInput
from monitor.replay.model import LoadedModel, identity_of, load_model
from monitor.replay.pooling import FeatureBank
from monitor.replay.residuals import ResidualReader
from monitor.research.packs.assemble import SITE_CONVENTION, assembled, instrument
from monitor.research.progress import Progress, quiet
from monitor.research.reading import Reader, replay_settings
from monitor.research.saes.autoencoder import SparseAutoencoder
from monitor.research.saes.features import latent_features
from monitor.research.saes.fidelity import (
    Expected,
    Fidelity,
    measure,
    median_norm,
    token_residuals,
)
from monitor.research.texts import DATA, Texts, load_texts
from monitor.score.pack import Pack, save_pack
from monitor.settings import ReplaySettings
from monitor.values.features import Feature, Pooling, Region

VERIFIED_TOKENS: Final = 4_096
NOTHING_STATED: Final = Expected()


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentChoice:
    """Which latents are taken, and how they are read.

    ``names`` None: ``latent.NUMBER``. ``skip_tokens`` None: what the SAE was trained without.
    ``norm_multiple``: tokens whose residual is longer than this many medians are not pooled (None:
    as the SAE was trained; 0: pool all). Latents that ``falls`` names fall when a persona appears:
    they are tagged ``assistant`` in place of ``tags``, which the others have. Raises `BadInput`.
    """

    latents: tuple[int, ...]
    names: tuple[str, ...] | None = None
    region: Region = "response"
    pooling: Pooling = "mean"
    rolling_tokens: int = 16
    skip_tokens: int | None = None
    norm_multiple: float | None = None
    falls: tuple[int, ...] = ()
    tags: tuple[str, ...] = ("misaligned",)

    def __post_init__(self) -> None:
        if self.norm_multiple is not None and not 0.0 <= self.norm_multiple < math.inf:
            raise BadInput(
                f"norm_multiple (--norm-multiple) must be finite, from 0: {self.norm_multiple}"
            )
        if strangers := sorted(set(self.falls) - set(self.latents)):
            raise BadInput(f"falls (--falls): {strangers} are not among the latents taken")
        if not all(tag.strip() for tag in self.tags):
            raise BadInput("tags (--tag): a tag must not be empty")


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """A pack of latents; ``disagreements`` are sentences, empty when the SAE is as published.

    ``microseconds_per_token`` is what reading them costs beside the forward pass, on this machine.
    """

    pack: Pack
    fidelity: Fidelity
    disagreements: tuple[str, ...]
    microseconds_per_token: float

    @property
    def as_published(self) -> bool | None:
        """None where neither the publisher nor anybody else states what to expect."""
        verdict: bool | None = self.pack.report["autoencoder"]["agrees"]
        return verdict


def build_latent_pack(
    sae: SparseAutoencoder,
    choice: LatentChoice,
    model: Path,
    out: Path,
    progress: Progress = quiet,
    *,
    expected: Expected = NOTHING_STATED,
    data: Path = DATA,
) -> Imported:
    """Take the latents, verify the SAE on benign text, calibrate, save to ``out``.

    ``expected`` goes before what the publisher states. An SAE that disagrees is saved all the
    same, and its report says so. Blocks for minutes. Raises `BadInput` for another model's SAE, for
    one with numbers that are not finite and for a latent that the benign texts never wake,
    `ModelError`, `PackError`.
    """
    settings = replay_settings(model, "cpu")
    _check_fits(sae, settings)
    texts = load_texts(data)
    loaded = load_model(settings, sae.site)
    skipped = sae.skip_tokens if choice.skip_tokens is None else choice.skip_tokens
    multiple = sae.norm_multiple if choice.norm_multiple is None else choice.norm_multiple
    progress(f"verifying the SAE on up to {VERIFIED_TOKENS} tokens of benign text")
    residuals, largest_norm = _residuals(
        ResidualReader(loaded, settings), texts, sae.site, skipped, multiple
    )
    expected = expected.over(_published(sae))
    fidelity = measure(sae, residuals)
    disagreements = tuple(expected.disagreements(fidelity))
    features = latent_features(
        sae,
        choice.latents,
        names=choice.names,
        region=choice.region,
        pooling=choice.pooling,
        rolling_tokens=choice.rolling_tokens,
        skip_tokens=skipped,
        largest_norm=largest_norm,
        falls=choice.falls,
        tags=choice.tags,
    )
    pack = _calibrated(features, loaded, texts, settings, progress)
    pack = replace(
        pack,
        provenance=_provenance(sae, choice, texts, settings, multiple),
        report=_report(fidelity, expected, disagreements),
    )
    save_pack(pack, out)
    return Imported(
        pack=pack,
        fidelity=fidelity,
        disagreements=disagreements,
        microseconds_per_token=reading_cost(features, residuals),
    )


def reading_cost(features: Sequence[Feature], residuals: torch.Tensor) -> float:
    """Microseconds per token that ``features`` of one site take beside the forward pass; best of 3."""
    bank = FeatureBank(features, residuals.shape[1], residuals.device)
    into = torch.empty(len(residuals), len(features))
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        bank.project(features[0].site, residuals, into)
        seconds.append(time.perf_counter() - start)
    return 1e6 * min(seconds) / len(residuals)


def _residuals(
    reader: ResidualReader, texts: Texts, site: int, skipped: int, multiple: float | None
) -> tuple[torch.Tensor, float | None]:
    """Residuals [t, d] to verify on, and the longest that is read: ``multiple`` of their median."""
    prompts = (*texts.check, *texts.fit)
    residuals = token_residuals(reader, prompts, site, VERIFIED_TOKENS, skipped)
    if not multiple:
        return residuals, None
    longest = multiple * median_norm(residuals)
    return residuals[torch.linalg.vector_norm(residuals, dim=1) <= longest], longest


def _check_fits(sae: SparseAutoencoder, settings: ReplaySettings) -> None:
    model = identity_of(settings)
    if sae.width != model.hidden_size:
        raise BadInput(
            f"{sae.path}: the SAE reads residuals {sae.width} wide, "
            f"{settings.model} has {model.hidden_size}: it was made for another model"
        )


def _published(sae: SparseAutoencoder) -> Expected:
    return Expected(
        l0=sae.published.l0 if sae.k is None else sae.k,
        variance_explained=sae.published.variance_explained,
    )


def _calibrated(
    features: Sequence[Feature],
    loaded: LoadedModel,
    texts: Texts,
    settings: ReplaySettings,
    progress: Progress,
) -> Pack:
    reader = Reader(loaded, features, settings, progress)
    try:
        pack, _ = assembled(f"{loaded.model_id}-latents", "1", loaded, texts, reader)
    except BadInput as error:
        raise BadInput(
            str(error),
            hint="a latent that benign text never wakes has no scale: choose another latent, or "
            "give texts that wake it with --data",
        ) from None
    return pack


def _provenance(
    sae: SparseAutoencoder,
    choice: LatentChoice,
    texts: Texts,
    settings: ReplaySettings,
    multiple: float | None,
) -> dict[str, Any]:
    with sae.path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {
        "method": f"latents of a {sae.format} checkpoint",
        "checkpoint": {
            "format": sae.format,
            "file": sae.path.name,
            "sha256": digest,
            "publisher": dict(sae.provenance),
            "activation": sae.activation,
            "latents": sae.latents,
            **({"k": sae.k} if sae.k is not None else {}),
        },
        "latents": list(choice.latents),
        "norm_multiple": multiple,
        "texts_sha256": texts.sha256,
        "site_convention": SITE_CONVENTION,
        **instrument(settings),
    }


def _report(fidelity: Fidelity, expected: Expected, disagreements: Sequence[str]) -> dict[str, Any]:
    stated = {name: value for name, value in asdict(expected).items() if value is not None}
    rounded = {
        name: float(f"{value:.4g}") if isinstance(value, float) else value
        for name, value in asdict(fidelity).items()
    }
    return {
        "note": "no held-out separation was measured for these latents",
        "autoencoder": {
            **rounded,
            "expected": stated,
            "agrees": not disagreements if stated else None,
            "disagreements": list(disagreements),
        },
    }
