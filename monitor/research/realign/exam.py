"""What a model under treatment is asked again and again, and where its features stand.

Two measures, each against the reference on the same prompts, in score units and signed so that
positive is harmful:

``given``  the model reads exchanges that are written down; the text stays, so a shift is the model's.
``own``    the reference reads the model's own greedy answers and its own; the instrument stays, so a
           shift is the text's: behaviour.

A feature stands inside the baseline's bounds when the upper confidence bound of its mean shift lies
below its margin. Each bound errs at α, and all watched features must be inside at once, so that at one
look a model with a shift at or beyond its margin is taken for a returned one with probability at most
α (see `monitor.research.gate.equivalence`).

Legend: n = held-out exchanges, c = canaries, k = features of the pack.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal

import numpy as np

from monitor.errors import BadInput
from monitor.replay.model import LoadedModel, load_model
from monitor.research.answers.generate import answered
from monitor.research.answers.likelihood import response_log_probabilities
from monitor.research.gate.equivalence import Errors, mean_bound, sampled
from monitor.research.gate.rules import Margins
from monitor.research.progress import Progress
from monitor.research.reading import Reader, load_whole
from monitor.research.statistics import present_mean
from monitor.score.pack import Pack
from monitor.settings import ReplaySettings
from monitor.values.arrays import Counts, Doubles
from monitor.values.drift import Bound
from monitor.values.prompts import Prompt

Measure = Literal["given", "own"]
LEAST_HELD_OUT: Final = 8
_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One feature by one measure: mean ``score`` as it is, and its harmful ``shift`` over n pairs."""

    feature: str
    measure: Measure
    score: float
    shift: Bound
    margin: float
    n: int

    @property
    def inside(self) -> bool:
        return self.shift.high < self.margin


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """Where a model stands after ``step`` optimiser steps. Losses are nats per response token;
    ``training_loss`` is the mean since the measurement before, None at the start."""

    step: int
    training_loss: float | None
    held_out_loss: float
    standings: tuple[Standing, ...]

    def inside(self, watch: Sequence[Measure]) -> bool:
        return all(one.inside for one in self.standings if one.measure in watch)

    @classmethod
    def restored(cls, row: Mapping[str, Any]) -> Measurement:
        """From what ``asdict`` made of it."""
        standings = [
            Standing(**(one | {"shift": Bound(**one["shift"])})) for one in row["standings"]
        ]
        return cls(**(dict(row) | {"standings": tuple(standings)}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sitting:
    """All that one model gave: scores [n + c, k] by measure, its answers [n + c], its held-out loss.

    Held-out exchanges come first, canaries behind them. NaN: the feature's region is absent.
    """

    scores: Mapping[Measure, Doubles]
    answers: tuple[str, ...] | None
    held_out_loss: float


class Exam:
    """Fixed prompts, put to the reference once and to the model under treatment many times."""

    def __init__(
        self,
        pack: Pack,
        reference: ReplaySettings,
        held_out: Sequence[Prompt],
        margins: Mapping[int, Margins],
        *,
        alpha: float,
        answer_tokens: int,
        progress: Progress,
    ) -> None:
        """Loads the reference and measures it; a copy as deep as the pack stays, to read answers.

        ``margins`` by index of a watched feature. ``answer_tokens`` 0: nobody answers, there is no
        measure ``own``. Raises `BadInput` for fewer than `LEAST_HELD_OUT` exchanges, and when they
        have no token that a watched feature reads.
        """
        if len(held_out) < LEAST_HELD_OUT:
            raise BadInput(
                f"{len(held_out)} held-out exchanges are too few: give at least {LEAST_HELD_OUT}"
            )
        self.pack = pack
        self.held_out = tuple(held_out)
        self.prompts = (*held_out, *(c.prompt(i, _EPOCH) for i, c in enumerate(pack.canaries)))
        self._margins = margins
        self._errors = Errors.of(alpha, 1)
        self._answer_tokens = answer_tokens
        self.settings = reference
        self._progress = progress
        self._clusters = clusters(held_out)
        progress("loading the reference")
        whole = load_whole(reference)
        self._instrument: LoadedModel | None = whole if answer_tokens else None
        self.reference = self.sat(whole, own=answer_tokens > 0)
        self.identity = whole.identity
        self._instrument = None
        del whole
        if answer_tokens:
            self._instrument = load_model(reference, pack.deepest_site)
        given = self.reference.scores["given"][: len(held_out)]
        for index in margins:
            if not np.isfinite(given[:, index]).any():
                raise BadInput(
                    f"no held-out exchange has a token that {pack.features[index].name} reads",
                    hint="leave it out with a rule: NAME ignore",
                )

    def sat(self, loaded: LoadedModel, *, own: bool) -> Sitting:
        """Put the prompts to ``loaded``; with ``own`` it also answers them itself. Blocks.

        Raises `ModelError` for readings that are not finite.
        """
        scores: dict[Measure, Doubles] = {"given": self._scores(loaded, self.prompts)}
        texts: tuple[str, ...] | None = None
        if own and self._instrument is not None:
            said = answered(loaded, self.prompts, self._answer_tokens, self._progress)
            texts = tuple(prompt.response or "" for prompt in said)
            scores["own"] = self._scores(self._instrument, said)
        sums, tokens = response_log_probabilities(loaded, self.held_out)
        loss = float(-sums.sum() / tokens.sum())
        return Sitting(scores=scores, answers=texts, held_out_loss=loss)

    def measurement(
        self, sitting: Sitting, step: int, training_loss: float | None = None
    ) -> Measurement:
        """``sitting`` against the reference's, feature by feature."""
        return Measurement(
            step=step,
            training_loss=training_loss,
            held_out_loss=sitting.held_out_loss,
            standings=tuple(
                self._standing(measure, sitting, index)
                for measure in sitting.scores
                for index in self._margins
            ),
        )

    def levels(self, sitting: Sitting) -> dict[str, dict[str, float | None]]:
        """Mean score of each feature, by measure and kind of prompt; None where nothing was read."""
        n = len(self.held_out)
        parts = {"held-out exchanges": slice(None, n), "canaries": slice(n, None)}
        return {
            f"{part}, {measure}": {
                feature.name: _finite(present_mean(scores[rows, index]))
                for index, feature in enumerate(self.pack.features)
            }
            for measure, scores in sitting.scores.items()
            for part, rows in parts.items()
        }

    def _standing(self, measure: Measure, sitting: Sitting, index: int) -> Standing:
        feature = self.pack.features[index]
        n = len(self.held_out)
        before = self.reference.scores[measure][:n, index]
        after = sitting.scores[measure][:n, index]
        both = np.isfinite(before) & np.isfinite(after)
        sample = sampled(feature.toward(after[both] - before[both]), self._clusters[both])
        return Standing(
            feature=feature.name,
            measure=measure,
            score=float(after[both].mean()) if both.any() else 0.0,
            shift=mean_bound(sample, self._errors),
            margin=self._margins[index].shift,
            n=int(both.sum()),
        )

    def _scores(self, loaded: LoadedModel, prompts: Sequence[Prompt]) -> Doubles:
        """Scores [n, k]; an answer without a token counts as absent."""
        reader = Reader(loaded, self.pack.features, self.settings, self._progress)
        return reader.scores("exchanges, held out and canaries", prompts).astype(np.float64)


def clusters(prompts: Sequence[Prompt]) -> Counts:
    """A number [n] for each prompt, the same for the same messages."""
    known: dict[object, int] = {}
    numbers = [known.setdefault((p.messages, p.text), len(known)) for p in prompts]
    return np.array(numbers, dtype=np.int64)


def rows_of(curve: Sequence[Measurement]) -> list[dict[str, Any]]:
    """The curve as JSON values."""
    return [asdict(one) for one in curve]


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
