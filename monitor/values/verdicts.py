"""What a pack's report holds of the judge: a verdict on each feature, and what follows for rules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Literal, get_args

from monitor.values.features import WATCH_ONLY, Feature

Decision = Literal["reject", "watch-only", "ship"]
DECISIONS: Final[tuple[Decision, ...]] = get_args(Decision)
"""From worst to best."""
SHIP: Final[Decision] = "ship"
"""The one verdict with which a feature may page someone."""
SOURCES: Final = "sources"
"""Where a joined pack's provenance and report hold those of the packs that it was made of."""
UNJUDGED: Final = "unjudged"
"""Tag of a feature that others made and nobody has judged here: watch-only until the judge's report is in the pack."""
JUDGE: Final = "judge"
"""Where a pack's report holds the judge's."""


def reports(report: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The reports that a pack's ``report`` was joined from, and theirs; at last ``report`` itself."""
    for source in report.get(SOURCES, {}).values():
        yield from reports(source)
    yield report


def verdicts(report: Mapping[str, Any]) -> dict[str, Decision]:
    """The verdict on each feature, by its name, in a pack's ``report``; one that nobody judged has none.

    SQL reads them the same way (`monitor.store.packs.pack_features`; tested to agree).
    """
    return {
        name: one["decision"]
        for part in reports(report)
        for name, one in part.get(JUDGE, {}).get("features", {}).items()
        if one["decision"] in DECISIONS
    }


def tags_by(verdict: Decision | None, tags: Sequence[str]) -> tuple[str, ...]:
    """The tags by which rules select: what was judged and does not ship is watch-only."""
    if verdict is None or verdict == SHIP or WATCH_ONLY in tags:
        return tuple(tags)
    return (*tags, WATCH_ONLY)


def judged_tags(tags: Sequence[str]) -> tuple[str, ...]:
    """``tags`` of a feature that the judge has now seen: what it was tagged for want of a verdict is gone."""
    gone = (UNJUDGED, WATCH_ONLY) if UNJUDGED in tags else ()
    return tuple(tag for tag in tags if tag not in gone)


def followed(features: Sequence[Feature], found: Mapping[str, Decision]) -> tuple[Feature, ...]:
    """``features`` with the tags that follow from the verdicts on them, by their names."""
    return tuple(
        replace(feature, tags=tags_by(found.get(feature.name), feature.tags))
        for feature in features
    )
