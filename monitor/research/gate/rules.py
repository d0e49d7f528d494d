"""Which features a gate watches, and the margins that their shifts are held to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from monitor.errors import BadInput
from monitor.values.features import WATCH_ONLY, Feature, selected

SHIFT: Final = 0.3
"""Default margin of a mean shift, in benign standard deviations: where the monitor itself warns."""
TAIL: Final = 0.05
"""Default margin of the difference of tail rates: one prompt in twenty."""
_FORM: Final = 'write "SELECTOR shift=0.3 tail=0.05", "SELECTOR tail=off" or "SELECTOR ignore"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Margins:
    """``shift`` in score units, ``tail`` a difference of rates; None: the tail is not judged."""

    shift: float = SHIFT
    tail: float | None = TAIL


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What holds for the features that ``selects`` picks: names or globs, ``tag:NAME`` picks by tag.

    A margin of None stays as earlier rules left it.
    """

    selects: str
    ignore: bool = False
    shift: float | None = None
    tail: float | None = None
    tail_off: bool = False

    def picks(self, feature: Feature) -> bool:
        return selected(self.selects, feature.name, feature.tags)


def parse_rule(text: str) -> Rule:
    """``tag:misaligned shift=0.2 tail=0.02``, ``*.peak tail=off``, ``assistant ignore``.

    Raises `BadInput` for anything else.
    """
    selects, *words = text.split() or [""]
    if not words:
        raise BadInput(f"--rule {text!r} says nothing about its features", hint=_FORM)
    rule = Rule(selects=selects)
    for word in words:
        name, _, value = word.partition("=")
        if word == "ignore":
            rule = replace(rule, ignore=True)
        elif word == "tail=off":
            rule = replace(rule, tail_off=True)
        elif name == "shift":
            rule = replace(rule, shift=_margin(text, value, math.inf))
        elif name == "tail":
            rule = replace(rule, tail=_margin(text, value, 1.0))
        else:
            raise BadInput(f"--rule {text!r}: {word!r} is unknown", hint=_FORM)
    if (rule.ignore and len(words) > 1) or (rule.tail_off and rule.tail is not None):
        raise BadInput(f"--rule {text!r} contradicts itself", hint=_FORM)
    return rule


def watched(features: Sequence[Feature], rules: Sequence[Rule]) -> dict[int, Margins]:
    """The margins of each watched feature by its index; of several rules for one, the last word holds.

    Without rules, every feature that is not tagged watch-only is held to the default margins. Raises
    `BadInput` when a rule picks nothing, or when nothing is left to watch.
    """
    margins: dict[int, Margins] = {
        index: Margins() for index, feature in enumerate(features) if WATCH_ONLY not in feature.tags
    }
    for rule in rules:
        picked = [index for index, feature in enumerate(features) if rule.picks(feature)]
        if not picked:
            raise BadInput(
                f"--rule {rule.selects!r} picks no feature",
                hint="the pack has " + ", ".join(feature.name for feature in features),
            )
        for index in picked:
            if rule.ignore:
                margins.pop(index, None)
                continue
            before = margins.get(index, Margins())
            tail = before.tail if rule.tail is None else rule.tail
            margins[index] = Margins(
                shift=before.shift if rule.shift is None else rule.shift,
                tail=None if rule.tail_off else tail,
            )
    if not margins:
        raise BadInput(
            "no feature of the pack is watched: rules ignore them, or they are tagged watch-only",
            hint='name one, for example --rule "NAME shift=0.3"',
        )
    return margins


def _margin(text: str, value: str, most: float) -> float:
    try:
        margin = float(value)
    except ValueError:
        margin = math.nan
    if not 0.0 < margin < most:
        upper = "" if math.isinf(most) else f" and below {most:g}"
        raise BadInput(f"--rule {text!r}: {value!r} is no margin: above 0{upper}", hint=_FORM)
    return margin
