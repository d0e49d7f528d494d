"""Build a pack from published vectors: read, checked and calibrated on benign text by the production engine.

Legend: d = model width, n = texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from monitor.errors import BadInput
from monitor.replay.model import LoadedModel, identity_of, load_model
from monitor.replay.residuals import ResidualReader, typical_lengths
from monitor.research.packs.assemble import SITE_CONVENTION, assembled, instrument
from monitor.research.packs.calibrate import UNCALIBRATED
from monitor.research.packs.figures import benign_figures, rounded
from monitor.research.progress import Progress, quiet
from monitor.research.reading import Reader, packing_settings
from monitor.research.texts import ASSISTANT, DATA, Texts, load_texts
from monitor.research.vectors.published import Asked, Vector, published
from monitor.score.pack import Pack, save_pack
from monitor.score.scorer import Scorer
from monitor.settings import ReplaySettings
from monitor.values.arrays import Counts, Floats
from monitor.values.features import WATCH_ONLY, Expected, Feature, Pooling, Region
from monitor.values.verdicts import UNJUDGED

LONGEST: Final = 100.0
"""A vector longer than this many typical residuals of its site is no difference of such residuals."""
SHORTEST: Final = 1e-8
"""Shorter than this share of one, it is rounding."""
MEASURED: Final = 64
"""Benign texts on which lengths and spreads are measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How vectors become features.

    ``names`` None: the files' names. ``region`` None: as the publisher averaged. ``rises`` and ``falls`` are names of
    vectors whose score rises, or falls, when the persona appears; of the others it is as their format says. Those that
    fall are tagged ``assistant`` in place of ``tags``. ``licence`` and ``source`` stand in the manifest. Raises `BadInput`.
    """

    licence: str
    source: str
    names: tuple[str, ...] = ()
    region: Region | None = None
    pooling: Pooling = "mean"
    rolling_tokens: int = 16
    skip_tokens: int = 1
    rises: tuple[str, ...] = ()
    falls: tuple[str, ...] = ()
    tags: tuple[str, ...] = ("misaligned",)

    def __post_init__(self) -> None:
        for option, text in (("--licence", self.licence), ("--source", self.source)):
            if not text.strip():
                raise BadInput(f"{option}: must not be empty", hint="write 'unknown' if it is")
        if both := sorted(set(self.rises) & set(self.falls)):
            raise BadInput(f"--rises and --falls both name {', '.join(both)}; choose one")
        if not all(tag.strip() for tag in self.tags):
            raise BadInput("--tag: a tag must not be empty")


def build_vector_pack(
    paths: Sequence[Path],
    asked: Asked,
    reading: Reading,
    model: Path,
    out: Path,
    progress: Progress = quiet,
    *,
    data: Path = DATA,
    device: str = "cpu",
) -> Pack:
    """The vectors of ``paths`` as unjudged features of a pack, saved to ``out``.

    Checked before and after the model is loaded: what the files say against the model's sizes, and the vectors'
    lengths against its residuals on benign text. Blocks for minutes. Raises `BadInput`, `ModelError`, `PackError`.
    """
    settings = packing_settings(model, device)
    vectors = _named(published(paths, asked, identity_of(settings)), reading)
    texts = load_texts(data, answers=False)
    loaded = load_model(settings, max(one.site for one in vectors))
    progress("measuring the model's residuals on benign text")
    typical = _check_lengths(vectors, loaded, settings, texts)
    features = _features(vectors, reading)
    spreads = _spreads(features, loaded, settings, texts)
    pack, benign = assembled(
        f"{loaded.model_id}-vectors", "1", loaded, texts,
        Reader(loaded, features, settings, progress),
    )  # fmt: skip
    pack = replace(
        pack,
        provenance=_provenance(vectors, features, reading, texts, settings),
        report=_report(pack, vectors, typical, spreads, benign, len(texts.fit)),
    )
    save_pack(pack, out)
    return pack


def _named(vectors: Sequence[Vector], reading: Reading) -> list[Vector]:
    """``vectors`` by the names that were given. Raises `BadInput` for names that do not fit."""
    if len({(one.path, one.name, one.layer) for one in vectors}) < len(vectors):
        raise BadInput("FILE…: one of the files is named twice")
    found = list(dict.fromkeys((one.path, one.name) for one in vectors))
    if reading.names and len(reading.names) != len(found):
        raise BadInput(
            f"--name: {len(reading.names)} names for {len(found)} vectors",
            hint="one for each file, or for each --tensor of each file, in their order",
        )
    names = dict(zip(found, reading.names or [name for _, name in found], strict=True))
    if len(set(names.values())) != len(names):
        raise BadInput(
            f"two vectors would have one name: {', '.join(sorted(names.values()))}",
            hint="name each with --name",
        )
    for option, given in (("--rises", reading.rises), ("--falls", reading.falls)):
        if strangers := sorted(set(given) - set(names.values())):
            raise BadInput(f"{option} {strangers[0]}: the vectors are {', '.join(names.values())}")
    return [replace(one, name=names[one.path, one.name]) for one in vectors]


def _features(vectors: Sequence[Vector], reading: Reading) -> list[Feature]:
    """Uncalibrated, of length one. A vector that is taken at several layers is called ``NAME.BLOCK``."""
    several = len({one.name for one in vectors}) < len(vectors)
    return [
        _feature(one, f"{one.name}.{one.site}" if several else one.name, reading) for one in vectors
    ]


def _feature(vector: Vector, name: str, reading: Reading) -> Feature:
    expected: Expected = vector.convention.expected
    if vector.name in (*reading.rises, *reading.falls):
        expected = "falls" if vector.name in reading.falls else "rises"
    weight: Floats = (vector.values / vector.length).astype(np.float32)
    return Feature(
        name=name,
        kind="direction",
        site=vector.site,
        region=reading.region or vector.convention.region,
        pooling=reading.pooling,
        rolling_tokens=reading.rolling_tokens,
        skip_tokens=reading.skip_tokens,
        weight=weight,
        calibration=UNCALIBRATED,
        expected=expected,
        tags=(
            "vector",
            *((ASSISTANT,) if expected == "falls" else reading.tags),
            UNJUDGED,
            WATCH_ONLY,
        ),
        description=f"layer {vector.layer} ({vector.convention.counting}) of {vector.path.name}, "
        f"format {vector.convention.format}",
    )


def _check_lengths(
    vectors: Sequence[Vector], loaded: LoadedModel, settings: ReplaySettings, texts: Texts
) -> dict[int, float]:
    """The typical length of a residual at each vector's site. Raises `BadInput` for a vector out of all proportion."""
    typical = typical_lengths(
        loaded, settings, texts.check[:MEASURED], [one.site for one in vectors]
    )
    for one in vectors:
        share = one.length / typical[one.site]
        if not SHORTEST <= share <= LONGEST:
            raise BadInput(
                f"{one.path}, layer {one.layer}: the vector is {one.length:.3g} long, a residual of "
                f"{loaded.model_id} behind block {one.site} {typical[one.site]:.3g}",
                hint="it was made for another model, or is no difference of residuals; a vector that "
                "was scaled for steering must be scaled back",
            )
    return typical


