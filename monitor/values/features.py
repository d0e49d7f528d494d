"""Persona features: what is read, where, over which tokens, and what a benign reading is.

Array legend: d = model width, n = latents of an SAE.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Final, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from monitor.values.arrays import Doubles, Floats
from monitor.values.checks import require

Region = Literal["prompt", "reasoning", "response", "last_prompt_token", "all"]
PROMPT_SIDE: Final[frozenset[str]] = frozenset({"prompt", "last_prompt_token"})
"""Regions that read the same whether an answer follows or not. ``all`` is not one: half an exchange does
not compare with whole ones."""
Pooling = Literal["mean", "max_rolling_mean", "max", "last"]
FeatureKind = Literal["direction", "probe", "latent"]
Activation = Literal["identity", "sigmoid", "relu", "jumprelu", "topk"]
InputNorm = Literal["none", "rescale", "layer_norm"]
Expected = Literal["rises", "falls"]
_Number = TypeVar("_Number", float, Floats, Doubles)


@dataclass(frozen=True, slots=True, kw_only=True)
class Directed:
    """Which way the persona moves a feature's score, and where on that side its tail begins.

    Both are decided here and nowhere else; SQL has the same rule in ``pack_features.sign`` (tested to
    agree). ``tail_threshold`` is counted towards the persona: a falling feature with threshold 3 has
    its tail below -3. A threshold may be negative: that of a latent that benign text hardly wakes.
    """

    expected: Expected = "rises"
    tail_threshold: float = 3.0

    @property
    def sign(self) -> int:
        """1 where the persona raises the score, -1 where it lowers it."""
        return -1 if self.expected == "falls" else 1

    def toward(self, score: _Number) -> _Number:
        """A score, or a difference of scores, turned so that more of it is more of the persona."""
        return self.sign * score

    def in_tail(self, scores: Floats | Doubles) -> NDArray[np.bool_]:
        """Which ``scores``, of any shape, lie beyond the threshold, towards the persona.

        A score equal to the threshold does not, and NaN (an absent region) does not. Both are
        compared in single precision, in which scores and thresholds are stored.
        """
        beyond = self.toward(np.asarray(scores, dtype=np.float32)) > np.float32(self.tail_threshold)
        return np.asarray(beyond, dtype=np.bool_)


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Benign mean and deviation of a reading, as a function of the number of tokens pooled.

    The deviation of a mean falls, and the level of a maximum rises, with the number of tokens; a
    constant calibration would read length as persona. Between knots both are interpolated linearly
    in log2(tokens), outside they are held. One knot means no dependence on length.
    """

    tokens: tuple[float, ...]
    means: tuple[float, ...]
    deviations: tuple[float, ...]

    def __post_init__(self) -> None:
        require(
            len(self.tokens) == len(self.means) == len(self.deviations) >= 1,
            "calibration needs as many means and deviations as token knots, at least one",
        )
        require(all(t >= 1 for t in self.tokens), "calibration knots count tokens: at least 1")
        require(
            all(a < b for a, b in zip(self.tokens, self.tokens[1:], strict=False)),
            "calibration knots must rise",
        )
        require(all(math.isfinite(m) for m in self.means), "calibration means must be finite")
        require(
            all(math.isfinite(s) and s > 0 for s in self.deviations),
            "calibration deviations must be positive",
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Encoder:
    """All latents of a top-k SAE: on every token they compete for ``places``.

    ``weight`` [n, d] and ``bias`` [n], with everything folded that can be. Its features share it.
    """

    name: str
    weight: Floats
    bias: Floats
    places: int

    def __post_init__(self) -> None:
        require(bool(self.name), "an encoder needs a name")
        require(self.weight.ndim == 2, f"{self.name}: weight must be [n, d]")
        require(
            self.bias.shape == self.weight.shape[:1], f"{self.name}: bias must be one per latent"
        )
        require(1 <= self.places <= len(self.bias), f"{self.name}: places must be in 1..n")
        finite = bool(np.isfinite(self.weight).all() and np.isfinite(self.bias).all())
        require(finite, f"{self.name}: weight and bias must be finite")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """What a composite feature reads beside its own site: x @ ``weight`` [d] behind block ``site``."""

    site: int
    weight: Floats

    def __post_init__(self) -> None:
        require(self.site >= 0, "a part's site must be the index of a decoder block, from 0")
        require(self.weight.ndim == 1 and self.weight.size > 0, "a part's weight must be [d]")
        require(bool(np.isfinite(self.weight).all()), "a part's weight must be finite")


WATCH_ONLY: Final = "watch-only"
"""Tag of a feature that is scored and stored but, unless a rule names it, raises no alert: it moves with
harmless changes too, of style for instance."""


def selected(selector: str, name: str, tags: Sequence[str]) -> bool:
    """Does ``selector``, a name, a glob or ``tag:GLOB``, pick the feature of this name and these tags?"""
    if selector.startswith("tag:"):
        return any(fnmatchcase(tag, selector.removeprefix("tag:")) for tag in tags)
    return fnmatchcase(name, selector)


def picked(selectors: Sequence[str], name: str, tags: Sequence[str]) -> bool:
    """Do ``selectors`` together pick it? ``!`` in front of one leaves out what it selects."""
    left_out = any(selected(one[1:], name, tags) for one in selectors if one.startswith("!"))
    return not left_out and any(
        selected(one, name, tags) for one in selectors if not one.startswith("!")
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Covariate:
    """A direction [d] that is read off the prompt side in the same forward pass, and is no feature.

    It is stored and never watched: scores given the prompt are fitted on it (`values.adjustment`).
    """

    name: str
    site: int
    region: Literal["prompt", "last_prompt_token"]
    weight: Floats

    def __post_init__(self) -> None:
        require(bool(self.name), "a covariate needs a name")
        require(self.site >= 0, f"{self.name}: site must be the index of a decoder block, from 0")
        require(self.weight.ndim == 1 and self.weight.size > 0, f"{self.name}: weight must be [d]")
        require(bool(np.isfinite(self.weight).all()), f"{self.name}: weight must be finite")

    def as_feature(self) -> Feature:
        """How the engine reads it: the mean over its region, not standardised."""
        return Feature(
            name=self.name,
            kind="direction",
            site=self.site,
            region=self.region,
            pooling="mean",
            weight=self.weight,
            calibration=Calibration(tokens=(1.0,), means=(0.0,), deviations=(1.0,)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature(Directed):
    """One persona feature: what to read, where, over which tokens, and what a benign reading is.

    Site convention: ``site`` = L means the output of the 0-based decoder block L, which is
    ``hidden_states[L + 1]`` of transformers. Per token, with x [d] the residual stream:

    ``x' = input_norm(x)``;  ``a = activation(x' @ weight + bias)``

    with activation identity (direction), sigmoid (probe), relu, jumprelu (a·1[a > threshold]), or
    topk: relu(a) where ``latent`` of ``encoder`` is among its largest ``places`` on that token.
    An SAE's ``b_dec`` subtraction is folded into ``bias``. The reading pools ``a`` over ``region``,
    without tokens where ‖x‖ > ``largest_norm``, which the SAE was never trained on; for a probe the
    pooling is done on the logit and the sigmoid comes last. ``tail_threshold`` is set on benign text.

    A *composite* (a direction or probe with ``parts``) sums over sites on every token, then pools:
    ``a = x @ weight + Σ x_part @ weight_part + bias``. Its ``site`` is the one that does most of the
    reading, by the builder's measure; it is the one that steering turns.

    ``weight`` is what tells the persona from all else; ``pattern`` [d] is what the persona adds to the
    residual at ``site``. The two are not the same for a learned read-out, whose weight also cancels what
    else varies there (Haufe et al., NeuroImage 87, 2014). None: the weight is both.
    """

    name: str
    kind: FeatureKind
    site: int
    region: Region
    pooling: Pooling
    weight: Floats
    calibration: Calibration
    bias: float = 0.0
    activation: Activation = "identity"
    threshold: float = 0.0
    input_norm: InputNorm = "none"
    rolling_tokens: int = 16
    skip_tokens: int = 1
    tags: tuple[str, ...] = ()
    description: str = ""
    encoder: Encoder | None = None
    latent: int | None = None
    largest_norm: float | None = None
    parts: tuple[Part, ...] = ()
    pattern: Floats | None = None

    @property
    def written_along(self) -> Floats:
        """The direction [d] at ``site`` that steering turns: the pattern, or else the weight."""
        return self.weight if self.pattern is None else self.pattern

    @property
    def sites(self) -> tuple[int, ...]:
        """Every site that is read, in rising order."""
        return tuple(sorted({self.site, *(part.site for part in self.parts)}))

    @property
    def direction(self) -> Floats:
        """All that decides the order of readings: the weights of `sites`, end to end [sites · d]."""
        return np.concatenate([self.weight_at(site) for site in self.sites])

    def weight_at(self, site: int) -> Floats:
        """The weight [d] for ``site``, one of `sites`; KeyError for another."""
        return {self.site: self.weight, **{p.site: p.weight for p in self.parts}}[site]

    @property
    def lengths(self) -> tuple[float, ...]:
        """The length of the weight at each of `sites`, where the longest is 1."""
        norms = [float(np.linalg.norm(self.weight_at(site))) for site in self.sites]
        return tuple(norm / (max(norms) or 1.0) for norm in norms)

    def along(self, direction: Floats) -> Feature:
        """The same reading along another `direction` [sites · d], of which no pattern is known."""
        rows = dict(zip(self.sites, direction.reshape(len(self.sites), -1), strict=True))
        parts = tuple(Part(site=part.site, weight=rows[part.site]) for part in self.parts)
        return replace(self, weight=rows[self.site], parts=parts, pattern=None)

    def __post_init__(self) -> None:
        require(bool(self.name), "a feature needs a name")
        require(self.site >= 0, f"{self.name}: site must be the index of a decoder block, from 0")
        require(self.weight.ndim == 1 and self.weight.size > 0, f"{self.name}: weight must be [d]")
        require(bool(np.isfinite(self.weight).all()), f"{self.name}: weight must be finite")
        require(math.isfinite(self.bias), f"{self.name}: bias must be finite")
        require(self.rolling_tokens >= 1, f"{self.name}: rolling_tokens must be at least 1")
        require(self.skip_tokens >= 1, f"{self.name}: the first token is never pooled")
        require(
            self.largest_norm is None
            or (math.isfinite(self.largest_norm) and self.largest_norm > 0),
            f"{self.name}: largest_norm must be positive",
        )
        if self.activation == "topk":
            require(self.encoder is not None, f"{self.name}: topk needs the encoder")
            require(
                self.latent is not None
                and self.encoder is not None
                and 0 <= self.latent < len(self.encoder.bias),
                f"{self.name}: latent must be one of the encoder's",
            )
        else:
            require(
                self.encoder is None and self.latent is None,
                f"{self.name}: encoder and latent belong to topk",
            )
        require(
            self.pattern is None
            or (
                self.pattern.shape == self.weight.shape
                and bool(np.isfinite(self.pattern).all() and self.pattern.any())
            ),
            f"{self.name}: pattern must be as wide as the weight, finite and not zero",
        )
        if self.parts:
            self._check_parts()

    def _check_parts(self) -> None:
        require(
            self.activation in ("identity", "sigmoid"),
            f"{self.name}: parts belong to a direction or a probe; a latent is read at one site",
        )
        require(
            self.input_norm == "none" and self.largest_norm is None,
            f"{self.name}: a feature with parts takes no input_norm and no largest_norm",
        )
        require(
            len(self.sites) == 1 + len(self.parts),
            f"{self.name}: the feature and its parts must read different sites",
        )
        require(
            all(part.weight.shape == self.weight.shape for part in self.parts),
            f"{self.name}: the weights of all parts must be as wide as the feature's own",
        )

    @property
    def of_prompt(self) -> bool:
        """Reads the prompt side alone; see `PROMPT_SIDE`."""
        return self.region in PROMPT_SIDE
