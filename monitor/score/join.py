"""One pack out of several for the same model: a configuration takes a single one.

Legend: k = features, d = model width.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

import numpy as np

from monitor.errors import BadInput
from monitor.score.pack import Canary, Pack
from monitor.values.features import Encoder, Feature
from monitor.values.verdicts import SOURCES


def joined(packs: Sequence[Pack], name: str, version: str) -> Pack:
    """The features of ``packs``, in their order, as one pack: each reads and scores as it did before.

    Canaries hold the readings of all; covariates are those of the first pack that has any; top-k latents of equal encoders share one. Provenance and
    report keep those of each source under `SOURCES` and its name (with its id behind it where two
    have one name). Raises `BadInput` for fewer than two packs, packs of different models, a feature's
    name that two of them have, and canaries that are not the same texts.
    """
    if len(packs) < 2:
        raise BadInput(f"joining needs at least two packs, found {len(packs)}")
    first, *others = packs
    for other in others:
        _require_same_model(first, other)
        _require_same_canaries(first, other)
    _require_distinct(packs)
    sources = dict(zip(_titles(packs), packs, strict=True))
    return Pack(
        name=name,
        version=version,
        model=first.model,
        features=_sharing_encoders([feature for pack in packs for feature in pack.features]),
        canaries=_canaries(packs),
        covariates=next((pack.covariates for pack in packs if pack.covariates), ()),
        provenance={
            "method": "joined, every feature as it was in its source",
            SOURCES: {
                title: {
                    "name": pack.name,
                    "version": pack.version,
                    "id": pack.pack_id,
                    "features": [feature.name for feature in pack.features],
                    "provenance": dict(pack.provenance),
                }
                for title, pack in sources.items()
            },
        },
        report={SOURCES: {title: dict(pack.report) for title, pack in sources.items()}},
    )


def _require_same_model(one: Pack, two: Pack) -> None:
    """All but ``model_id`` is compared: that is a matter of where the model lies."""
    if differing := one.model.differences(two.model, unknown_differs=True):
        raise BadInput(
            f"{one.name} and {two.name} were made for different models: "
            f"their {', '.join(difference.field for difference in differing)} differ",
            hint="join packs of one model, or build them for it again",
        )


def _require_distinct(packs: Sequence[Pack]) -> None:
    counts = Counter(feature.name for pack in packs for feature in pack.features)
    clashing = [name for name, count in counts.items() if count > 1]
    if clashing:
        having = [p.name for p in packs if any(f.name in clashing for f in p.features)]
        raise BadInput(
            f"{', '.join(having)} each have a feature called {', '.join(clashing)}",
            hint="build one of them again under other names; an import takes --name",
        )


def _require_same_canaries(one: Pack, two: Pack) -> None:
    ours, theirs = ({_text(canary) for canary in pack.canaries} for pack in (one, two))
    if ours != theirs:
        names = sorted({str(text[0]) for text in ours ^ theirs})
        raise BadInput(
            f"{one.name} and {two.name} have other canaries: {', '.join(names)}",
            hint="build both with the same canaries.jsonl (--data)",
        )


def _text(canary: Canary) -> tuple[object, ...]:
    return canary.name, canary.messages, canary.text, canary.response


def _canaries(packs: Sequence[Pack]) -> tuple[Canary, ...]:
    by_text = [{_text(canary): canary.readings for canary in pack.canaries} for pack in packs]
    return tuple(
        dataclasses.replace(
            canary, readings=np.concatenate([readings[_text(canary)] for readings in by_text])
        )
        for canary in packs[0].canaries
    )


def _titles(packs: Sequence[Pack]) -> list[str]:
    """The packs' names; imports of one model all have the same."""
    counts = Counter(pack.name for pack in packs)
    return [
        pack.name if counts[pack.name] == 1 else f"{pack.name}-{pack.pack_id[:12]}"
        for pack in packs
    ]


def _sharing_encoders(features: Sequence[Feature]) -> tuple[Feature, ...]:
    """``features`` with one `Encoder` for all equal ones, and another name for others of its name."""
    kept: dict[str, Encoder] = {}
    placed: dict[int, Encoder] = {}
    for feature in features:
        encoder = feature.encoder
        if encoder is None or id(encoder) in placed:
            continue
        same = next((one for one in kept.values() if _equal(one, encoder)), None)
        if same is None:
            same = encoder
            number = 2
            while same.name in kept:
                same = dataclasses.replace(encoder, name=f"{encoder.name}.{number}")
                number += 1
            kept[same.name] = same
        placed[id(encoder)] = same
    return tuple(
        feature
        if feature.encoder is None
        else dataclasses.replace(feature, encoder=placed[id(feature.encoder)])
        for feature in features
    )


def _equal(one: Encoder, two: Encoder) -> bool:
    return (
        one.places == two.places
        and np.array_equal(one.weight, two.weight)
        and np.array_equal(one.bias, two.bias)
    )