def _spreads(
    features: Sequence[Feature], loaded: LoadedModel, settings: ReplaySettings, texts: Texts
) -> list[float]:
    """How far benign texts differ along each feature: the deviation of their means along its weight, over the
    root mean square of that along all axes, which is what a random direction has."""
    reader, found = ResidualReader(loaded, settings), []
    for feature in features:
        means = reader.mean_residuals(
            texts.check[:MEASURED], [feature.site], feature.region, feature.skip_tokens
        )[:, 0]
        means = means[np.isfinite(means).all(axis=1)].astype(np.float64)
        if len(means) < 2:
            raise BadInput(f"{feature.name}: the benign texts have no {feature.region} to read")
        along = float(np.var(means @ feature.weight))
        found.append(float(np.sqrt(along / np.var(means, axis=0).mean())))
    return found


def _provenance(
    vectors: Sequence[Vector],
    features: Sequence[Feature],
    reading: Reading,
    texts: Texts,
    settings: ReplaySettings,
) -> dict[str, Any]:
    return {
        "method": "published vectors, of length one",
        "licence": reading.licence,
        "source": reading.source,
        "vectors": {
            feature.name: {
                "file": one.path.name,
                "sha256": one.sha256,
                "format": one.convention.format,
                "tensor": one.tensor,
                "layer": one.layer,
                "layers_are": one.convention.counting,
                "length": rounded(one.length),
            }
            for feature, one in zip(features, vectors, strict=True)
        },
        "texts_sha256": texts.sha256,
        "site_convention": SITE_CONVENTION,
        **instrument(settings),
    }


def _report(
    pack: Pack,
    vectors: Sequence[Vector],
    typical: Mapping[int, float],
    spreads: Sequence[float],
    benign: tuple[Floats, Counts],
    fitted: int,
) -> dict[str, Any]:
    scores = Scorer(pack).score(*benign)[fitted:]
    tokens = benign[1][fitted:]
    return {
        "note": "no held-out separation was measured for these vectors",
        "vectors": {
            feature.name: {
                "length_in_residuals": float(f"{one.length / typical[one.site]:.4g}"),
                "spread": rounded(spread),
                "benign": benign_figures(feature, scores[:, index], tokens[:, index]),
            }
            for index, (feature, one, spread) in enumerate(
                zip(pack.features, vectors, spreads, strict=True)
            )
        },
    }


def doubts(pack: Pack) -> list[str]:
    """Sentences on vectors along which benign text differs less than along a random direction."""
    return [
        f"{name}: benign texts differ {one['spread']:.2g} times as far along it as along a random direction; a "
        "vector of this model and block mostly reads more than one: are model, --layer and --layers-are right?"
        for name, one in pack.report["vectors"].items()
        if one["spread"] < 1.0
    ]
