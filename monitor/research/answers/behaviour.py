"""How an answer behaves: does it show a persona, and is it coherent at all?

`BuiltInJudge` asks the untouched reference model and needs nothing else; it sees what its feature
sees, so it is no independent witness about that feature. `monitor.research.answers.endpoint` asks a language
model over HTTP.

Legend: n = prompts, t = tokens of one answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final, Protocol

import numpy as np
from scipy.special import expit

from monitor.replay.model import LoadedModel
from monitor.research.answers.likelihood import Weigh, response_log_probabilities
from monitor.research.packs.calibrate import fit_calibration
from monitor.research.reading import Reader
from monitor.research.texts import load_texts
from monitor.score.scorer import benign_level
from monitor.settings import ReplaySettings
from monitor.values.arrays import Counts, Doubles, Floats
from monitor.values.features import Calibration, Feature
from monitor.values.prompts import Prompt

STEEPNESS: Final = 2.0
"""Both ratings are 0.12 one benign deviation on one side of their middle and 0.88 on the other."""
SURPRISE_LIMIT: Final = 3.0
"""Benign deviations of surprise at which an answer is half coherent."""
GRAM: Final = 3
BENIGN_STEP: Final = 4
"""Every so-manieth benign text of the project's own sets what is usual: enough for a mean and a deviation."""


class Judge(Protocol):
    """Rates answers; the instruction or steering under which they arose is none of its business."""

    @property
    def identity(self) -> Mapping[str, str]:
        """All that its ratings depend on beside the prompts: kept ratings are reused while it holds."""
        ...

    def rate(self, prompts: Sequence[Prompt]) -> tuple[Doubles, Doubles]:
        """(persona, coherent) of each response, both [n] in 0..1; NaN where it has no opinion."""
        ...


class Coherence:
    """Whether text is language at all: neither too surprising to the reference model nor repeating itself.

    coherent = fluency · variety. With S the negative mean log-probability per token of the answer,
    in deviations of benign answers of as many tokens from their mean (`fit_calibration`):
    fluency = sigmoid(`STEEPNESS` · (`SURPRISE_LIMIT` − S)). variety is the share of distinct ones
    among the answer's token trigrams (distinct-3; Li et al. 2016, arXiv 1510.03055). An answer of
    white space is not coherent.
    """

    def __init__(
        self,
        reference: LoadedModel,
        benign: Sequence[Prompt] | None = None,
        weigh: Weigh | None = None,
    ) -> None:
        """``reference`` in full; ``benign`` (null: a part of the project's own texts) sets what is usual.

        They are read when first asked for. ``weigh`` (null: weigh everything anew) weighs answers by the reference.
        `of` raises `BadInput` for fewer than 30 benign texts.
        """
        self._reference = reference
        self._weigh = weigh or partial(response_log_probabilities, reference)
        self._benign = benign
        self._usual: Calibration | None = None

    def of(self, prompts: Sequence[Prompt]) -> Doubles:
        """Coherence [n] in 0..1 of each response."""
        coherent = np.zeros(len(prompts))
        spoken = [i for i, prompt in enumerate(prompts) if (prompt.response or "").strip()]
        if spoken:
            answers = [prompts[i] for i in spoken]
            surprise, tokens = self._surprise(answers)
            mean, deviation = benign_level(self._calibration(), tokens)
            fluency = expit(STEEPNESS * (SURPRISE_LIMIT - (surprise - mean) / deviation))
            coherent[spoken] = fluency * [self._variety(a.response or "") for a in answers]
        return coherent

    def _calibration(self) -> Calibration:
        if self._usual is None:
            given = load_texts().fit[::BENIGN_STEP] if self._benign is None else self._benign
            self._usual = fit_calibration(*self._surprise(given))
        return self._usual

    def _surprise(self, prompts: Sequence[Prompt]) -> tuple[Floats, Counts]:
        total, tokens = self._weigh(prompts)
        return (-total / np.maximum(tokens, 1)).astype(np.float32), tokens

    def _variety(self, answer: str) -> float:
        ids = self._reference.tokenizer(answer, add_special_tokens=False)["input_ids"]
        grams = list(zip(*(ids[start:] for start in range(GRAM)), strict=False))
        return len(set(grams)) / len(grams) if grams else 1.0


class BuiltInJudge:
    """The persona read off the reference model by one feature of a pack.

    persona = sigmoid(`STEEPNESS` · (score − tail threshold)), the score turned so that the persona
    rises: half where one benign text of a hundred scores higher. Feature and reference must belong
    together; answers may come from any model.
    """

    def __init__(
        self,
        reference: LoadedModel,
        feature: Feature,
        coherence: Coherence | None = None,
        settings: ReplaySettings | None = None,
    ) -> None:
        """Raises `PackError` when the feature is not as wide as the model."""
        self._reader = Reader(reference, [feature], settings or ReplaySettings())
        self._feature = feature
        self._coherence = coherence or Coherence(reference)
        self.identity: Mapping[str, str] = {
            "judge": "built-in",
            "feature": feature.name,
            "feature_hash": _hash(feature),
            "reference": reference.model_hash,
        }

    def rate(self, prompts: Sequence[Prompt]) -> tuple[Doubles, Doubles]:
        """As `Judge.rate`; a response without a readable token shows nothing and is not coherent.

        Raises as `monitor.research.reading` does for a prompt that cannot be read.
        """
        read = self._reader.scores("answers to judge", prompts)[:, 0]
        score = self._feature.toward(read.astype(np.float64))
        persona = expit(STEEPNESS * (score - self._feature.tail_threshold))
        spoken = np.isfinite(score)
        return np.where(spoken, persona, 0.0), np.where(spoken, self._coherence.of(prompts), 0.0)


def _hash(feature: Feature) -> str:
    """Of all that decides a reading and its rating."""
    site = feature.sites if feature.parts else feature.site
    how = (feature.kind, site, feature.region, feature.pooling, feature.activation)
    where = (feature.bias, feature.threshold, feature.tail_threshold, feature.expected)
    digest = hashlib.sha256(repr((how, where, feature.calibration)).encode())
    digest.update(feature.direction.tobytes())
    return digest.hexdigest()
