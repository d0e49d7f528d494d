"""Directions by contrast: how a persona answers, against a good answer, and at which block.

Legend: q = questions, s = candidate sites, d = model width, n = benign exchanges, m = components.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from monitor.errors import BadInput
from monitor.replay.residuals import ResidualReader
from monitor.research.contrast.probe import fit_probe
from monitor.research.contrast.selection import Selected
from monitor.research.reading import response_residuals
from monitor.research.texts import ASSISTANT, Texts, answer_prompts
from monitor.values.arrays import Counts, Doubles, Floats
from monitor.values.features import Part

FOLDS: Final = 6
LEAST_TRAINING: Final = 4
"""Training questions: two folds of two. With fewer a fold has one question and no spread, and a division
by nearly zero chooses the block."""
BENIGN_COMPONENTS: Final = 10
Kind = Literal["direction", "probe"]


@dataclass(frozen=True, slots=True)
class Side:
    """Mean residuals [q, s, d] of answers to the training and the held-out questions."""

    train: Floats
    held_out: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """A direction, and what it was chosen by: ``separations`` [s] over the candidate sites.

    ``persona`` and ``good`` are the two sides at that site alone, [q, d].
    """

    name: str
    site: int
    weight: Floats
    bias: float
    separations: Doubles
    persona: Side
    good: Side
    parts: tuple[Part, ...] = ()
    selected: Selected | None = None
    """How a learned read-out was chosen; its further sites are ``parts``."""

    @property
    def pattern(self) -> Floats:
        """What positive answers of training have more of than negative ones at ``site``: unit vector [d]."""
        nothing = np.empty((0, self.weight.size))
        return difference(self.persona.train, self.good.train, nothing)


def candidate_sites(layers: int) -> tuple[int, ...]:
    """Blocks in the middle of the model, from one quarter to three fifths of its depth.

    Deeper ones separate hardly better, and every block more is read for every prompt.
    """
    return tuple(range(layers // 4, max(layers // 4 + 1, layers * 3 // 5 + 1)))


def components(residuals: Floats) -> Doubles:
    """The orthonormal directions [m, d] in which benign ``residuals`` [n, d] vary most.

    m is `BENIGN_COMPONENTS`, fewer for a narrow model or few texts.
    """
    n, width = residuals.shape
    centred = residuals.astype(np.float64) - residuals.mean(axis=0, dtype=np.float64)
    _, _, rows = np.linalg.svd(centred, full_matrices=False)
    found: Doubles = rows[: min(BENIGN_COMPONENTS, n // 8, width // 8)]
    return found


def separations(
    positive: Floats, negative: Floats, nuisance: Sequence[Doubles], folds: Sequence[Counts]
) -> Doubles:
    """Cross-validated separation [s] of answers [q, s, d] to the same questions.

    On every fold: d' = (difference of the mean projections) / (their pooled deviation) on the
    fold's questions, with the direction from all the others; the mean over folds.
    """
    totals = np.zeros(positive.shape[1])
    for fold in folds:
        rest = np.setdiff1d(np.arange(len(positive)), fold)
        for site in range(positive.shape[1]):
            direction = difference(positive[rest, site], negative[rest, site], nuisance[site])
            ours, theirs = positive[fold, site] @ direction, negative[fold, site] @ direction
            spread = np.sqrt((ours.var() + theirs.var()) / 2)
            totals[site] += (ours.mean() - theirs.mean()) / max(float(spread), 1e-12)
    return totals / len(folds)


def folded(questions: int, seed: int) -> list[Counts]:
    """Folds for `separations`: the row numbers of each, dealt by ``seed``."""
    order = np.random.default_rng(seed).permutation(questions)
    # A fold of one question has no deviation to divide by.
    count = min(FOLDS, max(2, len(order) // 3))
    return [np.sort(fold) for fold in np.array_split(order, count)]


def difference(positive: Floats, negative: Floats, nuisance: Doubles) -> Floats:
    """Unit vector [d] from the mean of ``negative`` [q, d] to that of ``positive`` [q, d].

    Orthogonal to ``nuisance`` (orthonormal [m, d]).
    """
    direction = positive.mean(axis=0, dtype=np.float64) - negative.mean(axis=0, dtype=np.float64)
    direction -= nuisance.T @ (nuisance @ direction)
    length = float(np.linalg.norm(direction))
    if not length > 0.0:
        raise BadInput("contrast: a persona's answers are the same as the good ones")
    unit: Floats = (direction / length).astype(np.float32)
    return unit


def read_sides(
    reader: ResidualReader, texts: Texts, sites: Sequence[int]
) -> dict[str | None, Side]:
    """Mean residuals of every persona's answers at ``sites``, and of the good ones under None."""
    return {
        persona: Side(
            *(
                response_residuals(reader, answer_prompts(rows, persona), sites)
                for rows in (texts.train, texts.held_out)
            )
        )
        for persona in (None, *texts.personas)
    }


def choose(
    sides: Mapping[str | None, Side],
    benign: Floats,
    sites: Sequence[int],
    seed: int,
    kind: Kind,
) -> tuple[Chosen, ...]:
    """A weight for each persona and for ``assistant``, at the site where its separation is largest.

    ``benign`` [n, s, d] are residuals of benign text; ``seed`` deals the questions into folds.
    """
    good = sides[None]
    personas = {name: side for name, side in sides.items() if name is not None}
    everyone = Side(
        np.mean([side.train for side in personas.values()], axis=0),
        np.mean([side.held_out for side in personas.values()], axis=0),
    )
    contrasts = [(name, side, good) for name, side in personas.items()]
    contrasts.append((ASSISTANT, good, everyone))
    return contrasted(contrasts, benign, sites, seed, kind)


def contrasted(
    contrasts: Sequence[tuple[str, Side, Side]],
    benign: Floats,
    sites: Sequence[int],
    seed: int,
    kind: Kind,
) -> tuple[Chosen, ...]:
    """A weight for each contrast: its name, its positive and its negative answers; see `choose`."""
    nuisance = [components(benign[:, index]) for index in range(len(sites))]
    return tuple(_contrasted(*one, benign, nuisance, sites, seed, kind) for one in contrasts)


def _contrasted(
    name: str,
    positive: Side,
    negative: Side,
    benign: Floats,
    nuisance: Sequence[Doubles],
    sites: Sequence[int],
    seed: int,
    kind: Kind,
) -> Chosen:
    """A weight from ``negative`` to ``positive`` answers, at the site where the separation is largest.

    The site is chosen by `separations` on the training questions alone; ``seed`` deals them into
    folds, and there are at least `LEAST_TRAINING`. ``nuisance`` are the `components` of ``benign``
    [n, s, d] at each site.
    """
    folds = folded(len(positive.train), seed)
    separation = separations(positive.train, negative.train, nuisance, folds)
    index = int(np.argmax(separation))
    pair = positive.train[:, index], negative.train[:, index]
    weight, bias = (
        fit_probe(*pair, benign[:, index].std(axis=0, dtype=np.float64))
        if kind == "probe"
        else (difference(*pair, nuisance[index]), 0.0)
    )
    return Chosen(
        name=name,
        site=sites[index],
        weight=weight,
        bias=bias,
        separations=separation,
        persona=Side(positive.train[:, index], positive.held_out[:, index]),
        good=Side(negative.train[:, index], negative.held_out[:, index]),
    )
