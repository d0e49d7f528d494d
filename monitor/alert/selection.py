"""Which rules can select nothing: what never fires is not to be read as "nothing happened". Pure."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from monitor.alert.rules import FeatureInfo, rank, watches
from monitor.settings import DriftRule, Settings
from monitor.values.features import selected
from monitor.values.prompts import CANARY, WHOLE

_MOST_NAMED = 12
"""Longer lists of names are cut in a sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Blind:
    """Something configured that can select nothing: where it stands, why, and how to mend it."""

    where: str
    why: str
    mend: str


def blind(settings: Settings, features: Sequence[FeatureInfo] | None) -> list[Blind]:
    """What of the rules and endpoints can select nothing, whatever the traffic will be.

    ``features`` are those of the pack in use; None: not known, and only segments are looked at.
    A selector beside others that do select is named as well: it was meant to select something.
    """
    rules = settings.drift.rules
    if not rules:
        return [
            Blind(
                where="drift.rules",
                why="there is no rule: no drift is ever told",
                mend="Add one, or leave drift.rules out for the default ones.",
            )
        ]
    found: list[Blind] = []
    for rule in rules:
        if features is not None:
            found += _features(rule, features)
        found += _segments(rule, settings.ingest.segment_keys)
    return [*found, *_deaf(settings)]


# --- features and tags ---------------------------------------------------------------------------


def _features(rule: DriftRule, features: Sequence[FeatureInfo]) -> Iterator[Blind]:
    where = f"rule {rule.name}"
    names = [feature.name for feature in features]
    tags = sorted({tag for feature in features for tag in feature.tags})
    known = [*names, *(f"tag:{tag}" for tag in tags)]
    none = False
    for selector in rule.features:
        bare = selector.removeprefix("!")
        if any(selected(bare, feature.name, feature.tags) for feature in features):
            continue
        near = _near(bare, known)
        if selector.startswith("!"):
            # What leaves out nothing does no harm, unless it is a slip of the pen.
            if near:
                yield Blind(
                    where=where,
                    why=f"features: {selector!r} leaves out none of the pack's features",
                    mend=f"Did you mean '!{near}'?",
                )
            continue
        none = True
        yield Blind(
            where=where,
            why=f"features: {selector!r} selects none of the pack's features",
            mend=f"Did you mean {near!r}?" if near else f"The pack knows {_some(known)}.",
        )
    if not none and not any(watches(rule, feature) for feature in features):
        yield Blind(
            where=where,
            why="features: all that it selects is left out again",
            mend=f"The pack knows {_some(known)}.",
        )


# --- segments ------------------------------------------------------------------------------------


def _segments(rule: DriftRule, keys: Sequence[str]) -> Iterator[Blind]:
    where = f"rule {rule.name}"
    for pattern in rule.segments:
        if any(fnmatch.fnmatchcase(segment, pattern) for segment in WHOLE):
            continue
        if any(_can_match_behind(f"{key}=", pattern) for key in keys):
            continue
        key, is_pair, _ = pattern.partition("=")
        plain = is_pair and re.fullmatch(r"[A-Za-z0-9_.\-/]+", key)
        if fnmatch.fnmatchcase(CANARY, pattern):
            mend = f"{CANARY!r} is reserved and raises no alert; name another segment."
        elif near := _near(key if is_pair else pattern, keys if is_pair else WHOLE):
            mend = f"Did you mean {near + pattern[len(key) :] if is_pair else near!r}?"
        elif plain:
            mend = f"Add {key} to ingest.segment_keys, or take the pattern out."
        else:
            known = [*WHOLE, *(f"{one}=…" for one in keys)]
            mend = f"Segments are {_some(known)}; keys come from ingest.segment_keys."
        yield Blind(
            where=where,
            why=f"segments: {pattern!r} can select nothing with ingest.segment_keys {list(keys)}",
            mend=mend,
        )


_STARS = re.compile(r"\*+")
_PIECES = re.compile(r"\*|\?|\[!?\]?[^\]]*\]|.", re.DOTALL)


def _can_match_behind(prefix: str, pattern: str) -> bool:
    """Is there a text that begins with ``prefix``, goes on behind it, and matches the glob?"""
    pieces = _PIECES.findall(_STARS.sub("*", pattern))

    def with_stars_passed(places: set[int]) -> set[int]:
        # No two stars stand beside one another.
        stars = {place for place in places if place < len(pieces) and pieces[place] == "*"}
        return places | {place + 1 for place in stars}

    places = with_stars_passed({0})
    for character in prefix:
        places = with_stars_passed(
            {
                place + (pieces[place] != "*")
                for place in places
                if place < len(pieces) and fnmatch.fnmatchcase(character, pieces[place])
            }
        )
    return any(place < len(pieces) for place in places)


# --- endpoints -----------------------------------------------------------------------------------


def _deaf(settings: Settings) -> Iterator[Blind]:
    rules, silence_rules = settings.drift.rules, settings.drift.silence_rules
    severities = {severity for rule in rules for severity in rule.severities}
    severities |= {rule.severity for rule in silence_rules}
    gravest = max(severities, key=rank)
    for endpoint in settings.alerts.endpoints:
        if rank(endpoint.min_severity) > rank(gravest):
            yield Blind(
                where=f"min_severity of endpoint {endpoint.name}",
                why=f"no rule reaches {endpoint.min_severity}: it is told of nothing",
                mend=f"Lower it to {gravest}, or give a rule that severity.",
            )


# --- words ---------------------------------------------------------------------------------------


def _near(given: str, known: Sequence[str]) -> str | None:
    return next(iter(difflib.get_close_matches(given, known, n=1, cutoff=0.7)), None)


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_MOST_NAMED])
    return f"{shown} …" if len(names) > _MOST_NAMED else shown or "none"
