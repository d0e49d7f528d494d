"""Activations of the stacked features while the forward pass stands at their site, and their pooling.

Legend: t = tokens, d = model width, k = features of the pack, m = features of one group,
n = latents of a top-k SAE.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from monitor.errors import PackError
from monitor.replay.contest import Contest, contest
from monitor.replay.regions import Tokens
from monitor.replay.variable import sent
from monitor.values.arrays import Counts, Floats
from monitor.values.features import Encoder, Feature, InputNorm, Pooling, Region

MASKED = -math.inf
"""The activation of a token that a feature does not pool."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Projection:
    """Features of one site and input norm: ``columns`` [m] where they are pooled, ``weight`` [d, m], the rest [m].

    ``added`` are those that a shallower site of the same device has begun (composites); None when there are none.
    """

    norm: InputNorm
    added: torch.Tensor | None
    columns: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    rectified: torch.Tensor
    threshold: torch.Tensor


def _require_width(features: Sequence[Feature], width: int) -> None:
    for feature in features:
        # The parts of a composite are as wide as its own weight.
        if feature.weight.size != width:
            raise PackError(
                f"feature {feature.name}: weight has {feature.weight.size} entries, "
                f"the model's width is {width}"
            )
    if not features:
        raise PackError("a pack without features has nothing to replay for")


@dataclass(frozen=True, slots=True)
class _Columns:
    """Those that begin on a device, and composites' that go on there."""

    begun: torch.Tensor
    added: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pool:
    """What features must share to be pooled together; site and limit only where tokens are masked."""

    region: Region
    skip_tokens: int
    pooling: Pooling
    rolling_tokens: int
    largest_norm: float | None
    site: int | None


class FeatureBank:
    """The pack's features, stacked by site on the model's device."""

    def __init__(
        self,
        features: Sequence[Feature],
        width: int,
        device: torch.device,
        place: Callable[[int], torch.device] | None = None,
    ) -> None:
        """``place`` gives the device of a site's residuals where not all are on ``device``, on which they are pooled
        once they were `gathered`.

        Raises `PackError` when a feature does not have the model's ``width``.
        """
        _require_width(features, width)
        self.features = tuple(features)

        def at(site: int) -> torch.device:
            return place(site) if place else device

        grouped: dict[tuple[int, InputNorm], list[int]] = defaultdict(list)
        contests: dict[tuple[int, Encoder, InputNorm], list[int]] = defaultdict(list)
        limits: dict[tuple[int, float], list[int]] = defaultdict(list)
        pools: dict[_Pool, list[int]] = defaultdict(list)
        for column, feature in enumerate(features):
            if feature.encoder is None:
                for site in feature.sites:
                    grouped[site, feature.input_norm].append(column)
            else:
                contests[feature.site, feature.encoder, feature.input_norm].append(column)
            if feature.largest_norm is not None:
                limits[feature.site, feature.largest_norm].append(column)
            pools[_pool(feature)].append(column)
        self._pools = {
            key: (torch.tensor(columns, device=device), np.array(columns))
            for key, columns in pools.items()
        }
        self._sites: dict[int, list[_Projection]] = defaultdict(list)
        for (site, norm), columns in grouped.items():
            members = [features[column] for column in columns]
            begun = [_begins(feature, site, at) for feature in members]
            self._sites[site].append(_projection(site, norm, columns, members, begun, at(site)))
        self._contests: dict[int, list[tuple[InputNorm, torch.Tensor, Contest]]] = defaultdict(list)
        for (site, encoder, norm), columns in contests.items():
            latents = [features[column].latent or 0 for column in columns]
            columns_at = torch.tensor(columns, device=at(site))
            self._contests[site].append((norm, columns_at, contest(encoder, latents, at(site))))
        self._limits: dict[int, list[tuple[float, torch.Tensor]]] = defaultdict(list)
        for (site, limit), columns in limits.items():
            self._limits[site].append((limit, torch.tensor(columns, device=at(site))))
        self._by_device = {
            one: _columns(features, at, one, device) for one in {at(site) for site in self.sites}
        }
        self._sigmoid = np.array([f.activation == "sigmoid" for f in features])
        self.device = device

    @property
    def sites(self) -> tuple[int, ...]:
        return tuple(sorted({site for feature in self.features for site in feature.sites}))

    def project(self, site: int, residual: torch.Tensor, into: torch.Tensor) -> None:
        """Write the activations of residual [t, d] at ``site`` into the columns of ``into`` [t, k], on its device.

        ``a = relu-or-identity(norm(x) @ weight + bias)`` in float32, a top-k SAE's latents where they
        are among its largest; sigmoids come after pooling. `MASKED` beyond a feature's largest norm.
        A composite's columns are written at its first site of a device and added to at the others: call this for
        `sites` in rising order, as a forward pass does.
        """
        wide = residual.to(torch.float32)
        for part in self._sites[site]:
            activation = torch.addmm(part.bias, normalised(wide, part.norm), part.weight)
            passed = activation * (activation > part.threshold)
            values = torch.where(part.rectified, passed, activation)
            if part.added is not None:
                begun = into[:, part.columns]
                # What was not begun is uninitialised memory, and may be NaN: chosen, never multiplied.
                values = torch.where(part.added, begun + values, values)
            into[:, part.columns] = values
        for norm, columns, one in self._contests[site]:
            into[:, columns] = one.activations(normalised(wide, norm))
        for limit, columns in self._limits[site]:
            beyond = torch.linalg.vector_norm(wide, dim=1, keepdim=True) > limit
            into[:, columns] = into[:, columns].masked_fill(beyond, MASKED)

    def gathered(self, parts: Mapping[torch.device, torch.Tensor]) -> torch.Tensor:
        """Activations [t, k] on the bank's device, of what was projected on each device, in the order of the blocks."""
        if len(parts) == 1:
            [alone] = parts.values()
            return alone.to(self.device)
        first = next(iter(parts.values()))
        found = first.new_empty(first.shape, device=self.device)
        for device, part in parts.items():
            there, columns = part.to(self.device), self._by_device[device]
            found[:, columns.begun] = there[:, columns.begun]
            found[:, columns.added] += there[:, columns.added]
        return found

    def pool(self, tokens: Tokens, activations: torch.Tensor) -> tuple[torch.Tensor, Counts]:
        """Readings [k] on the device before sigmoids, and how many tokens each pooled [k].

        ``activations`` [t, k]. An absent region reads NaN and counts 0.
        """
        readings = torch.full((len(self.features),), torch.nan, device=self.device)
        counts = np.zeros(len(self.features), dtype=np.int64)
        for group, (columns, where) in self._pools.items():
            positions = tokens.positions(group.region, group.skip_tokens)
            if positions.size == 0:
                continue
            chosen = activations[sent(torch.from_numpy(positions), self.device)][:, columns]
            if group.largest_norm is not None:
                # One site and one limit in a group: a token is masked in all columns or in none.
                chosen = chosen[chosen[:, 0] != MASKED]
                if chosen.shape[0] == 0:
                    continue
            readings[columns] = pooled(chosen, group.pooling, group.rolling_tokens)
            counts[where] = 1 if group.pooling == "last" else chosen.shape[0]
        return readings, counts

    def finished(self, readings: Iterable[torch.Tensor]) -> Floats:
        """Readings [n, k] on the host; the one copy from the device for a whole chunk."""
        rows = list(readings)
        if not rows:
            return np.empty((0, len(self.features)), dtype=np.float32)
        values: Floats = torch.stack(rows).cpu().numpy()
        if self._sigmoid.any():
            logits = values[:, self._sigmoid].astype(np.float64)
            # exp of the negative magnitude alone never overflows.
            small = np.exp(-np.abs(logits))
            values[:, self._sigmoid] = np.where(logits >= 0, 1.0, small) / (1.0 + small)
        return values


