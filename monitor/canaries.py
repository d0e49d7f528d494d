"""The fixed prompts of a pack, replayed: is this copy the instrument that the pack was made with?"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

import numpy as np

from monitor.score.pack import Pack
from monitor.score.scorer import Scorer
from monitor.values.likelihood import DrawnBy
from monitor.values.prompts import Prompt
from monitor.values.scores import CanaryRun, Lineage, Replayed, Unreplayable
from monitor.values.server_canaries import AnswerView, Expected
from monitor.values.twin import TwinAsked


class Replay(Protocol):
    """What the loops need of `monitor.replay.engine.ReplayEngine`; ``prepare`` runs beside ``run``."""

    def prepare(
        self,
        prompts: Sequence[Prompt],
        own_answers: Collection[int] = (),
        weighed: Mapping[int, DrawnBy] = ...,
        twins: Mapping[int, TwinAsked] = ...,
    ) -> Any: ...
    def run(self, prepared: Any) -> Sequence[Replayed | Unreplayable]: ...
    def lineage(self, pack_id: str) -> Lineage: ...


class Examiner(Protocol):
    """What is needed of `monitor.replay.examining.Examiner`."""

    def choose(
        self, prompts: Sequence[Prompt], *, count: int, max_tokens: int, numerics: float
    ) -> list[Expected]: ...
    def views(self, prompts: Sequence[Prompt]) -> list[AnswerView | Unreplayable]: ...
    def prompt_tokens(self, prompt: Prompt) -> int | None: ...


def largest_deviation(pack: Pack, replay: Replay, now: datetime) -> float:
    """Largest |reading - recorded| over canaries and features, in calibration deviations.

    Replayed as they were recorded, whatever `replay.mode` says of prompts without an answer. Infinite
    when a canary cannot be replayed at all.
    """
    prompts = [canary.prompt(index, now) for index, canary in enumerate(pack.canaries)]
    outcomes = replay.run(replay.prepare(prompts))
    read = [outcome for outcome in outcomes if isinstance(outcome, Replayed)]
    if len(read) < len(outcomes):
        return math.inf
    return Scorer(pack).canary_deviation(
        np.stack([outcome.readings for outcome in read]),
        np.stack([outcome.pooled_tokens for outcome in read]),
    )


def canary_run(
    pack: Pack, replay: Replay, *, worker_id: str, tolerance: float, now: datetime
) -> CanaryRun:
    """One replay of the pack's canaries, held against ``tolerance``, as the store keeps it."""
    largest = largest_deviation(pack, replay, now)
    return CanaryRun(
        worker_id=worker_id,
        ran_at=now,
        lineage=replay.lineage(pack.pack_id),
        largest_deviation=largest,
        noise_floor=tolerance,
        reproduced=largest <= tolerance,
    )
