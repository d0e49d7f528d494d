"""How much of a score is the instrument: the same texts under another dtype and other batch shapes.

Legend: n = texts, k = features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from monitor.replay.model import LoadedModel, load_model
from monitor.research.progress import Progress
from monitor.research.reading import Reader
from monitor.score.pack import Pack
from monitor.settings import ReplaySettings
from monitor.values.arrays import Doubles, Floats
from monitor.values.prompts import Prompt

SMALL_BATCH: Final = 64
BATCH_SHAPES: Final[Mapping[str, Mapping[str, object]]] = {
    "prefixes not shared": {"share_prefixes": False},
    "small batches": {"batch_tokens": SMALL_BATCH, "share_prefixes": False},
}
DTYPE: Final = "bfloat16"


def batch_noise(
    pack: Pack,
    loaded: LoadedModel,
    settings: ReplaySettings,
    prompts: Sequence[Prompt],
    progress: Progress,
) -> dict[str, Doubles]:
    """Largest change of each score [k] over ``prompts``, by what was changed (`BATCH_SHAPES`).

    The reference shares prefixes of any length worth a mention and fills whole batches.
    """
    sharing = settings.model_copy(update={"share_prefixes": True, "min_shared_tokens": 8})
    reference = scores(pack, loaded, sharing, prompts, progress, "texts in full batches")
    return {
        name: largest_change(
            reference,
            scores(pack, loaded, settings.model_copy(update=change), prompts, progress, name),
        )
        for name, change in BATCH_SHAPES.items()
    }


def dtype_noise(
    pack: Pack,
    settings: ReplaySettings,
    prompts: Sequence[Prompt],
    reference: Floats,
    progress: Progress,
) -> Doubles:
    """Root mean square change of each score [k] from ``reference`` [n, k] when read in bfloat16.

    Loads the model again, so let go of the other copy before.
    """
    coarse = settings.model_copy(update={"dtype": DTYPE})
    loaded = load_model(coarse, pack.deepest_site)
    found = scores(pack, loaded, coarse, prompts, progress, f"texts in {DTYPE}")
    change: Doubles = np.sqrt(np.nanmean(np.square(found.astype(np.float64) - reference), axis=0))
    return change


def scores(
    pack: Pack,
    loaded: LoadedModel,
    settings: ReplaySettings,
    prompts: Sequence[Prompt],
    progress: Progress,
    what: str,
) -> Floats:
    """Scores [n, k] of ``prompts`` as read under ``settings``."""
    return Reader(loaded, pack.features, settings, progress).scores(what, prompts)


def largest_change(a: Floats, b: Floats) -> Doubles:
    change: Doubles = np.nanmax(np.abs(a.astype(np.float64) - b.astype(np.float64)), axis=0)
    return change
