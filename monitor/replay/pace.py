"""How fast a CPU computes in each dtype: one row of tokens through the first block, timed and not assumed.

Some CPUs have units for bfloat16 and are several times faster in it; on others it is several times slower.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

import torch

from monitor.replay.forward import Forward
from monitor.replay.model import LoadedModel, load_model, placement, positions_limit
from monitor.replay.plan import plan
from monitor.settings import ReplaySettings

ROW_TOKENS: Final = 256
ROUNDS: Final = 3
WORTH: Final = 1.3
"""How many times as fast bfloat16 must be for its coarser readings to be worth it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Seconds that the row takes in each dtype."""

    float32: float
    bfloat16: float

    @property
    def ratio(self) -> float:
        """How many times as fast as float32 bfloat16 is."""
        return self.float32 / self.bfloat16

    @property
    def worth(self) -> bool:
        return self.ratio >= WORTH


def dtype_open(settings: ReplaySettings) -> bool:
    """Whether ``replay.dtype`` leaves it to this machine and the pack's canaries."""
    return settings.dtype == "auto"


def on_cpu(settings: ReplaySettings) -> bool:
    """Whether the copy of ``settings`` runs on this machine's CPU."""
    return placement(settings)[0].type == "cpu"


def paced(settings: ReplaySettings) -> Pace:
    """The pace of the model of ``settings``, of which the first block is loaded twice.

    The least of a few rounds in turns, behind one that is not counted: others may use the machine.
    """
    copies = {
        dtype: load_model(settings.model_copy(update={"dtype": dtype}), 0)
        for dtype in ("float32", "bfloat16")
    }
    rounds = [
        {dtype: _row_seconds(copy, settings) for dtype, copy in copies.items()}
        for _ in range(1 + ROUNDS)
    ]
    return Pace(**{dtype: min(one[dtype] for one in rounds[1:]) for dtype in copies})


def _row_seconds(copy: LoadedModel, settings: ReplaySettings) -> float:
    tokens = min(ROW_TOKENS, positions_limit(settings, copy.config))
    ids = (torch.arange(tokens) % copy.config.vocab_size).tolist()
    forward = Forward(
        copy,
        plan([ids], batch_tokens=tokens, min_shared_tokens=None),
        [0],
        lambda _members, _total: lambda _site, _residual: None,
        lambda _members: None,
    )
    start = time.perf_counter()
    forward.run()
    return time.perf_counter() - start
