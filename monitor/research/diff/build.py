"""Build a pack from a model diff, with its report beside it: ``pack.json``, ``diff.json``, ``diff.html``."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from monitor.errors import BadInput, PackError
from monitor.replay.model import identity_of
from monitor.research.answers.behaviour import BuiltInJudge, Coherence, Judge
from monitor.research.diff.causal import Side
from monitor.research.diff.misbehaviour import some_of
from monitor.research.diff.naming import described, quotable, top_excerpts
from monitor.research.diff.report import as_page, figures, with_kept
from monitor.research.diff.run import Diff, compare
from monitor.research.diff.settings import DiffSettings
from monitor.research.diff.trials import load_trials
from monitor.research.packs.assemble import SITE_CONVENTION, assembled, instrument
from monitor.research.packs.calibrate import LEAST_READINGS, fit_calibration
from monitor.research.progress import Progress, quiet
from monitor.research.reading import Reader, opened, replay_settings
from monitor.research.saes.autoencoder import SparseAutoencoder, Stated
from monitor.research.saes.detect import load_autoencoder
from monitor.research.texts import DATA, Texts, load_texts
from monitor.score.fit import require_fit
from monitor.score.pack import MANIFEST_FILE, Pack, load_pack, save_pack
from monitor.settings import ReplaySettings
from monitor.values.features import Feature
from monitor.values.identity import ModelIdentity
from monitor.writing import require_room, write_whole

JSON_FILE: Final = "diff.json"
PAGE_FILE: Final = "diff.html"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """``base`` and ``tuned`` models, the ``prompts`` file, and what else is compared: a pack of
    ``directions``, an ``sae``. ``judge_feature`` of ``judge_pack`` rates answers in place of
    likelihoods. ``data``: texts that calibrate in place of the project's own."""

    base: Path
    tuned: Path
    prompts: Path
    directions: Path | None = None
    sae: Path | None = None
    sae_format: str | None = None
    sae_stated: Stated = field(default_factory=Stated)
    judge_pack: Path | None = None
    judge_feature: str | None = None
    data: Path | None = None
    device: str = "cpu"


def build_diff_pack(
    sources: Sources,
    out: Path,
    settings: DiffSettings,
    progress: Progress = quiet,
    *,
    judge: Judge | None = None,
    show_texts: bool = False,
) -> tuple[Pack | None, dict[str, Any]]:
    """Compare the models, and save what is kept as a pack for the base model, and the report, to ``out``.

    ``judge`` goes before the ``judge_feature`` of ``sources``. The report is written before the pack is
    tried, and again with it. A feature that cannot be calibrated, for example a latent that benign text
    never wakes, is left out with its reason in the report. Returns the pack, None when nothing is kept,
    and the report's figures. Blocks for minutes to hours. Raises `ModelError`, `BadInput` (also when
    ``out`` cannot be written, before any work), `PackError`.
    """
    _require_room(out)
    models: dict[Side, ReplaySettings] = {
        "base": replay_settings(sources.base, sources.device),
        "tuned": replay_settings(sources.tuned, sources.device),
    }
    trials = load_trials(sources.prompts, settings.seed)
    texts = load_texts(sources.data or DATA)
    # A folder given in its place is not ours to quote from.
    own = load_texts(DATA) if sources.data else texts
    if len(texts.fit) < LEAST_READINGS:
        raise BadInput(
            f"{sources.data}: {len(texts.fit)} benign texts have split 'fit', "
            f"at least {LEAST_READINGS} are needed to calibrate"
        )
    base = identity_of(models["base"])
    diff = compare(
        models,
        trials,
        texts.fit,
        settings,
        judge=(lambda: judge) if judge else _reading_judge(sources, models["base"], base, texts),
        given=_fitting(sources.directions, base) if sources.directions else (),
        sae=_sae(sources),
        progress=progress,
    )
    found = figures(diff, settings)
    # Hours of steering lie behind this: they must not hang on what may still go wrong.
    _write(out, found, as_page(diff, found, show_texts=show_texts))
    kept = _kept(diff, settings)
    if not kept:
        return None, found
    pack, found = _assembled(diff, kept, found, models["base"], texts, own, settings, progress)
    _write(out, found, as_page(diff, found, show_texts=show_texts))
    if pack is not None:
        save_pack(pack, out)
    return pack, found


