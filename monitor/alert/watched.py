"""Which open alerts nothing watches any more, and why. Pure.

An alert ends by its own windows, by what a person does (a rule is removed, a baseline retired), or
because no worker scores its pack any more. Only the first is "resolved".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase

from monitor.alert.health import of_pack
from monitor.alert.identity import is_identity
from monitor.alert.rules import FeatureInfo, matches
from monitor.alert.server_canaries import is_server
from monitor.alert.twin import is_twin
from monitor.settings import (
    DriftRule,
    IdentitySettings,
    ServerCanarySettings,
    SilenceRule,
    TwinSettings,
)
from monitor.values.alerts import Alert


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchedPack:
    """A pack that has a live worker, or had one lately enough (``drift.unwatched_after``)."""

    pack_id: str
    baseline_id: str | None
    """Its approved baseline; without one its drift is not watched."""
    features: Sequence[FeatureInfo]


def unwatched_because(
    alert: Alert,
    packs: Sequence[WatchedPack],
    *,
    last_seen: Mapping[str, datetime],
    rules: Sequence[DriftRule],
    silence_rules: Sequence[SilenceRule],
    identity: IdentitySettings,
    twin: TwinSettings,
    server: ServerCanarySettings,
) -> str | None:
    """Why nothing watches the alert any more, as a sentence; None while something does.

    ``last_seen``: when a worker of a pack was seen last, by pack id, of watched packs and others.
    """
    pack_id = alert.labels.get("pack", "")
    pack = next((pack for pack in packs if pack.pack_id == pack_id), None)
    if is_identity(alert):
        reason = _off(alert, "identity", "answers are not weighed any more", identity)
    elif is_twin(alert):
        reason = _off(alert, "twin", "the copy does not answer prompts any more", twin)
    elif is_server(alert):
        reason = _server_off(alert, server)
    else:
        reason = _by_a_person(alert, pack, rules, silence_rules)
    if reason is None and pack is None and (alert.kind == "drift" or of_pack(alert.rule)):
        seen = last_seen.get(pack_id)
        since = f"since {seen.astimezone(UTC):%Y-%m-%d %H:%M} UTC" if seen else "is known"
        reason = f"no worker of pack {pack_id} {since}"
    if reason is None:
        return None
    return f"no longer watched: {reason}; read last: {alert.summary}"


def _off(
    alert: Alert, section: str, what: str, settings: IdentitySettings | TwinSettings
) -> str | None:
    if settings.share == 0.0:
        return f"{what} ({section}.share is 0)"
    segment = alert.labels.get("segment", "")
    if settings.rule is None or not any(fnmatchcase(segment, p) for p in settings.rule.segments):
        return f"{section}.rule does not look at segment {segment}"
    return None


def _server_off(alert: Alert, server: ServerCanarySettings) -> str | None:
    if not server.on:
        return "the served endpoint is not asked any more (server_canaries.url is null)"
    if alert.labels.get("served") != server.model:
        return f"another model is asked for by now ({server.model})"
    return None if server.rule else "server_canaries.rule is null"


def _by_a_person(
    alert: Alert,
    pack: WatchedPack | None,
    rules: Sequence[DriftRule],
    silence_rules: Sequence[SilenceRule],
) -> str | None:
    """What somebody changed so that nothing watches the alert, if anything."""
    if alert.kind == "silence":
        if all(rule.name != alert.rule for rule in silence_rules):
            return f"no silence rule {alert.rule} is configured"
        if of_pack(alert.rule) and "pack" not in alert.labels:
            return f"{alert.rule} is now watched for each pack apart"
        return None
    if pack is None:
        return None
    feature, segment = alert.labels.get("feature", ""), alert.labels.get("segment", "")
    known = next((one for one in pack.features if one.name == feature), None)
    if known is None or not any(matches(rule, known, segment) for rule in rules):
        return f"no drift rule selects {feature} in segment {segment}"
    if pack.baseline_id is None:
        return f"pack {pack.pack_id} has no approved baseline"
    return None
