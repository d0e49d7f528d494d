"""Every text of a judgement, read once by the production engine.

Beside the features stand random directions: for each way of reading that the pack has (site, region,
pooling, input norm), `CONTROLS` of them.

A feature that reads the prompt cannot see an answer that stands behind it. For such a feature the
answer becomes history: the question, the answer, and another question.

Legend: n = texts, k = features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from monitor.replay.model import LoadedModel
from monitor.research.judge.vocabulary import shuffled
from monitor.research.packs.calibrate import UNCALIBRATED
from monitor.research.progress import Progress
from monitor.research.reading import Reader
from monitor.research.statistics import random_composites, random_directions
from monitor.research.texts import Contrast, Texts, answer_prompts
from monitor.score.pack import Pack
from monitor.score.scorer import Scorer
from monitor.settings import ReplaySettings
from monitor.values.arrays import Counts, Floats
from monitor.values.features import Feature
from monitor.values.prompts import Message, Prompt

CONTROLS: Final = 100
PIECE: Final = 96
"""Texts read at once."""
PROMPT_REGIONS: Final = ("prompt", "last_prompt_token")
Voice = str | None
"""A persona, or None for the good answers."""


@dataclass(frozen=True, slots=True)
class Read:
    """``raw`` readings [n, k + controls], ``scores`` [n, k] and pooled ``tokens`` [n, k]."""

    raw: Floats
    scores: Floats
    tokens: Counts


@dataclass(frozen=True, slots=True, kw_only=True)
class Readings:
    """Everything that is judged from. ``controls[i]`` are the columns of ``raw`` that control feature i."""

    pack: Pack
    texts: Texts
    train: Mapping[Voice, Read]
    held_out: Mapping[Voice, Read]
    shuffled: Mapping[Voice, Read]
    fit: Read
    check: Read
    controls: tuple[slice, ...]


def take_readings(
    pack: Pack,
    loaded: LoadedModel,
    texts: Texts,
    settings: ReplaySettings,
    generator: np.random.Generator,
    progress: Progress,
) -> Readings:
    """Read every text once. Blocks for minutes. Raises `BadInput` for a text that cannot be read."""
    ways = [_way(feature) for feature in pack.features]
    first = {way: pack.features[ways.index(way)] for way in dict.fromkeys(ways)}
    random = _controls(list(first.values()), pack.model.hidden_size, generator)
    # What a piece's tokens make of a thousand controls takes memory.
    reader = Reader(loaded, [*pack.features, *random], settings, progress, piece=PIECE)
    read = _Reading(pack, reader)
    k = len(pack.features)
    return Readings(
        pack=pack,
        texts=texts,
        train=read.voices("training answers", texts.train, texts.personas),
        held_out=read.voices("held-out answers", texts.held_out, texts.personas),
        shuffled=read.voices("shuffled answers", texts.held_out, texts.personas, generator),
        fit=read.all("benign exchanges of the calibration", texts.fit),
        check=read.all("benign exchanges of the check", texts.check),
        controls=tuple(
            slice(k + CONTROLS * start, k + CONTROLS * (start + 1))
            for start in map(list(first).index, ways)
        ),
    )


class _Reading:
    """Reads texts for a pack and for the random features behind it."""

    def __init__(self, pack: Pack, reader: Reader) -> None:
        self._k = len(pack.features)
        self._scorer = Scorer(pack)
        self._of_prompt = np.array([f.region in PROMPT_REGIONS for f in reader.features])
        self._reader = reader

    def all(
        self, what: str, prompts: Sequence[Prompt], following: Sequence[str] | None = None
    ) -> Read:
        """``prompts`` in order. With ``following`` [n] questions, the answers are history to what
        reads the prompt."""
        raw, tokens = self._reader.read(what, prompts)
        if following is not None and self._of_prompt.any():
            past, past_tokens = self._reader.read(what, _histories(prompts, following))
            raw = np.where(self._of_prompt, past, raw)
            tokens = np.where(self._of_prompt, past_tokens, tokens)
        tokens = tokens[:, : self._k]
        return Read(raw, self._scorer.score(raw[:, : self._k], tokens), tokens)

    def voices(
        self,
        what: str,
        rows: Sequence[Contrast],
        personas: Sequence[str],
        shuffle: np.random.Generator | None = None,
    ) -> dict[Voice, Read]:
        """Every voice's answers to ``rows``, their words in another order when ``shuffle`` is given."""
        voices: tuple[Voice, ...] = (None, *personas)
        # The answers to one question stand together: the engine runs what they share once.
        prompts = [prompt for row in rows for v in voices for prompt in answer_prompts([row], v)]
        following = [rows[(i + 1) % len(rows)].question for i in range(len(rows)) for _ in voices]
        read = self.all(what, prompts if shuffle is None else shuffled(prompts, shuffle), following)
        step = len(voices)
        return {
            voice: Read(read.raw[at::step], read.scores[at::step], read.tokens[at::step])
            for at, voice in enumerate(voices)
        }


def _way(feature: Feature) -> tuple[Any, ...]:
    rolling = feature.rolling_tokens if feature.pooling == "max_rolling_mean" else 1
    return (
        feature.sites,
        feature.lengths,
        feature.region,
        feature.pooling,
        feature.input_norm,
        feature.skip_tokens,
        rolling,
        feature.largest_norm,
    )


def _controls(ways: Sequence[Feature], width: int, generator: np.random.Generator) -> list[Feature]:
    """`CONTROLS` random directions read as each of ``ways`` is; those of one site share theirs."""
    shared = random_directions(CONTROLS, width, generator)
    return [
        _control(like, direction)
        for like in ways
        for direction in (
            random_composites(CONTROLS, like.lengths, width, generator) if like.parts else shared
        )
    ]


def _control(like: Feature, direction: Floats) -> Feature:
    """A random direction read as ``like`` is. It is linear whatever the feature's activation is: a
    ReLU or a sigmoid changes no order, and a control that is never cut off at zero is the stronger."""
    return replace(
        like,
        name="control",
        kind="direction",
        activation="identity",
        bias=0.0,
        threshold=0.0,
        calibration=UNCALIBRATED,
        encoder=None,
        latent=None,
    ).along(direction)


def _histories(prompts: Sequence[Prompt], following: Sequence[str]) -> list[Prompt]:
    """Each answered question as the beginning of a chat that goes on with another question."""
    return [
        replace(
            prompt,
            messages=(
                *prompt.messages,
                Message(role="assistant", content=prompt.response or ""),
                Message(role="user", content=question),
            ),
            response=None,
        )
        for prompt, question in zip(prompts, following, strict=True)
    ]
