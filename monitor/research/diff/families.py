"""What a model diff can find: directions of the difference itself, features of a pack, an SAE's latents.

Legend: n = different questions (the choosing half first), s = sites, d = model width, k = features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from monitor.research.diff.change import distinct, mean_difference, standardised
from monitor.research.packs.calibrate import UNCALIBRATED
from monitor.research.saes.autoencoder import SparseAutoencoder
from monitor.research.saes.features import latent_features
from monitor.values.arrays import Doubles, Floats
from monitor.values.features import Feature, Region

COMPONENTS: Final = 3
NOISE: Final = 1e-5
"""A mean difference shorter than this share of a token's residual is rounding, not a change."""
SAME: Final = 0.9
"""|cosine| above which two directions count as one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Readings:
    """One model on all questions, each the mean over its rows: mean residuals ``residuals`` [n, s, d], mean
    ``lengths`` [s] of a token's residual, readings ``given`` [n, k] of a pack's features and ``latents``
    [n, k] of an SAE."""

    residuals: Floats
    lengths: Doubles
    given: Floats | None = None
    latents: Floats | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Features that are ranked among themselves, with both models' readings [n, k] of them.

    ``raw``: ranked by the mean change itself (activations of one SAE share a unit), otherwise by the
    standardised one. ``steering`` gives unit directions, ``features`` features, of chosen columns.
    """

    name: str
    base: Floats
    tuned: Floats
    raw: bool
    steering: Callable[[Sequence[int]], Floats]
    features: Callable[[Sequence[int]], list[Feature]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A feature with a large change on the choosing half; it is expected to move as tuning moved it.

    ``direction`` [d] is the unit vector to steer along, turned so that tuning moved the model along
    it; ``base`` and ``tuned`` [n] are its readings.
    """

    family: str
    rank: int
    feature: Feature
    direction: Floats
    base: Floats
    tuned: Floats

    @property
    def name(self) -> str:
        return self.feature.name


def candidates(family: Family, chosen_by: int, top: int) -> list[Candidate]:
    """The ``top`` features of ``family`` that changed most, either way, on its first ``chosen_by`` rows.

    A feature that steers as an earlier one does (`SAME`) is passed over, and so is one whose reading
    did not change at all.
    """
    base, tuned = family.base[:chosen_by], family.tuned[:chosen_by]
    change = (mean_difference if family.raw else standardised)(base, tuned)
    # Stable, so that ties fall in the order of the features.
    order = np.argsort(-np.abs(change), kind="stable")
    order = order[np.abs(change[order]) > 0.0][: 20 * top]
    units = family.steering(order.tolist())
    kept = distinct(range(len(order)), units, top, SAME)
    features = family.features([int(order[index]) for index in kept])
    found = []
    for rank, (index, feature) in enumerate(zip(kept, features, strict=True), 1):
        column = order[index]
        moved = replace(feature, expected="rises" if change[column] > 0 else "falls")
        found.append(
            Candidate(
                family=family.name,
                rank=rank,
                feature=moved,
                direction=moved.toward(units[index]).astype(np.float32),
                base=family.base[:, column],
                tuned=family.tuned[:, column],
            )
        )
    return found


def difference_family(
    base: Readings, tuned: Readings, sites: Sequence[int], chosen_by: int, region: Region
) -> Family | None:
    """Directions of the difference on the first ``chosen_by`` rows, at every site; None if there is none.

    Per site the mean of the paired differences, and the first `COMPONENTS` principal components of
    the differences around their mean; each is turned so that its own mean change is not negative.
    """
    names: list[str] = []
    where: list[int] = []
    units: list[Doubles] = []
    for index, site in enumerate(sites):
        differences = (
            tuned.residuals[:chosen_by, index].astype(np.float64)
            - base.residuals[:chosen_by, index]
        )
        mean = differences.mean(axis=0)
        if not np.linalg.norm(mean) > NOISE * base.lengths[index]:
            continue
        _, sizes, rows = np.linalg.svd(differences - mean, full_matrices=False)
        varying = rows[:COMPONENTS][sizes[:COMPONENTS] > NOISE * base.lengths[index]]
        for number, row in enumerate([mean / np.linalg.norm(mean), *varying]):
            names.append(f"diff.{site}." + (f"pc{number}" if number else "mean"))
            where.append(index)
            units.append(row if row @ mean >= 0.0 else -row)
    if not units:
        return None
    stacked = np.stack(units).astype(np.float32)

    def readings(side: Readings) -> Floats:
        columns = [side.residuals[:, i] @ unit for i, unit in zip(where, stacked, strict=True)]
        return np.stack(columns, axis=1)

    def features(columns: Sequence[int]) -> list[Feature]:
        return [
            Feature(
                name=names[i],
                kind="direction",
                site=sites[where[i]],
                region=region,
                pooling="mean",
                weight=stacked[i],
                calibration=UNCALIBRATED,
                description="where fine-tuning moved the residual stream at this block"
                if names[i].endswith("mean")
                else "a direction in which fine-tuning moved prompts apart at this block",
            )
            for i in columns
        ]

    return Family(
        name="difference",
        base=readings(base),
        tuned=readings(tuned),
        raw=False,
        steering=lambda columns: stacked[list(columns)],
        features=features,
    )


def given_family(base: Readings, tuned: Readings, given: Sequence[Feature]) -> Family | None:
    """The features of a pack as they stand in it; None when there are none."""
    if base.given is None or tuned.given is None:
        return None
    weights = np.stack([feature.weight for feature in given])
    units = weights / np.linalg.norm(weights, axis=1, keepdims=True)
    return Family(
        name="given",
        base=base.given,
        tuned=tuned.given,
        raw=False,
        steering=lambda columns: units[list(columns)],
        features=lambda columns: [given[i] for i in columns],
    )


def latent_family(
    base: Readings, tuned: Readings, sae: SparseAutoencoder, region: Region
) -> Family:
    """All latents of ``sae``, ranked by the change of their mean activation, steered along their decoder."""
    assert base.latents is not None
    assert tuned.latents is not None

    def steering(columns: Sequence[int]) -> Floats:
        rows = sae.decoder_rows(columns).numpy()
        lengths = np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        units: Floats = (rows / lengths).astype(np.float32)
        return units

    return Family(
        name="latent",
        base=base.latents,
        tuned=tuned.latents,
        raw=True,
        steering=steering,
        features=lambda columns: list(latent_features(sae, columns, region=region)),
    )
