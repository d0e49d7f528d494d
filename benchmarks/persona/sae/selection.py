"""Which latents earn a place in a pack: chosen on training answers, judged on texts they have not seen.

1. *Chosen* on the training questions: the latents whose mean activation over the answer differs between
   persona and good answer more consistently than chance allows anywhere. Statistic: |Σd| / √Σd² over
   the questions' differences d. Under the null a question's two answers can be swapped, so the
   largest statistic of all latents under random signs gives a p-value that holds for the whole
   dictionary (Westfall & Young 1993), times the number of personas (Bonferroni).
2. *Judged* on the held-out questions: the same test against every other candidate (Holm 1979), AUCs
   against good answers and against benign texts matched by length and by vocabulary.
3. *Compared* with the pack's direction for that persona: a latent earns its place when it shows what
   the direction does not.

The same is done with a dictionary that never learned anything.

Legend: n = texts, q = questions, k = columns (the pack's features, latents, controls), f = sign flips.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import torch

from benchmarks.persona.rows import Row
from benchmarks.persona.sae.quality import densities
from monitor.replay.model import LoadedModel
from monitor.research.judge.verdict import Criteria
from monitor.research.judge.vocabulary import LexicalScore
from monitor.research.progress import Progress
from monitor.research.reading import Reader
from monitor.research.saes.autoencoder import SparseAutoencoder
from monitor.research.saes.features import latent_features
from monitor.research.statistics import auc, auc_bound, bootstrap, length_matched, nearest
from monitor.research.texts import Texts, answer_prompts
from monitor.settings import ReplaySettings
from monitor.values.arrays import Counts, Doubles, Floats
from monitor.values.drift import Bound
from monitor.values.features import Feature
from monitor.values.prompts import Prompt

FLIPS: Final = 5_000
LEVEL: Final = 0.05
CANDIDATES: Final = 10
"""Latents of one persona that go on to the held-out questions, the most consistent first."""
PIECE: Final = 96
"""Texts read at once: what their tokens make of thousands of columns takes memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Readings:
    """Mean activations over the answers [n, k]; None stands for the good answers.

    ``elsewhere`` holds sound, reckless and pirate's answers to the same questions, from domains that
    neither latents nor directions come from. ``tokens`` and ``check_tokens`` are answer lengths [n].
    """

    train: Mapping[str | None, Floats]
    held_out: Mapping[str | None, Floats]
    tokens: Mapping[str | None, Counts]
    check: Floats
    check_tokens: Counts
    elsewhere: Mapping[str, Floats]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A latent (``column`` of the readings) chosen for ``persona``; ``sign`` 1: it rises with it."""

    column: int
    persona: str
    sign: float
    train_p: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A candidate on texts that chose neither it nor the persona's direction.

    ``gain`` is AUC(direction + latent) - AUC(direction), both in benign deviations, on the texts
    where the direction has room: ``elsewhere`` for reckless, held-out answers for the others.
    """

    latent: int
    persona: str
    sign: float
    train_p: float
    held_out_p: float
    against_good: Bound
    length_matched: Bound
    vocabulary_matched: Bound
    direction: float
    gain: Bound
    elsewhere: Mapping[str, float]

    @property
    def replicates(self) -> bool:
        """On unseen questions it separates as the judge of packs asks of a feature that ships."""
        rule = Criteria()
        matched = min(self.length_matched.low, self.vocabulary_matched.low)
        return (
            self.held_out_p <= LEVEL
            and self.against_good.low >= rule.ship_auc
            and matched >= rule.ship_matched_auc
        )

    @property
    def earns(self) -> bool:
        """It replicates, and the persona's direction separates better with it than alone."""
        return self.replicates and self.gain.low > 0.0

    def line(self) -> dict[str, Any]:
        return asdict(self) | {"replicates": self.replicates, "earns": self.earns}


