"""A pack with fewer features: without what a judge rejected, for instance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from monitor.errors import BadInput
from monitor.score.pack import Pack
from monitor.values.features import picked, selected


def selection(pack: Pack, selectors: Sequence[str]) -> Pack:
    """``pack`` with the features that ``selectors`` pick, as a rule of drift does; each reads as it did before.

    The report stays whole, with the figures of what is left out; provenance names it. Raises `BadInput`
    for a selector that picks none of the features, and when none or all of them would stay.
    """
    for selector in selectors:
        bare = selector.removeprefix("!")
        if not any(selected(bare, one.name, one.tags) for one in pack.features):
            raise BadInput(
                f"{selector!r} is none of the features of {pack.name}",
                hint=f"it has {', '.join(one.name for one in pack.features)}",
            )
    # With nothing but what is left out, all else stays.
    asked = selectors if any(not one.startswith("!") for one in selectors) else ("*", *selectors)
    kept = [index for index, one in enumerate(pack.features) if picked(asked, one.name, one.tags)]
    if len(kept) in (0, len(pack.features)):
        raise BadInput(
            f"{' '.join(selectors)} leaves {'nothing' if not kept else 'everything'} in {pack.name}",
            hint="give names, globs or tag:GLOB of features to keep, or with ! before them to leave out",
        )
    left_out = [one.name for index, one in enumerate(pack.features) if index not in kept]
    return replace(
        pack,
        features=tuple(pack.features[index] for index in kept),
        canaries=tuple(replace(one, readings=one.readings[kept]) for one in pack.canaries),
        provenance={
            **pack.provenance,
            "selected": {"of": pack.pack_id, "left_out": left_out},
        },
    )
