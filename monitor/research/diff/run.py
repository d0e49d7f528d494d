"""Model diffing: what fine-tuning changed inside a model, and which of it is a cause of misbehaviour.

As published (arXiv 2506.19823): mean activations on evaluation prompts before and after fine-tuning,
ranked by change; the largest are steered with, up in the base model and down in the tuned one, and
the causes are kept. Unlike there, the prompts are split: one half chooses the candidates (and gives
the directions of the difference), the other half tests them and is steered on. The same prompts for
both would let the choice confirm itself.

Legend: n = different questions (the choosing half first), s = sites, k = features.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Final, Literal

import numpy as np
import torch

from monitor.errors import BadInput, ModelError
from monitor.replay.engine import ReplayEngine
from monitor.replay.model import LoadedModel, identity_of, load_model
from monitor.replay.residuals import ResidualReader
from monitor.research.answers.behaviour import Coherence, Judge
from monitor.research.contrast.directions import candidate_sites
from monitor.research.diff.causal import SIDES, Doses, Side, Steering, Verdict, tried
from monitor.research.diff.change import Change, changes
from monitor.research.diff.families import (
    Candidate,
    Readings,
    candidates,
    difference_family,
    given_family,
)
from monitor.research.diff.measure import Judged, Likelihood, Measure
from monitor.research.diff.trials import Trials, question_means, spread_out
from monitor.research.latents.encode import latent_family, latent_means
from monitor.research.packs.assemble import Progress, Reader
from monitor.score.sae.autoencoder import SparseAutoencoder
from monitor.settings import ReplaySettings
from monitor.values.arrays import Doubles, Floats
from monitor.values.features import Feature, Region
from monitor.values.identity import ModelIdentity
from monitor.values.prompts import Prompt

COHERENCE_TEXTS: Final = 64
"""Benign texts that say what coherent language costs the base model; they are weighed for every rating."""

_DIFFERENCES: Final = {
    "architecture": "BASE is a {}, TUNED a {}",
    "hidden_size": "BASE is {} wide, TUNED {}",
    "layers": "BASE has {} decoder blocks, TUNED {}",
    "vocab_size": "BASE has a vocabulary of {} tokens, TUNED of {}",
    "tokenizer_hash": "their tokenizers differ ({} and {})",
    "template_hash": "their chat templates differ ({} and {})",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffSettings:
    """``sites`` None: from a quarter to three fifths of the depth, or where the SAE reads. ``region``
    None: the response where every prompt has one, otherwise the last prompt token. The ``top``
    candidates of each family are tested; those with q of at most ``false_discovery_rate`` are steered
    with, on ``steer_prompts`` rows of the testing half, of as many questions as can be. ``keep``
    causal: only causes go into the pack; changed: every significant change does, and nothing is
    steered.
    """

    sites: tuple[int, ...] | None = None
    region: Region | None = None
    top: int = 6
    false_discovery_rate: float = 0.05
    doses: Doses = field(default_factory=Doses)
    steer_prompts: int = 32
    keep: Literal["causal", "changed"] = "causal"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.top < 1 or self.steer_prompts < 2 or self.doses.random_directions < 1:
            raise BadInput("a diff needs at least 1 candidate, 2 prompts and 1 random direction")
        if not 0.0 < self.false_discovery_rate < 1.0:
            raise BadInput("the false discovery rate lies between 0 and 1")
        if self.seed < 0:
            raise BadInput("seed: a whole number from 0")
        if not self.doses.strengths or not all(0 < share <= 10 for share in self.doses.strengths):
            raise BadInput("strengths are shares of the residual's length, above 0 and at most 10")


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
    progress: Progress = lambda line: None,
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

    def coherence(answers: Sequence[Prompt]) -> Doubles:
        progress(f"rating the coherence of {len(answers)} answers")
        with opened(models["base"]) as reference:
            return Coherence(reference, some_of(benign)).of(answers)

    measure = _measure(trials, coherence, judge, settings)
    region = settings.region or _region(trials)
    layers = identities["base"].layers
    sites = _sites(settings.sites, layers, given, sae)
    readings: dict[Side, Readings] = {}
    for side in SIDES:
        progress(f"reading {len(trials.all)} prompts at {len(sites)} sites of the {side} model")
        readings[side] = _read(side, models[side], trials, sites, region, given, sae)
    found = _found(readings, trials, sites, region, given, sae, settings.top)
    findings = _tested(found, trials.chosen_by, settings)
    plain: Mapping[Side, float] = {}
    if measure is not None:
        lengths = {
            (side, site): float(readings[side].lengths[index])
            for side in SIDES
            for index, site in enumerate(sites)
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


@contextmanager
def opened(settings: ReplaySettings, deepest_site: int | None = None) -> Iterator[LoadedModel]:
    """The model of ``settings`` up to ``deepest_site`` (null: in full), after the last one has gone."""
    # A model that went out of scope may hang in a cycle, and there is room for one.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    layers = identity_of(settings).layers
    yield load_model(
        settings,
        layers - 1 if deepest_site is None else deepest_site,
        full=deepest_site is None,
    )


def some_of(benign: Sequence[Prompt]) -> Sequence[Prompt]:
    """About `COHERENCE_TEXTS` of them, evenly spread."""
    return benign[:: max(len(benign) // COHERENCE_TEXTS, 1)]


def _measure(
    trials: Trials,
    coherence: Callable[[Sequence[Prompt]], Doubles],
    judge: Callable[[], Judge] | None,
    settings: DiffSettings,
) -> Measure | None:
    if settings.keep == "changed":
        return None
    steered = spread_out(trials.test, settings.steer_prompts)
    if judge is not None:
        return Judged(steered, judge)
    if not trials.paired:
        raise BadInput(
            "what is misbehaviour? Some prompts lack response or bad_response",
            hint="give both in every row, or name a judge, or keep what changed (--keep changed)",
        )
    return Likelihood(steered, coherence)


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
    extra = {feature.site for feature in given}
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
                raise ModelError(
                    f"the residual stream of the {side} model is not finite at block {site}",
                    hint="its weights hold NaN or infinity: training diverged, or the file is damaged",
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
    reader = Reader(ReplayEngine(loaded, given, settings), lambda line: None)
    readings, _ = reader.read("prompts", prompts)
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
    lengths: Mapping[tuple[Side, int], float],
    settings: DiffSettings,
    progress: Progress,
) -> tuple[tuple[Finding, ...], Mapping[Side, float]]:
    """The significant findings with their verdicts, and both models' misbehaviour as they are."""
    steering = [
        Steering(
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
