"""What is read of a prompt without a logged answer: ``replay.mode`` and the pack's regions decide.

Pure, and the same for the topic and for a file. Canaries never come here: they are replayed as recorded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from monitor.ingest.sampling import answer_wanted
from monitor.settings import ReplaySettings
from monitor.values.features import Feature
from monitor.values.prompts import SKIP_MENDS, DeadReason, Prompt, Skip, SkipReason
from monitor.values.scores import Replayed, Unreplayable


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """``prompts`` to replay, of which those at ``own_answers`` get an answer of the copy's own."""

    prompts: tuple[Prompt, ...]
    own_answers: frozenset[int]
    skipped: tuple[Skip, ...]


class Unanswered:
    """What becomes of prompts without a logged answer under one configuration and pack."""

    def __init__(self, settings: ReplaySettings, features: Sequence[Feature]) -> None:
        self._settings = settings
        self._of_prompt = np.array([feature.of_prompt for feature in features])
        self._names = tuple(feature.name for feature in features if feature.of_prompt)
        # Mode logged reads whatever there is, so `all` over the prompt too.
        logged = settings.mode == "logged"
        self._readable = bool(self._names) or (logged and any(f.region == "all" for f in features))

    @property
    def told(self) -> str:
        """A sentence for people."""
        share = self._settings.answer_share
        if self._settings.mode == "generate":
            return "prompts without an answer: the copy answers them itself"
        if share == 1.0 and not self._of_prompt.all():
            return "prompts without an answer: the copy answers them itself"
        some = f"; the copy answers {share:.3g} of the conversations itself" if share else ""
        if self._names:
            return f"prompts without an answer: read by {', '.join(self._names)}{some}"
        if self._readable:
            return "prompts without an answer: read by features of the region all"
        return f"prompts without an answer: skipped as {SkipReason.NO_ANSWER.value}{some}"

    @property
    def mend(self) -> str:
        """What to set where most of them are skipped; empty when none is."""
        skips = not self._readable and self._settings.mode != "generate"
        return SKIP_MENDS[SkipReason.NO_ANSWER] if skips and self._settings.answer_share < 1 else ""

    def wanted(self, prompts: Sequence[Prompt]) -> Wanted:
        """What to replay of ``prompts``, in their order: nothing is run for one that cannot be read."""
        kept: list[Prompt] = []
        own: set[int] = set()
        skipped: list[Skip] = []
        for prompt in prompts:
            if not prompt.answered and self._answers(prompt):
                own.add(len(kept))
            elif not prompt.answered and not self._readable:
                skipped.append(_unread(prompt))
                continue
            kept.append(prompt)
        return Wanted(prompts=tuple(kept), own_answers=frozenset(own), skipped=tuple(skipped))

    def read(self, outcome: Replayed | Unreplayable) -> Replayed | Unreplayable:
        """``outcome`` with the readings that count: in mode auto, of a prompt alone, the prompt side's.

        ``NO_TOKENS`` when none is left.
        """
        if isinstance(outcome, Unreplayable) or self._settings.mode != "auto":
            return outcome
        if outcome.prompt.answered or outcome.generated:
            return outcome
        pooled = np.where(self._of_prompt, outcome.pooled_tokens, 0)
        if not pooled.any():
            return Unreplayable(prompt=outcome.prompt, reason=DeadReason.NO_TOKENS)
        readings = np.where(self._of_prompt, outcome.readings, np.float32(np.nan))
        return replace(outcome, readings=readings, pooled_tokens=pooled)

    def _answers(self, prompt: Prompt) -> bool:
        if prompt.media_left_out:
            # The copy would answer another question than was asked.
            return False
        if self._settings.mode == "auto":
            # A pack of prompts alone learns nothing from an answer.
            return not self._of_prompt.all() and answer_wanted(prompt, self._settings.answer_share)
        return self._settings.mode == "generate"


def _unread(prompt: Prompt) -> Skip:
    return Skip(key=prompt.key, recorded_at=prompt.recorded_at, reason=SkipReason.NO_ANSWER)