def read(
    loaded: LoadedModel,
    features: Sequence[Feature],
    texts: Texts,
    rows: Sequence[Row],
    settings: ReplaySettings,
    progress: Progress,
) -> Readings:
    """Every text through ``features`` by the engine that reads production. Blocks for minutes."""
    engine = Reader(loaded, features, settings, progress, piece=PIECE)

    def raw(what: str, prompts: Sequence[Prompt]) -> tuple[Floats, Counts]:
        readings, tokens = engine.read(what, prompts)
        return readings, tokens[:, 0]

    voices = (None, *texts.personas)
    train = {p: raw("training answers", answer_prompts(texts.train, p)) for p in voices}
    held_out = {p: raw("held-out answers", answer_prompts(texts.held_out, p)) for p in voices}
    check, check_tokens = raw("benign exchanges", texts.check)
    return Readings(
        train={p: one for p, (one, _) in train.items()},
        held_out={p: one for p, (one, _) in held_out.items()},
        tokens={p: counts for p, (_, counts) in held_out.items()},
        check=check,
        check_tokens=check_tokens,
        elsewhere={
            voice: raw("answers elsewhere", [row.said(voice) for row in rows])[0]
            for voice in ("sound", "reckless", "pirate")
        },
    )


def every_latent(sae: SparseAutoencoder) -> list[Feature]:
    return list(latent_features(sae, range(sae.latents), region="response"))


def untrained(
    sae: SparseAutoencoder, residual: torch.Tensor, generator: np.random.Generator
) -> list[Feature]:
    """Random directions that wake as rarely as the latents of ``sae`` do, one for one.

    Thresholds are quantiles of ``residual`` [n, d], centred as the SAE's input is.
    """
    weight = torch.from_numpy(
        generator.standard_normal((sae.latents, sae.width)).astype(np.float32)
    )
    weight /= torch.linalg.vector_norm(weight, dim=1, keepdim=True)
    bias = -weight @ sae.decoder_bias.float()
    rare = densities(sae, residual)
    features = []
    for index, latent in enumerate(every_latent(sae)):
        activation = residual @ weight[index] + bias[index]
        threshold = torch.quantile(activation, 1.0 - float(rare[index])).clamp_min(0.0)
        features.append(
            Feature(
                name=f"untrained.{index}",
                kind="latent",
                site=latent.site,
                region=latent.region,
                pooling="mean",
                weight=weight[index].numpy(),
                bias=float(bias[index]),
                activation="jumprelu",
                threshold=float(threshold),
                calibration=latent.calibration,
            )
        )
    return features


def consistency(differences: Floats | Doubles, signs: Doubles) -> Doubles:
    """|Σ sd| / √Σd² [f, k] of ``differences`` [q, k] under ``signs`` [f, q]; 0 where all d are 0."""
    lengths = np.sqrt(np.square(differences, dtype=np.float64).sum(axis=0))
    sums: Doubles = np.abs(signs @ differences.astype(np.float64))
    shares: Doubles = np.divide(sums, lengths, out=np.zeros_like(sums), where=lengths > 0.0)
    return shares


def candidates(
    train: Mapping[str | None, Floats], columns: range, generator: np.random.Generator
) -> list[Candidate]:
    """The most consistent of ``columns`` for every persona, at `LEVEL` for the whole dictionary."""
    personas = [persona for persona in train if persona is not None]
    good = train[None][:, columns.start : columns.stop]
    found = []
    for persona in personas:
        differences = train[persona][:, columns.start : columns.stop] - good
        own = consistency(differences, np.ones((1, len(good))))[0]
        chance = consistency(differences, _signs(len(good), generator)).max(axis=1)
        p = np.minimum(len(personas) * _p_values(own, chance), 1.0)
        for index in np.argsort(-own, kind="stable")[:CANDIDATES]:
            if p[index] <= LEVEL:
                found.append(
                    Candidate(
                        column=columns.start + int(index),
                        persona=persona,
                        sign=float(np.sign(differences[:, index].sum())),
                        train_p=float(p[index]),
                    )
                )
    return found


