"""Model diffing: what fine-tuning changed inside a model, and which of it is a cause of misbehaviour.

As published (arXiv 2506.19823): mean activations on evaluation prompts before and after fine-tuning,
ranked by change; the largest are steered with, up in the base model and down in the tuned one, and
the causes are kept. Unlike there, the prompts are split: one half chooses the candidates (and gives
the directions of the difference), the other half tests them and is steered on. The same prompts for
both would let the choice confirm itself.

Legend: n = different questions (the choosing half first), s = sites, k = features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch

from monitor.errors import BadInput, ModelError
from monitor.replay.model import LoadedModel, identity_of
from monitor.replay.residuals import ResidualReader, not_finite
from monitor.research.answers.behaviour import Judge
from monitor.research.contrast.directions import candidate_sites
from monitor.research.diff.causal import SIDES, Lengths, Side, Verdict, tried
from monitor.research.diff.change import Change, changes
from monitor.research.diff.families import (
    Candidate,
    Readings,
    candidates,
    difference_family,
    given_family,
    latent_family,
)
from monitor.research.diff.misbehaviour import misbehaviour
from monitor.research.diff.settings import DiffSettings
from monitor.research.diff.trials import Trials, question_means
from monitor.research.progress import Progress, quiet
from monitor.research.reading import Reader, opened
from monitor.research.saes.autoencoder import SparseAutoencoder
from monitor.research.saes.encode import latent_means
from monitor.research.steering.measure import Measure
from monitor.research.steering.steer import Turn
from monitor.settings import ReplaySettings
from monitor.values.arrays import Floats
from monitor.values.features import Feature, Region
from monitor.values.identity import ModelIdentity
from monitor.values.prompts import Prompt

_DIFFERENCES: Final = {
    "architecture": "BASE is a {}, TUNED a {}",
    "hidden_size": "BASE is {} wide, TUNED {}",
    "layers": "BASE has {} decoder blocks, TUNED {}",
    "vocab_size": "BASE has a vocabulary of {} tokens, TUNED of {}",
    "tokenizer_hash": "their tokenizers differ ({} and {})",
    "template_hash": "their chat templates differ ({} and {})",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One candidate: its change on the testing half, and its verdict where it was steered with."""

    candidate: Candidate
    change: Change
    significant: bool
    verdict: Verdict | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Diff:
    """What was found, largest standardised change on the testing half first.

    ``plain``: both models' mean misbehaviour by ``measure`` without steering, where it was taken.
    """

    trials: Trials
    sites: tuple[int, ...]
    region: Region
    readings: Mapping[Side, Readings]
    findings: tuple[Finding, ...]
    measure: str | None
    plain: Mapping[Side, float]
    models: Mapping[Side, ModelIdentity]

    @property
    def moved(self) -> tuple[float, ...]:
        """Length of the mean difference at each site over the mean length of a token's residual."""
        base, tuned = self.readings["base"], self.readings["tuned"]
        means = (tuned.residuals - base.residuals).mean(axis=0, dtype=np.float64)
        return tuple((np.linalg.norm(means, axis=1) / base.lengths).tolist())


def compare(
    models: Mapping[Side, ReplaySettings],
    trials: Trials,
    benign: Sequence[Prompt],
    settings: DiffSettings,
    *,
    judge: Callable[[], Judge] | None = None,
    given: Sequence[Feature] = (),
    sae: SparseAutoencoder | None = None,
    progress: Progress = quiet,
) -> Diff:
    """Find the changes between the two ``models`` and try which of them are causes.

    Candidates come from ``sae`` where there is one, otherwise from the difference itself; ``given``
    features are compared beside them. ``judge`` makes the judge that rates answers;
    without it the likelihoods of good and bad answers are compared. ``benign`` texts say what coherent
    language costs. One model is in memory at a time. Blocks for minutes to hours. Raises `ModelError` for
    models that cannot be compared, `BadInput` for prompts that cannot be used.
    """
    identities = {side: identity_of(models[side]) for side in SIDES}
    require_comparable(identities["base"], identities["tuned"])

    def reference() -> AbstractContextManager[LoadedModel]:
        return opened(models["base"])

    measure = misbehaviour(trials, settings, judge, reference, benign, progress)
    region = settings.region or _region(trials)
    sites = _sites(settings.sites, identities["base"].layers, given, sae)
    readings: dict[Side, Readings] = {}
    for side in SIDES:
        progress(f"reading {len(trials.all)} prompts at {len(sites)} sites of the {side} model")
        readings[side] = _read(side, models[side], trials, sites, region, given, sae)
    found = _found(readings, trials, sites, region, given, sae, settings.top)
    findings = _tested(found, trials.chosen_by, settings)
    plain: Mapping[Side, float] = {}
    if measure is not None:
        lengths = {
            side: dict(zip(sites, readings[side].lengths.tolist(), strict=True)) for side in SIDES
        }
        findings, plain = _steered(findings, measure, models, lengths, settings, progress)
    return Diff(
        trials=trials,
        sites=sites,
        region=region,
        readings=readings,
        findings=findings,
        measure=measure.description if measure is not None else None,
        plain=plain,
        models=identities,
    )


def require_comparable(base: ModelIdentity, tuned: ModelIdentity) -> None:
    """Raises `ModelError` unless TUNED reads the same tokens at the same places as BASE."""
    problems = [
        _DIFFERENCES[difference.field].format(*difference.short)
        for difference in base.differences(tuned, weights=False)
    ]
    if problems:
        raise ModelError(
            "the two models cannot be compared: " + "; ".join(problems),
            hint="TUNED must be a fine-tune of BASE; copy BASE's tokenizer files if only these differ",
        )


def _region(trials: Trials) -> Region:
    answered = all(trial.prompt.response is not None for trial in trials.all)
    return "response" if answered else "last_prompt_token"