def _require_room(out: Path) -> None:
    if (out / MANIFEST_FILE).exists():
        raise PackError(
            f"{out} holds a pack already",
            hint="a run that keeps nothing would leave it as if it were its own",
        )
    require_room(out, JSON_FILE, PAGE_FILE)


def _fitting(folder: Path, base: ModelIdentity) -> tuple[Feature, ...]:
    pack = load_pack(folder)
    require_fit(pack, base, "the base model", hint=f"give another pack than {folder}")
    return pack.features


def _sae(sources: Sources) -> SparseAutoencoder | None:
    if sources.sae is None:
        return None
    return load_autoencoder(sources.sae, sources.sae_format, sources.sae_stated)


def _reading_judge(
    sources: Sources, base: ReplaySettings, model: ModelIdentity, texts: Texts
) -> Callable[[], Judge] | None:
    """A judge that reads answers through the base model by one feature; null: none is wanted."""
    if sources.judge_pack is None:
        return None
    by_name = {f.name: f for f in _fitting(sources.judge_pack, model)}
    if sources.judge_feature not in by_name:
        raise BadInput(
            f"judge feature {sources.judge_feature!r} is not in {sources.judge_pack}",
            hint=f"one of {', '.join(by_name)}",
        )
    feature = by_name[sources.judge_feature]

    def judge() -> Judge:
        with opened(base) as reference:
            coherence = Coherence(reference, some_of(texts.fit))
            return BuiltInJudge(reference, feature, coherence, base)

    return judge


def _kept(diff: Diff, settings: DiffSettings) -> list[Feature]:
    causal = settings.keep == "causal"
    tags = ("diff", "causal", "misaligned") if causal else ("diff", "changed")
    return [
        replace(feature, tags=tuple(dict.fromkeys((*feature.tags, *tags))))
        for one in diff.findings
        for feature in [one.candidate.feature]
        if (one.verdict is not None and one.verdict.causal if causal else one.significant)
    ]


def _assembled(
    diff: Diff,
    kept: list[Feature],
    found: dict[str, Any],
    base: ReplaySettings,
    texts: Texts,
    own: Texts,
    settings: DiffSettings,
    progress: Progress,
) -> tuple[Pack | None, dict[str, Any]]:
    """The ``kept`` that can be calibrated as a pack, described by ``own`` texts; None if none can.

    Also returns ``found`` with their excerpts and with the reasons of those left out.
    """
    with opened(base, max(feature.sites[-1] for feature in kept)) as loaded:
        reader = Reader(loaded, kept, base, progress)
        left_out = _uncalibrated(texts, reader)
        excerpts = top_excerpts(reader, quotable(own))
        found = with_kept(found, excerpts, left_out)
        features = [described(one, excerpts[one.name]) for one in kept if one.name not in left_out]
        if not features:
            return None, found
        reader = Reader(loaded, features, base, progress)
        pack, _ = assembled(f"{loaded.model_id}-diff", "1", loaded, texts, reader)
    pack = replace(
        pack,
        provenance={
            "method": "model diffing: mean readings before and after fine-tuning, "
            + ("causes kept" if settings.keep == "causal" else "significant changes kept"),
            "base": str(diff.models["base"].weights_hash),
            "tuned": str(diff.models["tuned"].weights_hash),
            "prompts_sha256": diff.trials.sha256,
            "texts_sha256": texts.sha256,
            "seed": settings.seed,
            "site_convention": SITE_CONVENTION,
            **instrument(base),
        },
        report=found,
    )
    return pack, found


def _uncalibrated(texts: Texts, reader: Reader) -> dict[str, str]:
    """By name, why `assembled` would refuse a feature and with it all others."""
    readings, tokens = reader.read("texts that calibrate", texts.fit)
    reasons: dict[str, str] = {}
    for index, feature in enumerate(reader.features):
        try:
            fit_calibration(readings[:, index], tokens[:, index])
        except BadInput as error:
            reasons[feature.name] = str(error)
    return reasons


def _write(out: Path, found: dict[str, Any], html: str) -> None:
    write_whole(out / JSON_FILE, json.dumps(found, indent=1) + "\n")
    write_whole(out / PAGE_FILE, html)
