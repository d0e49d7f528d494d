"""Whole residual vectors for research: the same tokens, regions and forward passes as in production.

Legend: n = prompts, d = model width, r = prompts of one forward pass, t = its tokens, m = outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from monitor.errors import BadInput, ModelError
from monitor.replay.forward import Forward, RowReader
from monitor.replay.model import LoadedModel, batch_tokens
from monitor.replay.plan import plan
from monitor.replay.regions import Tokens
from monitor.replay.tokens import tokeniser
from monitor.settings import ReplaySettings
from monitor.values.arrays import Floats
from monitor.values.features import Region
from monitor.values.prompts import Prompt
from monitor.values.scores import Unreplayable

Pool = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From ``weights`` [r, t] (each row the mean over its prompt's region) and the residual stream [t, d],
both float32, to one pooled row for each prompt [r, m]."""


class ResidualReader:
    """Mean residual streams of prompts, or means of what is computed from them, at several sites."""

    def __init__(self, loaded: LoadedModel, settings: ReplaySettings) -> None:
        self.loaded = loaded
        self.settings = settings
        self._tokeniser = tokeniser(loaded, settings)

    def token_counts(
        self, prompts: Sequence[Prompt], region: Region, skip_tokens: int = 1
    ) -> list[int]:
        """How many tokens ``region`` pools in each prompt; 0 for one that cannot be replayed."""
        return [
            0 if isinstance(one, Unreplayable) else one.positions(region, skip_tokens).size
            for one in self._tokeniser.tokenise(prompts)
        ]

    def mean_residuals(
        self,
        prompts: Sequence[Prompt],
        sites: Sequence[int],
        region: Region,
        skip_tokens: int = 1,
    ) -> Floats:
        """Mean over ``region`` of the residual stream, float32 [n, len(sites), d].

        NaN where the region is absent. Raises `BadInput` for a prompt that cannot be replayed.
        """
        width = self.loaded.config.hidden_size
        return self.pooled(prompts, sites, region, torch.matmul, width, skip_tokens)

    def pooled(
        self,
        prompts: Sequence[Prompt],
        sites: Sequence[int],
        region: Region,
        pool: Pool,
        width: int,
        skip_tokens: int = 1,
    ) -> Floats:
        """What ``pool`` makes of ``region`` at each site, float32 [n, len(sites), m = ``width``].

        NaN where the region is absent. Raises `BadInput` for a prompt that cannot be replayed.
        """
        rows: list[Tokens] = []
        for index, one in enumerate(self._tokeniser.tokenise(prompts)):
            if isinstance(one, Unreplayable):
                raise BadInput(
                    f"prompt {index} cannot be replayed: {one.reason.value} {one.detail}"
                )
            rows.append(one)
        means = np.full((len(rows), len(sites), width), np.nan, dtype=np.float32)
        work = plan(
            [one.ids for one in rows],
            batch_tokens=batch_tokens(self.settings, self.loaded.device),
            min_shared_tokens=None,
            way=self.loaded.packing.way,
            padding=self.loaded.packing.padding,
        )
        where = {site: index for index, site in enumerate(sites)}

        def start_row(members: tuple[int, ...], total: int) -> RowReader:
            weights = torch.zeros(len(members), total)
            start = 0
            for line, member in enumerate(members):
                positions = rows[member].positions(region, skip_tokens)
                weights[line, start + positions] = 1.0 / max(positions.size, 1)
                start += len(rows[member].ids)
            present = [
                i for i, m in enumerate(members) if rows[m].positions(region, skip_tokens).size
            ]

            def read(site: int, residual: torch.Tensor) -> None:
                wide = residual.to(torch.float32)
                values = pool(weights.to(wide.device), wide).cpu().numpy()
                means[[members[i] for i in present], where[site]] = values[present]

            return read

        forward = Forward(self.loaded, work, tuple(sites), start_row, lambda members: None)
        forward.run()
        if forward.failed:
            raise BadInput(
                f"prompt {min(forward.failed)} does not fit into memory: lower replay.max_tokens"
            )
        return means


def typical_lengths(
    loaded: LoadedModel, settings: ReplaySettings, prompts: Sequence[Prompt], sites: Sequence[int]
) -> dict[int, float]:
    """The length of a token's residual at each of ``sites``: the median over ``prompts`` of their medians.

    A median, because a few tokens (delimiters, the sink) are many times as long as the others. Read
    as in production, so without the first token and the template. Blocks while the model runs. Raises `BadInput`
    without prompts, `ModelError` where a length is not finite.
    """
    wanted = sorted(set(sites))
    if not wanted:
        return {}
    if not prompts:
        raise BadInput("measuring the typical length of a residual needs at least one text")
    found = ResidualReader(loaded, settings).pooled(prompts, wanted, "all", _medians, 1)
    medians = {}
    for index, site in enumerate(wanted):
        present = found[:, index][~np.isnan(found[:, index])]
        medians[site] = float(np.median(present)) if present.size else math.nan
        if not math.isfinite(medians[site]):
            raise not_finite(
                f"{loaded.model_id} gives residuals that are not finite behind block {site}"
            )
    return medians


def _medians(weights: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """The median length [r, 1] of the tokens of ``residual`` [t, d] that each row of ``weights`` reads."""
    lengths = torch.linalg.vector_norm(residual, dim=1)
    chosen = torch.where(weights > 0, lengths, torch.nan)
    return torch.nanmedian(chosen, dim=1, keepdim=True).values


def not_finite(message: str) -> ModelError:
    return ModelError(
        message,
        hint="the model's weights or dtype give non-finite activations: is a file damaged, did training "
        "diverge?",
    )
