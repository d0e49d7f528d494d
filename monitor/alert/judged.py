"""May the features page that the rules select? The judge's verdicts in the pack say so. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from monitor.alert.rules import FeatureInfo, watches
from monitor.errors import RefuseToStart
from monitor.settings import DriftRule, Settings
from monitor.values.verdicts import SHIP, Decision

ALLOW = "pack.allow_unjudged: true"


def not_shown(
    rules: Sequence[DriftRule],
    features: Sequence[FeatureInfo],
    verdicts: Mapping[str, Decision],
) -> tuple[str, ...]:
    """Sentences: which rule pages on a feature without a verdict, or with one below ship.

    The ``features`` have the tags that follow from the verdicts (`tags_by`), so the default selection leaves
    out what does not ship; a rule that names it does not.
    """
    found = []
    for rule in rules:
        names = [feature.name for feature in features if watches(rule, feature)]
        if unjudged := [name for name in names if name not in verdicts]:
            found.append(
                f"rule {rule.name} pages on {', '.join(unjudged)}, of which the pack holds no judge's "
                "verdict"
            )
        found += [
            f"rule {rule.name} pages on {name}, which the pack's judge calls {verdicts[name]}"
            for name in names
            if verdicts.get(name, SHIP) != SHIP
        ]
    return tuple(found)


def require_judged(
    settings: Settings,
    pack: str,
    features: Sequence[FeatureInfo],
    verdicts: Mapping[str, Decision],
) -> tuple[str, ...]:
    """What is not shown of the pack called ``pack`` and is allowed; empty when everything is shown.

    Raises `RefuseToStart` for what is not allowed.
    """
    found = not_shown(settings.drift.rules, features, verdicts)
    if found and not settings.pack.allow_unjudged:
        raise RefuseToStart(
            f"pack {pack}: {'; '.join(found)}",
            hint="Judge the pack (`monitor pack judge PACK --model PATH --write`), and leave what does not "
            f"ship out of the rule's features; or set {ALLOW}.",
        )
    return found
