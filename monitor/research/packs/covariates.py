"""Covariates for a pack: the directions in which prompts differ most, read off the benign texts.

Legend: n = exchanges, d = model width, c = covariates.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from monitor.errors import BadInput
from monitor.replay.model import load_model
from monitor.replay.residuals import ResidualReader, not_finite
from monitor.research.progress import Progress, quiet
from monitor.research.reading import packing_settings
from monitor.research.texts import DATA, load_texts
from monitor.score.fit import require_fit
from monitor.score.pack import Pack, save_pack
from monitor.values.arrays import Floats
from monitor.values.features import Covariate

DEFAULT: Final = 10
TEXTS_A_COVARIATE: Final = 8
"""Exchanges that each component needs, so that it is one of prompts and not of a few texts."""


def with_covariates(
    pack: Pack,
    model: Path,
    out: Path,
    count: int = DEFAULT,
    data: Path | None = None,
    progress: Progress = quiet,
    device: str = "cpu",
) -> Pack:
    """``pack`` with the first ``count`` principal components of benign prompts, saved to ``out``.

    They are read where most of its features are, so that no block more is run. Blocks for a minute.
    Raises `BadInput` for fewer texts than ``count`` needs, `PackError` for another model's pack.
    """
    settings = packing_settings(model, device)
    texts = load_texts(data or DATA).fit
    if not 1 <= count <= len(texts) // TEXTS_A_COVARIATE:
        raise BadInput(
            f"components: {len(texts)} benign exchanges allow 1 to {len(texts) // TEXTS_A_COVARIATE},"
            f" not {count}"
        )
    site = main_site(pack)
    loaded = load_model(settings, site)
    require_fit(pack, loaded.identity, f"the model in {model}")
    progress(f"reading the prompts of {len(texts)} benign exchanges at block {site}")
    residuals = ResidualReader(loaded, settings).mean_residuals(texts, [site], "prompt")[:, 0]
    present = residuals[~np.isnan(residuals).all(axis=1)]
    if not np.isfinite(present).all():
        raise not_finite(f"{loaded.model_id} gives residuals that are not finite")
    weights = leading(present, count)
    made = replace(
        pack,
        covariates=tuple(
            Covariate(name=f"prompt.{number}", site=site, region="prompt", weight=weight)
            for number, weight in enumerate(weights, 1)
        ),
        provenance={
            **pack.provenance,
            "covariates": {
                "method": "leading principal components of mean residuals over benign prompts",
                "site": site,
                "texts": len(present),
                "source": pack.pack_id,
            },
        },
    )
    save_pack(made, out)
    return made


def main_site(pack: Pack) -> int:
    """Where most features of ``pack`` are read."""
    return Counter(feature.site for feature in pack.features).most_common(1)[0][0]


def leading(residuals: Floats, count: int) -> Floats:
    """The ``count`` orthonormal directions [c, d] in which ``residuals`` [n, d] vary most.

    Each has its largest entry above 0: a sign would else be a matter of the library.
    """
    centred = residuals.astype(np.float64) - residuals.mean(axis=0, dtype=np.float64)
    _, _, rows = np.linalg.svd(centred, full_matrices=False)
    found = rows[:count]
    largest = np.take_along_axis(found, np.abs(found).argmax(axis=1)[:, None], axis=1)
    signed: Floats = (found * np.sign(largest)).astype(np.float32)
    return signed
