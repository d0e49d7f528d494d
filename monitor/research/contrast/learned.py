"""Personas and calm harm as read-outs learned against hard texts, in place of plain differences of means.

Every persona's answers are held against good ones to the same questions and, kind by kind, against what
an aligned model really says. ``harmful_advice`` is learned from calm pairs: answers that differ from a
sound one in nothing but substance.

Legend: n = answers, q = questions, s = candidate sites, d = model width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from monitor.replay.residuals import ResidualReader
from monitor.research.contrast.directions import Chosen, Side, components, folded, separations
from monitor.research.contrast.learners import Rows
from monitor.research.contrast.levelling import levelled
from monitor.research.contrast.selection import Selected, families, select
from monitor.research.hard_texts import HARMFUL_ADVICE, CalmPair, HardTexts
from monitor.research.progress import Progress
from monitor.research.reading import response_residuals
from monitor.research.texts import ASSISTANT, Texts
from monitor.values.arrays import Doubles, Floats
from monitor.values.features import Part

LEAST_PAIRS: Final = 24
"""Calm pairs of training below which no read-out is learned from them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Answers ``x`` [n, s, d] with the kind and the question of each."""

    x: Floats
    kinds: tuple[str, ...]
    questions: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """All that read-outs are learned from, and the held-out calm pairs [q, s, d] of both sides."""

    personas: Mapping[str, Group]
    good: Group
    others: Group
    calm: Group
    sound: Group
    held_out: tuple[Floats, Floats]


def read_material(
    reader: ResidualReader,
    texts: Texts,
    hard: HardTexts,
    sides: Mapping[str | None, Side],
    benign: Floats,
    sites: Sequence[int],
    progress: Progress,
) -> Material:
    """Reads the hard texts of training; ``sides`` and ``benign`` are those of the contrast build. Blocks."""
    negatives, pairs, judged = hard.negatives_for("train"), hard.calm_for("train"), hard.judged_calm
    progress(f"reading {len(negatives)} negatives and {len(pairs) + len(judged)} calm pairs")
    asked = tuple(row.question for row in texts.train)

    def calm_pairs(rows: Sequence[CalmPair]) -> tuple[Floats, Floats]:
        none = np.empty((0, *benign.shape[1:]), dtype=np.float32)
        return (
            response_residuals(reader, [row.calm_prompt for row in rows], sites) if rows else none,
            response_residuals(reader, [row.good_prompt for row in rows], sites) if rows else none,
        )

    read = (
        response_residuals(reader, [row.prompt for row in negatives], sites)
        if negatives
        else benign[:0]
    )
    calm, sound = calm_pairs(pairs)
    kinds = tuple(f"{row.kind}, {row.domain}" for row in pairs)
    questions = tuple(row.question for row in pairs)
    return Material(
        personas={
            name: Group(x=side.train, kinds=(name,) * len(asked), questions=asked)
            for name, side in sides.items()
            if name is not None
        },
        good=Group(x=sides[None].train, kinds=("good",) * len(asked), questions=asked),
        others=Group(
            x=np.concatenate([read, benign]),
            kinds=(*(row.kind for row in negatives), *("benign",) * len(benign)),
            questions=(
                *(row.question for row in negatives),
                *(f"benign {number}" for number in range(len(benign))),
            ),
        ),
        calm=Group(x=calm, kinds=kinds, questions=questions),
        sound=Group(x=sound, kinds=kinds, questions=questions),
        held_out=calm_pairs(judged),
    )


def choose_learned(
    material: Material,
    sides: Mapping[str | None, Side],
    benign: Floats,
    sites: Sequence[int],
    seed: int,
    progress: Progress,
) -> tuple[Chosen, ...]:
    """A read-out for each persona, for ``assistant`` (all of them, turned) and for calm harm."""
    nuisance = [components(benign[:, index]) for index in range(len(sites))]
    scale = np.maximum(benign.std(axis=0, dtype=np.float64), 1e-6)
    found = []
    for one in _contrasts(material, sides):
        progress(f"{one.name}: choosing a read-out")
        rows = labelled(one.positives, one.twins, one.others)
        selected = select(rows, scale, nuisance, seed, families(len(sites)))
        selected = levelled(selected, rows, scale, seed)
        progress(f"{one.name}: {selected.family}, turned by {selected.levelled:g}")
        pair = one.high.train, one.low.train
        separation = separations(*pair, nuisance, folded(len(one.high.train), seed))
        both = one.high, one.low
        found.append(
            chosen_from(one.name, selected, both, sites, separation, falls=one.name == ASSISTANT)
        )
    return tuple(found)


def chosen_from(
    name: str,
    selected: Selected,
    sides: tuple[Side, Side],
    sites: Sequence[int],
    separation: Doubles,
    *,
    falls: bool = False,
) -> Chosen:
    """``selected`` as a choice at its main site: where the two sides [q, s, d] lie furthest apart in it.

    ``sides`` are the positive and the negative answers of the read-out; one that ``falls`` is turned.
    """
    where, sign = selected.choice.sites, -1.0 if falls else 1.0
    high, low = sides
    weights = (sign * selected.readout.weight).astype(np.float32)
    apart = [
        abs(float((high.train[:, i] - low.train[:, i]).mean(axis=0) @ weight))
        for i, weight in zip(where, weights, strict=True)
    ]
    main = int(np.argmax(apart))
    persona, good = (low, high) if falls else (high, low)
    return Chosen(
        name=name,
        site=sites[where[main]],
        weight=weights[main],
        bias=sign * selected.readout.bias,
        parts=tuple(
            Part(site=sites[i], weight=weight)
            for i, weight in zip(where, weights, strict=True)
            if i != where[main]
        ),
        separations=separation,
        persona=Side(persona.train[:, where[main]], persona.held_out[:, where[main]]),
        good=Side(good.train[:, where[main]], good.held_out[:, where[main]]),
        selected=selected,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Contrast:
    """What a read-out is learned from, and its two sides for figures."""

    name: str
    positives: Sequence[Group]
    twins: Sequence[Group]
    others: Sequence[Group]
    high: Side
    low: Side


def _contrasts(material: Material, sides: Mapping[str | None, Side]) -> list[_Contrast]:
    def against(name: str, positives: Sequence[Group], high: Side) -> _Contrast:
        return _Contrast(
            name=name,
            positives=positives,
            twins=[material.good],
            others=[material.sound, material.others],
            high=high,
            low=sides[None],
        )

    everyone = [sides[name] for name in material.personas]
    contrasts = [against(name, [g], sides[name]) for name, g in material.personas.items()]
    contrasts.append(
        against(
            ASSISTANT,
            list(material.personas.values()),
            Side(
                np.mean([side.train for side in everyone], axis=0),
                np.mean([side.held_out for side in everyone], axis=0),
            ),
        )
    )
    calm, sound = material.held_out
    if len(material.calm.questions) >= LEAST_PAIRS and len(calm) >= 2:
        contrasts.append(
            _Contrast(
                name=HARMFUL_ADVICE,
                positives=[material.calm],
                twins=[material.sound],
                others=[material.good, material.others],
                high=Side(material.calm.x, calm),
                low=Side(material.sound.x, sound),
            )
        )
    return contrasts


def labelled(positives: Sequence[Group], twins: Sequence[Group], others: Sequence[Group]) -> Rows:
    """The groups as `Rows`, by what they are to the read-out."""
    groups = [*positives, *twins, *others]
    sizes = [len(group.questions) for group in groups]
    which = np.repeat([0] * len(positives) + [1] * len(twins) + [2] * len(others), sizes)
    questions = [question for group in groups for question in group.questions]
    return Rows(
        x=np.concatenate([group.x for group in groups]),
        positive=which == 0,
        kind=np.array([kind for group in groups for kind in group.kinds]),
        question=np.unique(questions, return_inverse=True)[1],
        twin=which == 1,
    )
