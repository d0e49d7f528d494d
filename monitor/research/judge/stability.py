"""Would other questions have given the same direction? Rebuilt from halves of the training questions.

Legend: q = questions, d = model width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from monitor.replay.residuals import ResidualReader
from monitor.research.contrast.directions import Side, components, difference, read_sides
from monitor.research.contrast.probe import fit_probe
from monitor.research.judge.readings import Readings
from monitor.research.judge.separation import target_of
from monitor.research.progress import Progress
from monitor.research.statistics import auc
from monitor.research.texts import Texts
from monitor.score.pack import Pack
from monitor.values.arrays import Doubles, Floats
from monitor.values.features import Feature

SPLITS: Final = 10
"""Random halvings: twenty rebuilt directions for each feature."""
BENIGN_TEXTS: Final = 96
"""Benign texts that say which components to project out; the build itself takes all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stability:
    """``halves`` [s] are cosines between directions from complementary halves, ``whole`` [2 s] those
    with the pack's weight; ``aucs`` [2 s] what the rebuilt ones make of the held-out answers."""

    halves: Doubles
    whole: Doubles
    aucs: Doubles


def applies(pack: Pack, feature: Feature, texts: Texts) -> bool:
    """Whether ``feature`` can be rebuilt: it was built by contrast from these very texts."""
    return (
        pack.provenance.get("texts_sha256") == texts.sha256
        and feature.kind in ("direction", "probe")
        and feature.region == "response"
        and feature.input_norm == "none"
        # A learned read-out is not a difference of means, and would be held against one.
        and feature.name.partition(".")[0] not in pack.provenance.get("read_outs", {})
        and "questions" in pack.provenance
    )


def stability(
    readings: Readings,
    reader: ResidualReader,
    generator: np.random.Generator,
    progress: Progress,
) -> Mapping[int, Stability]:
    """By index of the feature, for those that it applies to; features of one weight share the work.

    Means are rebuilt whatever the pooling of the feature: pooling does not change its direction.
    """
    pack, texts = readings.pack, readings.texts
    indices = [i for i, f in enumerate(pack.features) if applies(pack, f, texts)]
    if not indices:
        return {}
    sites = sorted({pack.features[index].site for index in indices})
    progress(f"rebuilding directions at {len(sites)} sites")
    sides = read_sides(reader, texts, sites)
    every = max(1, len(texts.fit) // BENIGN_TEXTS)
    benign = reader.mean_residuals(texts.fit[::every][:BENIGN_TEXTS], sites, "response")
    done: dict[tuple[int, bytes], Stability] = {}
    found = {}
    for index in indices:
        feature = pack.features[index]
        key = feature.site, feature.weight.tobytes()
        if key not in done:
            at = sites.index(feature.site)
            personas = [sides[p] for p in target_of(readings, index).personas]
            persona = Side(
                np.mean([side.train[:, at] for side in personas], axis=0),
                np.mean([side.held_out[:, at] for side in personas], axis=0),
            )
            good = Side(sides[None].train[:, at], sides[None].held_out[:, at])
            pair = (persona, good) if feature.sign > 0 else (good, persona)
            done[key] = rebuilt(feature, *pair, benign[:, at], generator)
        found[index] = done[key]
    return found


def rebuilt(
    feature: Feature, high: Side, low: Side, benign: Floats, generator: np.random.Generator
) -> Stability:
    """``high`` and ``low`` [q, d]: answers that the feature rises and falls on."""
    nuisance = components(benign)
    scale = benign.std(axis=0, dtype=np.float64)
    halves, whole, aucs = [], [], []
    for _ in range(SPLITS):
        order = generator.permutation(len(high.train))
        weights = []
        for part in np.array_split(order, 2):
            pair = high.train[part], low.train[part]
            weight = (
                fit_probe(*pair, scale)[0]
                if feature.kind == "probe"
                else difference(*pair, nuisance)
            )
            weights.append(weight)
            whole.append(cosine(weight, feature.weight))
            aucs.append(auc(high.held_out @ weight, low.held_out @ weight))
        halves.append(cosine(*weights))
    return Stability(halves=np.array(halves), whole=np.array(whole), aucs=np.array(aucs))


def cosine(a: Floats, b: Floats) -> float:
    lengths = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
    return float(a.astype(np.float64) @ b.astype(np.float64)) / max(lengths, 1e-30)
