"""The served endpoint asked fixed questions on a schedule, and its answers held against the copy.

A round asks a part of the questions, those that were asked longest ago; the first asks all. Processes that
hold a copy take rounds by turns in the store. Nothing of it is traffic: rows and tables are its own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final

from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.interval import IntervalTrigger
from sqlalchemy import Engine

from monitor.chat_endpoint import ChatEndpoint
from monitor.drift import server
from monitor.errors import Retry, ServerRefused, ServerUnavailable
from monitor.logs import get_logger
from monitor.metrics import METRICS
from monitor.server_copy import ServerCopy
from monitor.settings import Settings, server_key
from monitor.store import server_canaries as store
from monitor.store.database import transaction
from monitor.values.server_canaries import (
    AnswerOutcome,
    CanaryAnswer,
    Expected,
    QuestionSet,
    ServedAnswer,
    ServerRound,
)

log = get_logger(__name__)

LOOK_EVERY: Final = timedelta(seconds=15)
"""How often a process looks whether a round is due."""
FIRST_REST: Final = timedelta(minutes=1)
"""After a round that failed; doubled with each further one, up to the time between rounds."""
LONGEST_ROUND: Final = timedelta(minutes=30)
"""A round that was taken and not given back is another's after that time."""


class ServerCanaries:
    """The rounds of one process. ``step`` is one round, if one is due; ``running`` a schedule of them."""

    def __init__(
        self,
        *,
        copy: ServerCopy,
        database: Engine,
        settings: Settings,
        worker_id: str,
        clock: Callable[[], datetime],
    ) -> None:
        """Raises `ConfigurationError` when the key cannot be read."""
        self._copy = copy
        self._database = database
        self._settings = settings
        self._asks = settings.server_canaries
        self._worker_id = worker_id
        self._clock = clock
        self._endpoint = endpoint_of(settings)
        self._stopped = threading.Event()
        self._chosen: QuestionSet | None = None
        self.problem = ""
        """What is wrong with the last round of this process, in a sentence; empty when nothing is."""

    def close(self) -> None:
        """Hang up. Not while a round is under way."""
        self._endpoint.close()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Rounds on a schedule, in a thread of their own, until left; the call under way is finished."""
        scheduler = BackgroundScheduler(
            timezone=UTC,
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
        )
        scheduler.add_job(
            self._guarded,
            IntervalTrigger(seconds=LOOK_EVERY.total_seconds(), timezone=UTC),
            next_run_time=datetime.now(UTC),  # the scheduler's own clock: at once
        )
        scheduler.start()
        try:
            yield
        finally:
            self._stopped.set()
            scheduler.shutdown(wait=True)
            self.close()

    def _guarded(self) -> None:
        """Whatever fails here must not end the worker beside it."""
        try:
            self.step()
        except Retry as error:
            log.warning("server_canaries.put_off", error=str(error))
        except Exception as error:
            self.problem = f"canaries of the served endpoint failed: {type(error).__name__}"
            log.exception("server_canaries.failed")

    def step(self) -> ServerRound | None:
        """One round, stored; None where none is due here.

        Raises `DatabaseUnavailable`. A server that is away or refuses is no error: see `ServerRound.problem`.
        """
        now = self._clock()
        pack_id = self._copy.pack.pack_id
        with transaction(self._database) as c:
            failures = store.claim_round(c, pack_id, self._worker_id, now, LONGEST_ROUND)
            if failures is None:
                return None
            spent = store.calls_since(c, now - timedelta(days=1))
        chosen = self._questions(now)
        wanted = self._wanted(chosen, self._asks.calls_a_day - spent)
        if not wanted and chosen.questions:
            self._give_back(now + self._asks.every, 0)
            return None
        begun = ServerRound(
            pack_id=pack_id,
            set_id=chosen.set_id,
            served=str(self._asks.model),
            asked_at=now,
            asked=0,
        )
        found = ask_all(
            self._copy,
            self._endpoint,
            wanted,
            max_tokens=self._asks.max_tokens,
            clock=self._clock,
            stopped=self._stopped.is_set,
        )
        return self._kept(begun, chosen, found, failures)

    def _questions(self, now: datetime) -> QuestionSet:
        if self._chosen is not None:
            return self._chosen
        with transaction(self._database) as c:
            self._chosen = store.load_questions(c, self._copy.set_id)
        if self._chosen is None:
            log.info("server_canaries.choosing")
            chosen = self._copy.choose(now)
            with transaction(self._database) as c:
                store.save_questions(c, chosen)
            self._chosen = chosen
        return self._chosen

    def _wanted(self, chosen: QuestionSet, left: int) -> list[Expected]:
        """This round's questions: all in the first one, else those that were asked longest ago."""
        with transaction(self._database) as c:
            last = store.asked_last(c, chosen.set_id)
        never = datetime.min.replace(tzinfo=UTC)
        order = sorted(chosen.questions, key=lambda one: last.get(one.question, never))
        new = sum(one.question not in last for one in order)
        return order[: max(0, min(max(new, self._asks.calls_a_round), left))]

    def _kept(
        self,
        begun: ServerRound,
        chosen: QuestionSet,
        found: Asked,
        failures: int,
    ) -> ServerRound:
        now, asks, problem = self._clock(), self._asks, found.problem
        failures = failures + 1 if problem else 0
        calls = sum(calls for _, calls in found.answers)
        made = replace(begun, asked=calls, problem=problem)
        with transaction(self._database) as c:
            store.save_answers(c, chosen.set_id, found.answers)
            if not problem:
                made = server.concluded(
                    made,
                    store.latest_answers(c, chosen.set_id, now - asks.vouches_for),
                    {one.question: one for one in chosen.questions},
                    [feature.name for feature in self._copy.pack.features],
                    limit=limit_of(self._settings),
                )
            store.save_round(c, made)
            store.forget_answers(c, now - self._settings.postgres.keep_drift)
        self._give_back(now + self._rest(failures, found.retry_after), failures)
        self._tell(made, [row for row, _ in found.answers])
        return made

    def _rest(self, failures: int, retry_after: float | None) -> timedelta:
        every = self._asks.every
        if failures == 0:
            return every
        rest = min(FIRST_REST * (1 << min(failures - 1, 20)), max(every, FIRST_REST))
        return max(rest, timedelta(seconds=retry_after or 0.0))

    def _give_back(self, due_at: datetime, failures: int) -> None:
        with transaction(self._database) as c:
            pack_id = self._copy.pack.pack_id
            store.settle_round(c, pack_id, self._worker_id, due_at=due_at, failures=failures)

    def _tell(self, made: ServerRound, rows: Sequence[CanaryAnswer]) -> None:
        self.problem = (
            f"canaries of the served endpoint: {made.problem}; whether the served model changed is not "
            "known from them"
            if made.problem
            else ""
        )
        for row in rows:
            METRICS.server_canary_answers.labels(outcome=row.outcome.value).inc()
        if made.evidence is not None and made.limit is not None:
            METRICS.server_canary_evidence.set(made.evidence / made.limit)
        level = log.warning if made.problem or made.crossed else log.info
        level(
            "server_canaries.asked",
            asked=made.asked,
            questions=made.questions,
            beyond=made.beyond,
            evidence=made.evidence,
            limit=made.limit,
            crossed=made.crossed,
            problem=made.problem or None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What one round brought. ``answers`` stand with the calls that each took."""

    answers: tuple[tuple[CanaryAnswer, int], ...]
    problem: str
    """Empty: every answer came, and one at least could be compared."""
    retry_after: float | None = None
    """Seconds of rest that the server asked for."""


def ask_all(
    copy: ServerCopy,
    endpoint: ChatEndpoint,
    wanted: Sequence[Expected],
    *,
    max_tokens: int,
    clock: Callable[[], datetime],
    stopped: Callable[[], bool] = lambda: False,
) -> Asked:
    """Ask one question after another, and hold the answers against the copy. The first failure ends it."""
    failed: list[tuple[CanaryAnswer, int]] = []
    said: list[tuple[CanaryAnswer, ServedAnswer]] = []
    calls: list[int] = []
    problem, retry_after = "", None
    for one in wanted:
        if stopped():
            problem = "the process was stopped"
            break
        blank = AnswerOutcome.NOTHING_SAID
        row = CanaryAnswer(question=one.question, asked_at=clock(), outcome=blank)
        begun, before = time.monotonic(), endpoint.calls
        try:
            answer = endpoint.ask(copy.question(one.question).text, max_tokens)
        except (ServerUnavailable, ServerRefused) as error:
            away = isinstance(error, ServerUnavailable)
            outcome = AnswerOutcome.UNREACHABLE if away else AnswerOutcome.REFUSED
            row = replace(row, outcome=outcome, detail=str(error))
            failed.append((row, endpoint.calls - before))
            problem = f"{error}{f': {error.hint}' if error.hint else ''}"
            retry_after = getattr(error, "retry_after", None)
            break
        said.append((replace(row, seconds=time.monotonic() - begun), answer))
        calls.append(endpoint.calls - before)
    read = copy.read(said)
    return Asked(
        answers=(*zip(read, calls, strict=True), *failed),
        problem=problem or _unread(read),
        retry_after=retry_after,
    )


def limit_of(settings: Settings) -> float:
    """The evidence at which a round says that the served model is another one."""
    asks = settings.server_canaries
    return server.limit(risk=asks.risk, every=asks.every, horizon=settings.drift.average_run_length)


def endpoint_of(settings: Settings) -> ChatEndpoint:
    """Raises `ConfigurationError` when the key cannot be read."""
    asks = settings.server_canaries
    assert asks.url is not None
    assert asks.model is not None
    return ChatEndpoint(
        asks.url,
        asks.model,
        key=server_key(asks.key_file),
        timeout_seconds=asks.timeout.total_seconds(),
        log_probs=asks.log_probs,
    )


def _unread(rows: Sequence[CanaryAnswer]) -> str:
    """Why a round whose answers all came compares nothing; empty where it compares something."""
    if any(row.outcome is AnswerOutcome.COMPARED for row in rows):
        return ""
    for row in rows:
        if row.outcome is AnswerOutcome.OTHER_PROMPT:
            return (
                f"{row.detail}: it renders another template or system prompt; see replay.chat_template "
                "and replay.template_options"
            )
    detail = next((row.detail for row in rows if row.detail), "it said nothing")
    return f"no answer could be compared: {detail}"
