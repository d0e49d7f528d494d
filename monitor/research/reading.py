"""Texts as the production engine reads them, with one policy for what cannot be read.

- A text that cannot be replayed is refused: `BadInput`, naming it and why.
- Readings that are not finite are the model's fault, not the text's: `ModelError`.
- A text without a token for any feature is *absent*: NaN, over 0 tokens. Where every text is needed
  (a pack is built from them), it is refused like the first.

Nothing is passed over in silence.

Legend: n = texts, k = features, s = sites, d = model width.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from monitor.errors import BadInput, MonitorError
from monitor.replay.engine import ReplayEngine
from monitor.replay.model import LoadedModel, identity_of, load_model
from monitor.replay.residuals import ResidualReader, not_finite
from monitor.research.progress import Progress, quiet
from monitor.score.scorer import standardised
from monitor.settings import ReplaySettings
from monitor.values.arrays import Counts, Floats
from monitor.values.features import Feature
from monitor.values.prompts import DeadReason, Prompt
from monitor.values.scores import Replayed, Unreplayable


def replay_settings(model: Path, device: str) -> ReplaySettings:
    """How research reads ``model``: in float32 on the CPU, elsewhere in the model's own type."""
    return ReplaySettings(
        model=model, device=device, dtype="float32" if device == "cpu" else "auto"
    )


def packing_settings(model: Path, device: str) -> ReplaySettings:
    """How packs are built and judged: in float32 on any device, for readings that differ by last bits alone."""
    return ReplaySettings(model=model, device=device, dtype="float32")


def layers_of(settings: ReplaySettings) -> int:
    """Decoder blocks of the model of ``settings``, which is not loaded for it."""
    return identity_of(settings).layers


def load_whole(settings: ReplaySettings) -> LoadedModel:
    """The model of ``settings`` with all blocks and its LM head: it can answer and weigh answers."""
    return load_model(settings, layers_of(settings) - 1, full=True)


@contextmanager
def opened(settings: ReplaySettings, deepest_site: int | None = None) -> Iterator[LoadedModel]:
    """The model of ``settings`` up to ``deepest_site`` (null: whole), after the last one has gone."""
    # A model that went out of scope may hang in a cycle, and there is room for one.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    yield load_whole(settings) if deepest_site is None else load_model(settings, deepest_site)


class Reader:
    """``features`` read off one loaded model, in the order and by the policy of this module."""

    def __init__(
        self,
        loaded: LoadedModel,
        features: Sequence[Feature],
        settings: ReplaySettings,
        progress: Progress = quiet,
        *,
        piece: int | None = None,
    ) -> None:
        """``piece``: texts replayed at once (null: all). Raises `PackError` when the features are not
        as wide as the model."""
        self.features = tuple(features)
        self._engine = ReplayEngine(loaded, features, settings)
        self._model = loaded.model_id
        self._progress = progress
        self._piece = piece

    def read(
        self, what: str, prompts: Sequence[Prompt], *, absent: bool = False
    ) -> tuple[Floats, Counts]:
        """Readings [n, k] and pooled tokens [n, k]; ``absent`` texts are NaN when allowed. Blocks."""
        shape = len(prompts), len(self.features)
        readings, tokens = np.full(shape, np.nan, np.float32), np.zeros(shape, np.int64)
        step = self._piece or max(len(prompts), 1)
        for start in range(0, len(prompts), step):
            piece = prompts[start : start + step]
            self._progress(f"reading {what}: {start + len(piece)} of {len(prompts)}")
            for row, one in enumerate(self._engine.replay(piece), start):
                if isinstance(one, Replayed):
                    readings[row], tokens[row] = one.readings, one.pooled_tokens
                elif not (absent and one.reason is DeadReason.NO_TOKENS):
                    raise refusal(f"{what}, number {row + 1}", self._model, one)
        return readings, tokens

    def scores(self, what: str, prompts: Sequence[Prompt]) -> Floats:
        """Scores [n, k] by the features' calibration: 0 benign, 1 a deviation; absent is NaN. Blocks."""
        return standardised(self.features, *self.read(what, prompts, absent=True))


def refusal(what: str, model: str, one: Unreplayable) -> MonitorError:
    """The error for ``one``, which is called ``what``, by the policy of this module."""
    if one.reason is DeadReason.NON_FINITE:
        return not_finite(f"{model} gives readings that are not finite ({what})")
    return BadInput(f"{what} cannot be replayed: {one.reason.value} {one.detail}".rstrip())


def response_residuals(
    reader: ResidualReader, prompts: Sequence[Prompt], sites: Sequence[int]
) -> Floats:
    """Mean residuals over the responses of ``prompts`` at ``sites``, float32 [n, s, d], all finite.

    Raises `ModelError` where they are not, `BadInput` for a response without a token to read.
    """
    found = reader.mean_residuals(prompts, sites, "response")
    broken = ~np.isfinite(found).all(axis=(1, 2))
    if not broken.any():
        return found
    silent = np.array(reader.token_counts(prompts, "response")) == 0
    if silent.any():
        raise BadInput(f"response {int(np.argmax(silent)) + 1} has no token to read")
    raise not_finite(
        f"{reader.loaded.model_id} gives residuals that are not finite on {int(broken.sum())} of "
        f"{len(prompts)} responses"
    )