def _sites(
    wanted: Sequence[int] | None,
    layers: int,
    given: Sequence[Feature],
    sae: SparseAutoencoder | None,
) -> tuple[int, ...]:
    if wanted is not None:
        outside = [site for site in wanted if not 0 <= site < layers]
        if outside or not wanted:
            raise BadInput(f"sites: {outside or 'none'}; the models have blocks 0 to {layers - 1}")
    else:
        wanted = () if sae is not None else candidate_sites(layers)
    extra = {site for feature in given for site in feature.sites}
    if sae is not None:
        extra.add(sae.site)
    return tuple(sorted({*wanted, *extra}))


def _read(
    side: Side,
    settings: ReplaySettings,
    trials: Trials,
    sites: Sequence[int],
    region: Region,
    given: Sequence[Feature],
    sae: SparseAutoencoder | None,
) -> Readings:
    prompts = [trial.prompt for trial in trials.all]
    with opened(settings, sites[-1]) as loaded:
        reader = ResidualReader(loaded, settings)
        for trial, tokens in zip(trials.all, reader.token_counts(prompts, region), strict=True):
            if tokens == 0:
                raise BadInput(f"prompts, line {trial.line}: no token in region {region}")
        width = loaded.config.hidden_size
        latents = latent_means(reader, sae, prompts, region) if sae else None
        if latents is not None and np.isnan(latents).any():
            line = trials.all[int(np.isnan(latents).any(axis=1).argmax())].line
            raise BadInput(
                f"prompts, line {line}: no token in region {region} behind the first "
                f"{sae.skip_tokens if sae else 1}, which the SAE was trained without"
            )
        means = reader.pooled(prompts, sites, region, _with_length, width + 1)
        for index, site in enumerate(sites):
            if not np.isfinite(means[:, index]).all():
                raise not_finite(
                    f"the residual stream of the {side} model is not finite at block {site}"
                )
        return Readings(
            residuals=question_means(np.ascontiguousarray(means[:, :, :width]), trials.all),
            lengths=means[:, :, width].mean(axis=0, dtype=np.float64),
            given=question_means(_given(loaded, settings, given, prompts), trials.all)
            if given
            else None,
            latents=None if latents is None else question_means(latents, trials.all),
        )


def _with_length(weights: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """The mean residual and behind it the mean length of a token's residual."""
    lengths = torch.linalg.vector_norm(residual, dim=1, keepdim=True)
    return weights @ torch.cat([residual, lengths], dim=1)


def _given(
    loaded: LoadedModel,
    settings: ReplaySettings,
    given: Sequence[Feature],
    prompts: Sequence[Prompt],
) -> Floats:
    readings, _ = Reader(loaded, given, settings).read("prompts", prompts)
    for index, feature in enumerate(given):
        if np.isnan(readings[:, index]).any():
            raise BadInput(
                f"feature {feature.name} reads the {feature.region}, which some prompts lack"
            )
    return readings


def _found(
    readings: Mapping[Side, Readings],
    trials: Trials,
    sites: Sequence[int],
    region: Region,
    given: Sequence[Feature],
    sae: SparseAutoencoder | None,
    top: int,
) -> list[Candidate]:
    """The candidates of every family, by the choosing half alone."""
    base, tuned, chosen_by = readings["base"], readings["tuned"], trials.chosen_by
    families = [
        latent_family(base, tuned, sae, region)
        if sae is not None
        else difference_family(base, tuned, sites, chosen_by, region),
        given_family(base, tuned, given),
    ]
    found = [
        one
        for family in families
        if family is not None
        for one in candidates(family, chosen_by, top)
    ]
    seen: set[str] = set()
    for one in found:
        if one.name in seen:
            raise BadInput(
                f"two candidates are called {one.name}",
                hint="an earlier diff's pack can be compared with --sae, whose names are others",
            )
        seen.add(one.name)
    return found


def _tested(
    found: Sequence[Candidate], chosen_by: int, settings: DiffSettings
) -> tuple[Finding, ...]:
    """Every candidate on the testing half."""
    if not found:
        return ()
    tested = changes(
        np.stack([one.base[chosen_by:] for one in found], axis=1),
        np.stack([one.tuned[chosen_by:] for one in found], axis=1),
        np.array([one.feature.sign for one in found]),
        np.random.default_rng([settings.seed, 0]),
    )
    findings = [
        Finding(
            candidate=candidate,
            change=change,
            significant=change.q <= settings.false_discovery_rate,
        )
        for candidate, change in zip(found, tested, strict=True)
    ]
    return tuple(
        sorted(
            findings,
            key=lambda f: f.candidate.feature.toward(f.change.standardised),
            reverse=True,
        )
    )


def _steered(
    findings: tuple[Finding, ...],
    measure: Measure,
    models: Mapping[Side, ReplaySettings],
    lengths: Lengths,
    settings: DiffSettings,
    progress: Progress,
) -> tuple[tuple[Finding, ...], Mapping[Side, float]]:
    """The significant findings with their verdicts, and both models' misbehaviour as they are."""
    steering = [
        Turn(
            name=one.candidate.name,
            site=one.candidate.feature.site,
            direction=one.candidate.direction,
        )
        for one in findings
        if one.significant
    ]
    if not steering:
        return findings, {}
    verdicts, plain = tried(
        steering,
        measure,
        lambda side: opened(models[side]),
        lengths,
        settings.doses,
        settings.seed,
        progress,
    )
    by_name = {verdict.name: verdict for verdict in verdicts}
    judged = tuple(replace(one, verdict=by_name.get(one.candidate.name)) for one in findings)
    return judged, {side: float(np.nanmean(one.values)) for side, one in plain.items()}
