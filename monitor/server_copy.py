"""What the copy says to the questions that its server is asked, and what it makes of the server's answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import datetime

import numpy as np

from monitor.canaries import Examiner, Replay
from monitor.drift import server
from monitor.score.pack import Pack
from monitor.score.scorer import Scorer
from monitor.settings import Settings
from monitor.values.arrays import Floats
from monitor.values.prompts import CANARY, Message, Prompt, RecordKey, Sampling, ServedCounts
from monitor.values.questions import Question, pool
from monitor.values.scores import Replayed, Unreplayable
from monitor.values.server_canaries import (
    AnswerOutcome,
    AnswerView,
    CanaryAnswer,
    QuestionSet,
    ServedAnswer,
)


class ServerCopy:
    """What the copy says to the questions, and of a server's answers to them. No store, no endpoint."""

    def __init__(self, pack: Pack, replay: Replay, examiner: Examiner, settings: Settings) -> None:
        self.pack = pack
        self._replay = replay
        self._examiner = examiner
        self._asks = settings.server_canaries
        self._scorer = Scorer(pack)
        self._pool = {question.name: question for question in pool()}

    @property
    def set_id(self) -> str:
        """A hash of all that the choice of questions depends on."""
        asks = self._asks
        on = {
            "lineage": asdict(self._replay.lineage(self.pack.pack_id)),
            "pool": [(one.name, one.text) for one in self._pool.values()],
            "settings": [asks.questions, asks.max_tokens, asks.numerics],
        }
        return hashlib.sha256(json.dumps(on, sort_keys=True).encode()).hexdigest()[:32]

    def question(self, name: str) -> Question:
        return self._pool[name]

    def choose(self, now: datetime) -> QuestionSet:
        """The questions, with the copy's own answers and their scores. Takes a minute or more."""
        asks = self._asks
        chosen = self._examiner.choose(
            [_prompt(one, now) for one in self._pool.values()],
            count=asks.questions,
            max_tokens=asks.max_tokens,
            numerics=asks.numerics,
        )
        answers = [
            _prompt(self._pool[one.question], now, ServedAnswer(text=one.answer)) for one in chosen
        ]
        return QuestionSet(
            set_id=self.set_id,
            pack_id=self.pack.pack_id,
            questions=tuple(
                replace(one, scores=scores)
                for one, scores in zip(chosen, self._scores(answers), strict=True)
            ),
        )

    def read(self, answers: Sequence[tuple[CanaryAnswer, ServedAnswer]]) -> list[CanaryAnswer]:
        """The answers with their deviations from the copy and their scores."""
        if not answers:
            return []
        prompts = [_prompt(self._pool[row.question], row.asked_at, said) for row, said in answers]
        views = self._examiner.views(prompts)
        scores = self._scores(prompts)
        return [
            self._compared(*answer, prompt, view, score)
            for answer, prompt, view, score in zip(answers, prompts, views, scores, strict=True)
        ]

    def _compared(
        self,
        row: CanaryAnswer,
        said: ServedAnswer,
        prompt: Prompt,
        view: AnswerView | Unreplayable,
        scores: Floats | None,
    ) -> CanaryAnswer:
        if isinstance(view, Unreplayable):
            detail = f"{view.reason.value} {view.detail}".strip()
            return replace(row, outcome=AnswerOutcome.NOT_REPLAYED, detail=detail)
        own, served = self._examiner.prompt_tokens(prompt), said.prompt_tokens
        if served is not None and own is not None and served != own:
            detail = f"the server counts {served} tokens of the prompt, the copy {own}"
            return replace(row, outcome=AnswerOutcome.OTHER_PROMPT, detail=detail)
        if not view.texts:
            return replace(row, outcome=AnswerOutcome.NOTHING_SAID)
        found = server.deviation(view, said, numerics=self._asks.numerics)
        return replace(
            row,
            outcome=AnswerOutcome.COMPARED,
            tokens=len(view.texts),
            first=view.texts[0],
            other_first=found.other_first,
            with_log_probs=found.with_log_probs,
            deviation=found.tolerances,
            nats=found.nats,
            scores=scores,
        )

    def _scores(self, prompts: Sequence[Prompt]) -> list[Floats | None]:
        """By the ordinary replay; None where an answer gave nothing to read."""
        found: list[Floats | None] = []
        for outcome in self._replay.run(self._replay.prepare(prompts)):
            if isinstance(outcome, Replayed):
                readings, tokens = outcome.readings[None], outcome.pooled_tokens[None]
                found.append(np.asarray(self._scorer.score(readings, tokens)[0]))
            else:
                found.append(None)
        return found


def _prompt(question: Question, at: datetime, said: ServedAnswer | None = None) -> Prompt:
    """The question as a prompt of the reserved segment, with the answer where there is one."""
    said = said or ServedAnswer(text="")
    return Prompt(
        key=RecordKey(topic=CANARY, partition=0, offset=0),
        recorded_at=at,
        messages=(Message(role="user", content=question.text),),
        response=said.text or None,
        reasoning=said.reasoning,
        sampling=Sampling(temperature=0.0, finish_reason=said.finish_reason),
        served=ServedCounts(prompt_tokens=said.prompt_tokens),
        prompt_id=question.name,
    )
