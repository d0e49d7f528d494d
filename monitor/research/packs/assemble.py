"""From features to a pack: calibration, tail thresholds and canaries, read by the production engine.

Legend: n = prompts, k = features.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import safetensors
import torch
import transformers

from monitor.replay.engine import ENGINE
from monitor.replay.model import LoadedModel
from monitor.research.packs.calibrate import fit_calibration, tail_threshold
from monitor.research.reading import Reader
from monitor.research.texts import Texts
from monitor.score.pack import Canary, Pack
from monitor.score.scorer import Scorer
from monitor.settings import ReplaySettings
from monitor.values.arrays import Counts, Floats
from monitor.values.features import Feature
from monitor.values.prompts import Prompt

TAIL_RATE: Final = 0.01
SITE_CONVENTION: Final = "layers.L, the output of the 0-based decoder block L"


def assembled(
    name: str,
    version: str,
    loaded: LoadedModel,
    texts: Texts,
    reader: Reader,
    kinds: Sequence[int] = (),
) -> tuple[Pack, tuple[Floats, Counts]]:
    """The features of ``reader`` as a pack: calibrated on ``texts.fit``, tails at `TAIL_RATE` of all benign texts.

    ``kinds`` are sizes of kinds of text at the end of ``texts.fit``: of none of them more than `TAIL_RATE` shall
    be tail either, where they are many enough to tell. Also returns the readings and pooled tokens [n, k] of ``(*texts.fit, *texts.check)``. Raises
    `BadInput` when a feature cannot be calibrated, for example a latent that benign text never wakes.
    """
    benign = reader.read("benign exchanges", (*texts.fit, *texts.check))
    fitted = len(texts.fit)
    pack = Pack(
        name=re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-."),
        version=version,
        model=loaded.identity,
        features=tuple(
            replace(
                feature,
                calibration=fit_calibration(benign[0][:fitted, index], benign[1][:fitted, index]),
            )
            for index, feature in enumerate(reader.features)
        ),
    )
    with_tails = replace(pack, features=_with_tails(pack, benign, _slices(fitted, kinds)))
    return replace(with_tails, canaries=_canaries(texts.canaries, reader)), benign


def _slices(end: int, sizes: Sequence[int]) -> list[slice]:
    """Where groups of ``sizes`` lie that stand one behind the other up to ``end``."""
    ends = [end - sum(sizes[index + 1 :]) for index in range(len(sizes))]
    return [slice(last - size, last) for last, size in zip(ends, sizes, strict=True)]


def _with_tails(
    pack: Pack, benign: tuple[Floats, Counts], kinds: Sequence[slice]
) -> tuple[Feature, ...]:
    scores = Scorer(pack).score(*benign)
    return tuple(
        replace(
            feature,
            tail_threshold=tail_threshold(feature.toward(scores[:, index]), TAIL_RATE, kinds),
        )
        for index, feature in enumerate(pack.features)
    )


def _canaries(texts: Mapping[str, Prompt], reader: Reader) -> tuple[Canary, ...]:
    readings, _ = reader.read("canaries", list(texts.values()))
    return tuple(
        Canary(name=name, readings=row, messages=prompt.messages, response=prompt.response)
        for (name, prompt), row in zip(texts.items(), readings, strict=True)
    )


def instrument(settings: ReplaySettings) -> dict[str, Any]:
    """What the readings were taken with, for a pack's provenance."""
    return {
        "replay": {
            "engine": ENGINE,
            "dtype": settings.dtype,
            "max_tokens": settings.max_tokens,
            "mask_special_tokens": settings.mask_special_tokens,
            "mask_template": settings.mask_template,
        },
        "libraries": {
            "numpy": np.__version__,
            "safetensors": safetensors.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
