"""What a study of power is made on: features that rules watch, their held-out history, and a persona's size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase

from sqlalchemy import Connection

from monitor.alert.rules import matches
from monitor.errors import BadInput
from monitor.proof.power import PERSONA, PersonaBy
from monitor.proof.watched import Watched, watched
from monitor.settings import Settings
from monitor.store.baselines import load_baseline
from monitor.store.packs import PackFeature, pack_features, stated_separations
from monitor.store.past import fine_kept_from
from monitor.subjects import Subject
from monitor.values.drift import Baseline
from monitor.values.prompts import EVERYTHING


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a person asks for."""

    pack_id: str
    since: datetime
    until: datetime
    baseline: str | None = None
    """Its id; None: the approved one."""
    features: Sequence[str] = ("*",)
    """Names or globs."""
    persona: float | None = None
    """Deviations; None: as the pack states, else `PERSONA`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Studied:
    """One feature, ready for `monitor.proof.power.power`."""

    name: str
    watched: Watched | None
    """None: the baseline holds no stream of it."""
    persona: float
    persona_by: PersonaBy


def history_from(c: Connection, since: datetime) -> datetime:
    """Where fine buckets begin that are asked for from ``since`` on: older ones were dropped."""
    kept = fine_kept_from(c)
    return since if kept is None else max(since, kept)


def studied(c: Connection, settings: Settings, asked: Asked) -> list[Studied]:
    """The features that some rule watches in all traffic, with what is stored of them.

    Raises `BadInput` for a span that is empty, a baseline that is not there, and where no feature is meant.
    """
    since = history_from(c, asked.since)
    if since >= asked.until:
        raise BadInput(
            f"--from: {since:%Y-%m-%d %H:%M} UTC must lie before --to, {asked.until:%Y-%m-%d %H:%M} UTC"
        )
    baseline = _baseline(c, asked)
    features = pack_features(c, asked.pack_id)
    subject = Subject(pack_id=asked.pack_id, features=features, baseline=baseline, canaries=())
    stated = stated_separations(c, asked.pack_id)
    found = []
    for feature in _meant(features, settings, asked.features):
        size, by = _persona(asked, stated.get(feature.name, 0.0))
        found.append(
            Studied(
                name=feature.name,
                watched=watched(
                    c, settings, subject, baseline, feature.ordinal, since, asked.until
                ),
                persona=size,
                persona_by=by,
            )
        )
    if not found:
        raise BadInput(
            "--feature: no rule watches such a feature in segment all",
            hint=f"The pack has {', '.join(one.name for one in features)}.",
        )
    return found


def _baseline(c: Connection, asked: Asked) -> Baseline:
    found = load_baseline(c, asked.baseline, asked.pack_id)
    if found is None or found.pack_id != asked.pack_id:
        raise BadInput(
            f"--baseline: pack {asked.pack_id} has no baseline {asked.baseline!r}"
            if asked.baseline
            else f"pack {asked.pack_id} has no approved baseline",
            hint="`monitor baseline list` shows them; `monitor baseline capture --approve` makes one.",
        )
    return found


def _meant(
    features: Sequence[PackFeature], settings: Settings, globs: Sequence[str]
) -> Iterator[PackFeature]:
    for feature in features:
        ruled = any(matches(rule, feature, EVERYTHING) for rule in settings.drift.rules)
        if ruled and any(fnmatchcase(feature.name, glob) for glob in globs):
            yield feature


def _persona(asked: Asked, stated: float) -> tuple[float, PersonaBy]:
    if asked.persona is not None:
        return asked.persona, "given"
    return (stated, "pack") if stated > 0.0 else (PERSONA, "default")
