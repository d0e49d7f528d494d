"""Everything of a judgement that needs the model in float32, for features that are judged by the same texts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from monitor.replay.residuals import ResidualReader
from monitor.research.judge.control import Control, DosePlan, Keeping, controls
from monitor.research.judge.noise import batch_noise, scores
from monitor.research.judge.readings import Readings, take_readings
from monitor.research.judge.redundancy import Redundancy, redundancy
from monitor.research.judge.separation import Separation, separation
from monitor.research.judge.stability import Stability, stability
from monitor.research.progress import Progress
from monitor.research.reading import load_whole
from monitor.research.texts import Texts, answer_prompts
from monitor.score.pack import Pack
from monitor.settings import ReplaySettings
from monitor.values.arrays import Doubles, Floats
from monitor.values.prompts import Prompt

NOISE_QUESTIONS: Final = 24
"""So many questions, spaced over all of them, tell the noise floor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    readings: Readings
    separations: tuple[Separation, ...]
    stabilities: Mapping[int, Stability]
    redundancy: Redundancy
    controls: Mapping[int, Control]
    batch_noise: Mapping[str, Doubles]
    reference: Floats

    def positives(self, index: int) -> Floats:
        """Scores [p, q] of what the feature is held to, turned so that high is the persona."""
        feature = self.readings.pack.features[index]
        personas = self.separations[index].target.personas
        return feature.toward(
            np.stack([self.readings.held_out[p].scores[:, index] for p in personas])
        )


def measure(
    pack: Pack,
    texts: Texts,
    noise_texts: Sequence[Prompt],
    settings: ReplaySettings,
    plan: DosePlan,
    seed: int,
    kept: Keeping,
    progress: Progress,
) -> Measured:
    """Everything that needs the model in float32, which is let go of at the end; see `controls` for ``kept``."""
    progress(f"loading {pack.model.model_id}")
    loaded = load_whole(settings)
    readings = take_readings(
        pack, loaded, texts, settings, np.random.default_rng([seed, 0]), progress
    )
    progress("comparing with matched negatives and random directions")
    separations = tuple(
        separation(readings, index, np.random.default_rng([seed, 1, index]))
        for index in range(len(pack.features))
    )
    return Measured(
        readings=readings,
        separations=separations,
        stabilities=stability(
            readings,
            ResidualReader(loaded, settings),
            np.random.default_rng([seed, 2]),
            progress,
        ),
        redundancy=redundancy(readings),
        batch_noise=batch_noise(pack, loaded, settings, noise_texts, progress),
        reference=scores(
            pack, loaded, settings, noise_texts, progress, "texts for the noise floor"
        ),
        controls=controls(readings, loaded, plan, seed, kept, progress),
    )


def noise_prompts(texts: Texts, quick: bool) -> list[Prompt]:
    """Answers to the same questions, so that there are prefixes to share."""
    voices = [None, *texts.personas][: 2 if quick else 3]
    asked = texts.held_out[:: math.ceil(len(texts.held_out) / NOISE_QUESTIONS)]
    return [prompt for voice in voices for prompt in answer_prompts(asked, voice)]
