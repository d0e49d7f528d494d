"""Does each feature of a pack tell its persona from others, on texts it has not seen?

Legend: n = texts, r = random directions read as the feature is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from monitor.research.judge.readings import Read, Readings, Voice
from monitor.research.judge.vocabulary import LexicalScore
from monitor.research.statistics import auc, auc_bound, length_matched, nearest
from monitor.research.texts import ASSISTANT
from monitor.values.arrays import Doubles, Floats
from monitor.values.drift import Bound


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The personas that a feature is held to read. ``chosen`` says that training answers decided."""

    personas: tuple[str, ...]
    chosen: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Separation:
    """AUCs of held-out persona answers against three kinds of negatives, signed so that 1 is perfect.

    ``shift`` is the mean difference to the good answers in benign deviations of the raw reading, with
    the same of the ``random`` directions [r], turned on the training answers as favourably as can be.
    ``shuffled_share`` is what of the mean difference in scores is left when the words of each answer
    are shuffled. ``words`` is the AUC of the bag of words on the same answers, ``words_matched`` on
    the vocabulary-matched negatives: near 0.5 when the match succeeded.
    """

    target: Target
    against_good: Bound
    length_matched: Bound
    vocabulary_matched: Bound
    shift: float
    random: Doubles
    random_aucs: Doubles
    other_personas: Mapping[str, float]
    shuffled_share: float
    words: float
    words_matched: float

    @property
    def random_share(self) -> float:
        """Share of directions that move at least as far, this one counted in (a permutation p-value)."""
        if not np.isfinite(self.shift):
            return float("nan")
        return float((1 + np.sum(self.random >= self.shift)) / (1 + len(self.random)))


def target_of(readings: Readings, index: int) -> Target:
    """What a feature is held to: the persona that its name or a tag says, all when it falls.

    A feature that names none (a latent, a direction of a diff) is held to the persona that it reads
    best in the training answers; the held-out ones then judge that choice.
    """
    feature, personas = readings.pack.features[index], readings.texts.personas
    if feature.name.partition(".")[0] == ASSISTANT or feature.sign < 0:
        return Target(personas=personas, chosen=False)
    named = [p for p in personas if p in (feature.name.partition(".")[0], *feature.tags)]
    if named:
        return Target(personas=tuple(named), chosen=False)
    good = readings.train[None].scores[:, index]
    best = max(personas, key=lambda p: auc(readings.train[p].scores[:, index], good))
    return Target(personas=(best,), chosen=True)


def separation(readings: Readings, index: int, generator: np.random.Generator) -> Separation:
    """All figures of one feature from readings alone. What it cannot read (NaN) is left out."""
    feature, texts = readings.pack.features[index], readings.texts
    target = target_of(readings, index)
    personas = target.personas

    def scores(voices: Mapping[Voice, Read], voice: Voice) -> Floats:
        return feature.toward(voices[voice].scores[:, index])

    good = scores(readings.held_out, None)
    answers = np.stack([scores(readings.held_out, p) for p in personas])
    check = feature.toward(readings.check.scores[:, index])
    pool = np.flatnonzero(np.isfinite(check))
    # Every negative is used once, so no more positives than there are of them.
    able = np.flatnonzero(np.isfinite(answers).all(axis=0) & np.isfinite(good))
    most = len(pool) // len(personas)
    kept = able if len(able) <= most else np.sort(generator.permutation(able)[:most])
    lexical = LexicalScore(
        [row.personas[p] for row in texts.train for p in personas],
        [row.good for row in texts.train],
    )
    ours = np.stack([lexical.of([row.personas[p] for row in texts.held_out]) for p in personas])
    benign = lexical.of([prompt.response or "" for prompt in texts.check])[pool]
    tokens = np.stack([readings.held_out[p].tokens[:, index] for p in personas])
    by_words = nearest(ours[:, kept].ravel(), benign)
    by_length = length_matched(tokens[:, kept].ravel(), readings.check.tokens[pool, index])
    shift, random = _shifts(readings, index, target)
    shape = len(personas), len(kept)
    return Separation(
        target=target,
        against_good=auc_bound(
            answers[:, able], np.tile(good[able], (len(personas), 1)), generator
        ),
        length_matched=auc_bound(
            answers[:, kept], check[pool][by_length].reshape(shape), generator
        ),
        vocabulary_matched=auc_bound(
            answers[:, kept], check[pool][by_words].reshape(shape), generator
        ),
        shift=shift,
        random=random,
        random_aucs=_random_aucs(readings, index, target),
        other_personas={
            p: auc(scores(readings.held_out, p), good) for p in texts.personas if p not in personas
        },
        shuffled_share=_left(readings.shuffled, readings.held_out, index, target),
        words=auc(ours.ravel(), lexical.of([row.good for row in texts.held_out])),
        words_matched=auc(ours[:, kept].ravel(), benign[by_words]),
    )


def _left(
    changed: Mapping[Voice, Read], whole: Mapping[Voice, Read], index: int, target: Target
) -> float:
    """Mean difference to the good answers in ``changed`` texts, as a share of that in ``whole`` ones."""

    def difference(voices: Mapping[Voice, Read]) -> float:
        persona = [np.nanmean(voices[p].scores[:, index]) for p in target.personas]
        return float(np.mean(persona) - np.nanmean(voices[None].scores[:, index]))

    of_whole = difference(whole)
    return difference(changed) / of_whole if of_whole else float("nan")


def _shifts(readings: Readings, index: int, target: Target) -> tuple[float, Doubles]:
    """Shift of the feature and of its controls [r], in deviations of the benign check readings."""
    columns = np.r_[index, np.r_[readings.controls[index]]]

    def difference(voices: Mapping[Voice, Read]) -> Doubles:
        persona = [
            np.nanmean(voices[p].raw[:, columns], axis=0, dtype=np.float64) for p in target.personas
        ]
        good = np.nanmean(voices[None].raw[:, columns], axis=0, dtype=np.float64)
        found: Doubles = np.mean(persona, axis=0) - good
        return found

    spread = np.maximum(np.nanstd(readings.check.raw[:, columns], axis=0, dtype=np.float64), 1e-12)
    signs = np.where(difference(readings.train) < 0, -1.0, 1.0)
    signs[0] = readings.pack.features[index].sign
    shifts = signs * difference(readings.held_out) / spread
    return float(shifts[0]), shifts[1:]


def _random_aucs(readings: Readings, index: int, target: Target) -> Doubles:
    columns = readings.controls[index]

    def side(voices: Mapping[Voice, Read]) -> tuple[Floats, Floats]:
        ours = np.concatenate([voices[p].raw[:, columns] for p in target.personas])
        return ours, voices[None].raw[:, columns]

    (ours, good), (train, train_good) = side(readings.held_out), side(readings.train)
    signs = np.where(train.mean(axis=0) < train_good.mean(axis=0), -1.0, 1.0)
    return np.array([auc(s * ours[:, i], s * good[:, i]) for i, s in enumerate(signs)])
