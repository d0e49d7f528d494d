"""What two models read on the same prompts: scores before and after, of one or two kinds.

Legend: n = prompts, k = features of the pack.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal

import numpy as np

from monitor.errors import BadInput, ModelError
from monitor.replay.engine import ReplayEngine
from monitor.replay.model import LoadedModel, load_model
from monitor.research.answers.generate import answers
from monitor.research.packs.assemble import Progress
from monitor.score.pack import Pack
from monitor.score.scorer import Scorer
from monitor.settings import ReplaySettings
from monitor.values.arrays import Doubles
from monitor.values.prompts import DeadReason, Prompt
from monitor.values.scores import Replayed

Kind = Literal["model", "behaviour"]
_CHUNK: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Scores [n, k] before and after, NaN where a feature's region is absent."""

    kind: Kind
    before: Doubles
    after: Doubles


def measured(
    pack: Pack,
    reference: ReplaySettings,
    candidate: ReplaySettings,
    prompts: Sequence[Prompt],
    generate: int | None,
    progress: Progress,
) -> tuple[list[Pairs], tuple[str, ...]]:
    """Scores of ``prompts`` by both models, and remarks on the answers.

    With ``generate``, both answer greedily with up to so many tokens; else the responses given are
    read. The candidate goes first, so that each model is loaded once and never beside the other.
    Raises `ModelError` for readings that are not finite, `BadInput` for prompts that cannot be replayed.
    """
    theirs = _Reader(pack, candidate, "candidate", progress, full=generate is not None)
    if generate is None:
        after = theirs.scores(prompts)
        del theirs
        ours = _Reader(pack, reference, "reference", progress, full=False)
        return [Pairs(kind="model", before=ours.scores(prompts), after=after)], ()
    candidates = theirs.answered(prompts, generate)
    after = theirs.scores(candidates)
    del theirs
    ours = _Reader(pack, reference, "reference", progress, full=True)
    own = ours.answered(prompts, generate)
    between = ours.scores(candidates)
    empty = [sum(not p.response for p in given) for given in (own, candidates)]
    same = sum(a.response == b.response for a, b in zip(own, candidates, strict=True))
    notes = (
        f"{same} of {len(prompts)} answers of up to {generate} tokens are the same; "
        f"empty answers: reference {empty[0]}, candidate {empty[1]}.",
    )
    return [
        Pairs(kind="behaviour", before=ours.scores(own), after=between),
        Pairs(kind="model", before=between, after=after),
    ], notes


@dataclass(slots=True)
class _Reader:
    """One loaded model with the pack that reads it."""

    pack: Pack
    settings: ReplaySettings
    who: str
    progress: Progress
    full: bool = field(kw_only=True)
    loaded: LoadedModel = field(init=False)

    def __post_init__(self) -> None:
        self.progress(f"loading the {self.who}")
        self.loaded = load_model(self.settings, self.pack.deepest_site, full=self.full)

    def answered(self, prompts: Sequence[Prompt], tokens: int) -> list[Prompt]:
        """The prompts with this model's greedy answers; an empty answer is None."""
        texts = answers(
            self.loaded,
            prompts,
            max_new_tokens=tokens,
            progress=lambda line: self.progress(f"{self.who}: {line}"),
        )
        return [replace(p, response=text or None) for p, text in zip(prompts, texts, strict=True)]

    def scores(self, prompts: Sequence[Prompt]) -> Doubles:
        """Scores [n, k]; NaN where a feature's region is absent."""
        engine = ReplayEngine(self.loaded, self.pack.features, self.settings)
        scorer = Scorer(self.pack)
        rows = np.full((len(prompts), len(self.pack.features)), np.nan)
        for start in range(0, len(prompts), _CHUNK):
            chunk = prompts[start : start + _CHUNK]
            self.progress(f"{self.who}: reading {start + len(chunk)} of {len(prompts)}")
            for row, outcome in enumerate(engine.replay(chunk), start):
                if isinstance(outcome, Replayed):
                    rows[row] = scorer.score(
                        outcome.readings[None, :], outcome.pooled_tokens[None, :]
                    )[0]
                elif outcome.reason is DeadReason.NON_FINITE:
                    raise ModelError(
                        f"the {self.who} gives readings that are not finite on prompt {row + 1}",
                        hint="its weights are damaged, or the dtype is too narrow for them",
                    )
                elif outcome.reason is not DeadReason.NO_TOKENS:
                    raise BadInput(
                        f"prompt {row + 1} cannot be replayed: {outcome.reason.value} "
                        f"{outcome.detail}"
                    )
        return rows
