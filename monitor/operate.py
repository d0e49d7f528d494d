"""What a person does beside the loops: baselines, alerts, silences, deliveries. Rows are plain JSON values."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection

from monitor.adjusting import adjusted_baseline
from monitor.drift import baseline as baselines
from monitor.drift.law import estimated
from monitor.drift.numerics import measured
from monitor.drift.tails import fewest
from monitor.errors import BadInput
from monitor.settings import Settings
from monitor.store.alerts import add_silence
from monitor.store.baselines import save_baseline
from monitor.store.identity import tallies
from monitor.store.laws import likelihoods_between
from monitor.store.packs import lineages_between, pack_features, pack_presence, served_models
from monitor.store.windows import read_windows
from monitor.values.alerts import Alert, Delivery, Silence
from monitor.values.drift import Baseline
from monitor.values.identity import BaselineFingerprint, Copy
from monitor.values.likelihood import NoLaw
from monitor.values.presence import PackPresence, foremost, several_live
from monitor.values.prompts import EVERYTHING
from monitor.values.surprise import Tally

Row = dict[str, Any]

SILENCED_LABELS = ("rule", "feature", "segment", "kind", "pack")
"""The labels of alerts. Severity is none: it changes while an alert is open."""


def capture_baseline(
    c: Connection,
    settings: Settings,
    *,
    name: str,
    start: datetime,
    end: datetime,
    now: datetime,
    pack: str | None = None,
) -> Baseline:
    """Freeze [start, end) of one pack's scores as a draft, and store it.

    The law of answers of which nobody says how they were drawn is estimated and kept with it, and how far weighed answers
    lie off what the copy would have said. With ``drift.adjust``, and a pack that reads its prompts, what the prompt alone
    lets a score be is frozen with it. ``pack``: see `pack_meant`. Both times are floored to whole buckets. Raises `BadInput` when no pack
    has scored anything yet, or the interval holds too few prompts.
    """
    pack_id = pack_meant(pack_presence(c, now), pack)
    bucket = settings.drift.bucket
    start, end = floored(start, bucket), floored(min(end, now), bucket)
    lineages = lineages_between(c, pack_id, start, end)
    features = pack_features(c, pack_id)
    captured = baselines.capture(
        read_windows(c, pack_id, baselines.intervals(start, end, bucket)),
        features,
        confidence=settings.drift.confidence,
        baseline_id=f"bl-{start:%Y%m%d}-{secrets.token_hex(4)}",
        pack_id=pack_id,
        name=name,
        start=start,
        end=end,
        created_at=now,
        fingerprint=BaselineFingerprint(
            copies=tuple(Copy.of(lineage.model_hash, lineage.dtype) for lineage in lineages),
            served_models=served_models(c, pack_id, start, end),
            facts={
                "bucket_seconds": f"{bucket.total_seconds():g}",
                "sampling_rate": f"{settings.ingest.sampling_rate:g}",
            },
        ),
        min_n=settings.drift.min_baseline_n,
    )
    untold = likelihoods_between(c, pack_id, start, end)
    if untold.n:
        captured = replace(captured, law=estimated(untold))
    answers = tallies(c, pack_id, start, end).get(EVERYTHING, Tally())
    captured = replace(captured, numerics=measured(answers, settings.identity.vouch_within))
    if settings.drift.adjust:
        captured = adjusted_baseline(c, captured, features, settings.drift)
    save_baseline(c, captured)
    return captured


TAILS_MEND: Final = (
    "Capture a baseline of traffic scored after the last worker from before schema revision 0003 had"
    " stopped, and approve it (docs/storage.md, Tails)."
)


def tails_not_known(c: Connection, baseline: Baseline) -> str:
    """A sentence that names the features whose tails this baseline does not know; empty: all known."""
    unknown = baselines.tails_not_known(baseline)
    if not unknown:
        return ""
    names = [f.name for f in pack_features(c, baseline.pack_id) if f.ordinal in unknown]
    return (
        f"the tail of {', '.join(names)} is not watched under {baseline.baseline_id}: the baseline's"
        " was counted on the wrong side, by workers of an earlier release"
    )


def tails_too_thin(c: Connection, baseline: Baseline, confidence: float) -> str:
    """A sentence that names the tail levels which this baseline is too small to watch; empty: none."""
    missing = baselines.levels_not_watched(baseline)
    if not missing:
        return ""
    names = {f.ordinal: f.name for f in pack_features(c, baseline.pack_id)}
    watched = {feature for feature, _ in baseline.streams}
    said = [
        f"the last {share:.1%} of "
        + ("any feature" if len(few) == len(watched) else ", ".join(names[one] for one in few))
        + f" (it takes {fewest(share, confidence)} prompts that do not depend on each other)"
        for share, few in missing.items()
    ]
    return f"{baseline.baseline_id} is too small to watch {', '.join(said)}"


def notes(c: Connection, baseline: Baseline, settings: Settings) -> tuple[str, ...]:
    """Sentences on what else is to be known of a baseline; none is empty."""
    told = (
        tails_too_thin(c, baseline, settings.drift.confidence),
        law_told(baseline),
        numerics_told(baseline, settings.identity.tolerance),
    )
    return tuple(one for one in told if one)


def law_told(baseline: Baseline) -> str:
    """A sentence on the answers of which nobody says how they were drawn; empty: there were none."""
    if baseline.law is None:
        return ""
    if isinstance(baseline.law, NoLaw):
        return (
            "answers whose records do not say how they were drawn are not weighed under "
            f"{baseline.baseline_id}: {baseline.law}"
        )
    return (
        "answers whose records do not say how they were drawn are weighed under "
        f"{baseline.baseline_id} by {baseline.law}"
    )


def numerics_told(baseline: Baseline, least: float) -> str:
    """A sentence on how far served model and copy compute apart, where that changes what is allowed for; else empty.

    ``least`` is ``identity.tolerance``, nats a token.
    """
    found = baseline.numerics
    if found is None or (not found.reason and found.bound <= least):
        return ""
    allowed = f"{found.tolerance(least):.3g} nats a token are allowed for"
    return f"weighed answers of {baseline.baseline_id} lie off what the copy would say by {found}; {allowed}"


def pack_meant(packs: Sequence[PackPresence], given: str | None) -> str:
    """The id of the pack that a person means by an id, the beginning of one, or nothing.

    Nothing means the only live pack; with none alive, the one that was seen last. Raises `BadInput`
    when there is no pack, or more than one could be meant.
    """
    if not packs:
        raise BadInput("no worker has registered a pack yet: start one, then capture the baseline")
    if given is None:
        if said := several_live(packs):
            raise BadInput(f"{said} Say which one is meant: --pack ID")
        meant = [foremost(packs)]
    else:
        meant = [pack for pack in packs if pack.pack_id.startswith(given)]
    if len(meant) != 1 or meant[0] is None:
        which = ", ".join(pack.pack_id for pack in packs)
        raise BadInput(f"pack: {given!r} is the beginning of {len(meant)} pack ids; known: {which}")
    return meant[0].pack_id


def floored(moment: datetime, bucket: timedelta) -> datetime:
    seconds = bucket.total_seconds()
    past = moment.timestamp() % seconds
    return moment - timedelta(seconds=past)


def silence(
    c: Connection,
    *,
    matchers: Mapping[str, str],
    length: timedelta,
    by: str,
    comment: str,
    now: datetime,
) -> Silence:
    """Keep alerts whose labels match (globs, all of them) from being announced for ``length``."""
    unknown = sorted(set(matchers) - set(SILENCED_LABELS))
    if unknown or not matchers:
        named = f"unknown label {unknown[0]!r}" if unknown else "no label given"
        raise BadInput(f"{named}: a silence matches on {', '.join(SILENCED_LABELS)}")
    made = Silence(
        silence_id=f"sil-{secrets.token_hex(6)}",
        matchers=matchers,
        starts_at=now,
        ends_at=now + length,
        created_by=by,
        comment=comment,
    )
    add_silence(c, made)
    return made


def alert_row(alert: Alert) -> Row:
    return {
        "alert_id": alert.alert_id,
        "state": str(alert.state),
        "severity": alert.severity,
        "rule": alert.rule,
        **{name: alert.labels[name] for name in ("feature", "segment") if name in alert.labels},
        **({"pack": alert.labels["pack"][:12]} if "pack" in alert.labels else {}),
        "since": alert.fired_at or alert.pending_since,
        "acknowledged_by": alert.acknowledged_by,
        "summary": alert.summary,
    }


def delivery_row(delivery: Delivery) -> Row:
    return {
        "delivery_id": delivery.delivery_id,
        "endpoint": delivery.endpoint,
        "event_id": delivery.event.event_id,
        "type": delivery.event.type,
        "state": str(delivery.state),
        "attempts": delivery.attempts,
        "next_attempt_at": delivery.next_attempt_at,
        "alert_id": delivery.event.alert_id,
    }


def silence_row(made: Silence) -> Row:
    return asdict(made) | {"matchers": dict(made.matchers)}