def normalised(residual: torch.Tensor, norm: InputNorm) -> torch.Tensor:
    """Residuals [t, d] as an SAE trained on normalised activations expects them (SAELens' rules)."""
    if norm == "rescale":
        length = torch.linalg.vector_norm(residual, dim=1, keepdim=True).clamp_min(1e-12)
        unit: torch.Tensor = residual / length
        return unit * math.sqrt(residual.shape[1])
    if norm == "layer_norm":
        centred = residual - residual.mean(dim=1, keepdim=True)
        return centred / (centred.std(dim=1, keepdim=True) + 1e-5)
    return residual


def pooled(values: torch.Tensor, pooling: Pooling, rolling_tokens: int) -> torch.Tensor:
    """Pool values [t, m] over their t ≥ 1 tokens: [m].

    ``max_rolling_mean`` is the largest mean of ``rolling_tokens`` consecutive tokens; of fewer
    tokens than that, their mean.
    """
    if pooling == "max":
        return values.amax(dim=0)
    if pooling == "last":
        return values[-1]
    if pooling == "mean" or values.shape[0] <= rolling_tokens:
        return values.mean(dim=0)
    sums = torch.cumsum(values.to(torch.float64), dim=0)
    windows = sums[rolling_tokens - 1 :].clone()
    windows[1:] -= sums[:-rolling_tokens]
    return (windows.amax(dim=0) / rolling_tokens).to(values.dtype)


def _pool(feature: Feature) -> _Pool:
    return _Pool(
        region=feature.region,
        skip_tokens=feature.skip_tokens,
        pooling=feature.pooling,
        rolling_tokens=feature.rolling_tokens if feature.pooling == "max_rolling_mean" else 0,
        largest_norm=feature.largest_norm,
        site=None if feature.largest_norm is None else feature.site,
    )


def _columns(
    features: Sequence[Feature],
    at: Callable[[int], torch.device],
    place: torch.device,
    device: torch.device,
) -> _Columns:
    begun = [c for c, f in enumerate(features) if at(f.sites[0]) == place]
    there = [c for c, f in enumerate(features) if place in map(at, f.sites)]
    return _Columns(
        *(
            torch.tensor(which, dtype=torch.long, device=device)
            for which in (begun, [c for c in there if c not in begun])
        )
    )


def _begins(feature: Feature, site: int, at: Callable[[int], torch.device]) -> bool:
    """Whether ``site`` is the first of the feature's that is on its device."""
    return next(one for one in feature.sites if at(one) == at(site)) == site


def _projection(
    site: int,
    norm: InputNorm,
    columns: Sequence[int],
    members: Sequence[Feature],
    begun: Sequence[bool],
    device: torch.device,
) -> _Projection:
    def row(values: Iterable[float]) -> torch.Tensor:
        return torch.tensor(list(values), dtype=torch.float32, device=device)

    weight = np.stack([np.asarray(f.weight_at(site), dtype=np.float32) for f in members], axis=1)
    return _Projection(
        norm=norm,
        added=None if all(begun) else torch.tensor(begun, device=device).logical_not(),
        columns=torch.tensor(columns, device=device),
        weight=torch.from_numpy(np.ascontiguousarray(weight)).to(device),
        # A composite's bias is counted once, where it begins.
        bias=row(f.bias if f.sites[0] == site else 0.0 for f in members),
        rectified=torch.tensor([f.activation in ("relu", "jumprelu") for f in members]).to(device),
        threshold=row(f.threshold if f.activation == "jumprelu" else 0.0 for f in members),
    )