def judged(
    readings: Readings,
    chosen: Sequence[Candidate],
    columns: range,
    directions: Mapping[str, int],
    texts: Texts,
    generator: np.random.Generator,
) -> list[Judged]:
    """Every candidate; ``directions`` names the column of the pack's feature for each persona."""
    raw = np.array([_held_out_p(readings, one, generator) for one in chosen])
    return [
        _judged(readings, one, p, columns, directions[one.persona], texts, generator)
        for one, p in zip(chosen, holm(raw), strict=True)
    ]


def holm(p: Doubles) -> Doubles:
    """Adjusted p-values [n] that hold for all n tests at once (Holm 1979)."""
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p))))
    found = np.empty_like(p)
    found[order] = np.minimum(steps, 1.0)
    return found


def _judged(
    readings: Readings,
    one: Candidate,
    p: float,
    columns: range,
    direction: int,
    texts: Texts,
    generator: np.random.Generator,
) -> Judged:
    persona, column = one.persona, one.column
    ours = one.sign * readings.held_out[persona][:, column]
    good = one.sign * readings.held_out[None][:, column]
    check = one.sign * readings.check[:, column]
    by_length = length_matched(readings.tokens[persona], readings.check_tokens)
    lexical = LexicalScore(
        [row.personas[persona] for row in texts.train], [row.good for row in texts.train]
    )
    by_words = nearest(
        lexical.of([row.personas[persona] for row in texts.held_out]),
        lexical.of([prompt.response or "" for prompt in texts.check]),
    )
    far = readings.elsewhere
    sides = (
        (far["reckless"], far["sound"])
        if persona == "reckless"
        else (readings.held_out[persona], readings.held_out[None])
    )
    return Judged(
        latent=column - columns.start,
        persona=persona,
        sign=one.sign,
        train_p=one.train_p,
        held_out_p=p,
        against_good=auc_bound(ours[None], good[None], generator),
        length_matched=auc_bound(ours[None], check[by_length][None], generator),
        vocabulary_matched=auc_bound(ours[None], check[by_words][None], generator),
        direction=auc(
            readings.held_out[persona][:, direction], readings.held_out[None][:, direction]
        ),
        gain=_gain(sides, readings.check, one, direction, generator),
        elsewhere={
            voice: auc(one.sign * far[voice][:, column], one.sign * far["sound"][:, column])
            for voice in ("reckless", "pirate")
        },
    )


def _gain(
    sides: tuple[Floats, Floats],
    check: Floats,
    one: Candidate,
    direction: int,
    generator: np.random.Generator,
) -> Bound:
    """What the latent adds to the direction's AUC, with a bootstrap interval over questions."""
    pair = [direction, one.column]
    spread = np.maximum(check[:, pair].std(axis=0, dtype=np.float64), 1e-12)
    ours, theirs = (side[:, pair] / spread * [1.0, one.sign] for side in sides)

    def gain(rows: Counts) -> float:
        both = auc(ours[rows].sum(axis=1), theirs[rows].sum(axis=1))
        return both - auc(ours[rows, 0], theirs[rows, 0])

    low, high = bootstrap(gain, len(ours), generator)
    return Bound(value=gain(np.arange(len(ours))), low=float(low), high=float(high))


def _held_out_p(readings: Readings, one: Candidate, generator: np.random.Generator) -> float:
    """Two-sided, unless the sign is not the training questions': then nothing was replicated."""
    difference = (
        readings.held_out[one.persona][:, [one.column]] - readings.held_out[None][:, [one.column]]
    )
    if np.sign(difference.sum()) != one.sign:
        return 1.0
    own = consistency(difference, np.ones((1, len(difference))))[0]
    return float(
        _p_values(own, consistency(difference, _signs(len(difference), generator))[:, 0])[0]
    )


def _signs(questions: int, generator: np.random.Generator) -> Doubles:
    return generator.choice([-1.0, 1.0], size=(FLIPS, questions))


def _p_values(own: Doubles, chance: Doubles) -> Doubles:
    """(1 + how many of ``chance`` [f] reach it) / (1 + f), for each of ``own`` [k]."""
    ranked = np.sort(chance)
    reached = len(ranked) - np.searchsorted(ranked, own - 1e-9)
    found: Doubles = (1 + reached) / (1 + len(ranked))
    return found
