"""Canaries to the served model: the chosen questions, every answer's figures, and where the test stands."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import numpy as np
from sqlalchemy import Connection, bindparam, text
from sqlalchemy.dialects.postgresql import JSONB

from monitor.store.border import TEXT_CHARACTERS, clean, clean_json, clean_or_none
from monitor.values.arrays import Floats
from monitor.values.checks import utc
from monitor.values.server_canaries import (
    AnswerOutcome,
    CanaryAnswer,
    Expected,
    QuestionSet,
    ServerRound,
    ServerStanding,
)

_QUESTION: Final = (
    *("question", "border", "first", "second", "margin", "tolerance", "answer", "scores"),
)
_ANSWER: Final = (
    *("question", "asked_at", "outcome", "seconds", "detail", "tokens", "first", "other_first"),
    *("with_log_probs", "deviation", "nats", "scores"),
)
_ROUND: Final = (
    *("pack_id", "set_id", "served", "asked_at", "asked", "compared", "compared_beyond"),
    *("questions", "beyond", "other_firsts", "with_log_probs", "largest", "evidence"),
    *("evidence_limit", "moved", "problem"),
)


def load_questions(c: Connection, set_id: str) -> QuestionSet | None:
    rows = c.execute(
        text(f"""
            SELECT pack_id, {", ".join(_QUESTION)}
            FROM monitor_data.server_canary_questions
            WHERE set_id = :set_id
            ORDER BY ordinal
        """),
        {"set_id": set_id},
    )
    found = list(rows.mappings())
    if not found:
        return None
    return QuestionSet(
        set_id=set_id,
        pack_id=found[0]["pack_id"],
        questions=tuple(
            Expected(**{name: row[name] for name in _QUESTION} | {"scores": _floats(row["scores"])})
            for row in found
        ),
    )


def save_questions(c: Connection, chosen: QuestionSet) -> None:
    """Keep the choice; nothing changes when it is there, for its id says what it depends on."""
    c.execute(
        text(f"""
            INSERT INTO monitor_data.server_canary_questions
                (set_id, ordinal, pack_id, {", ".join(_QUESTION)})
            VALUES (:set_id, :ordinal, :pack_id, {", ".join(f":{name}" for name in _QUESTION)})
            ON CONFLICT (set_id, ordinal) DO NOTHING
        """),
        [
            {
                "set_id": chosen.set_id,
                "ordinal": ordinal,
                "pack_id": chosen.pack_id,
                **{name: getattr(one, name) for name in _QUESTION},
                "first": clean(one.first),
                "second": clean(one.second),
                "answer": clean(one.answer, TEXT_CHARACTERS),
                "scores": _list(one.scores),
            }
            for ordinal, one in enumerate(chosen.questions)
        ],
    )


def claim_round(
    c: Connection, pack_id: str, worker_id: str, now: datetime, lease: timedelta
) -> int | None:
    """Take the round that is due, for ``lease``; None: none is, or another process has it.

    Else how many rounds in a row have failed before it.
    """
    c.execute(
        text("""
            INSERT INTO monitor_data.server_canary_turns (pack_id, due_at, failures)
            VALUES (:pack_id, :now, 0)
            ON CONFLICT (pack_id) DO NOTHING
        """),
        {"pack_id": pack_id, "now": now},
    )
    failures: int | None = c.scalar(
        text("""
            UPDATE monitor_data.server_canary_turns
            SET claimed_by = :worker_id, claimed_until = :until
            WHERE pack_id = :pack_id AND due_at <= :now
                AND (claimed_until IS NULL OR claimed_until < :now)
            RETURNING failures
        """),
        {
            "pack_id": pack_id,
            "worker_id": clean(worker_id),
            "now": now,
            "until": now + lease,
        },
    )
    return failures


def settle_round(
    c: Connection, pack_id: str, worker_id: str, *, due_at: datetime, failures: int
) -> bool:
    """Give the round back, with when the next is due; False when another process has taken it meanwhile."""
    settled = c.execute(
        text("""
            UPDATE monitor_data.server_canary_turns
            SET claimed_by = NULL, claimed_until = NULL, due_at = :due_at, failures = :failures
            WHERE pack_id = :pack_id AND claimed_by = :worker_id
        """),
        {
            "pack_id": pack_id,
            "worker_id": clean(worker_id),
            "due_at": due_at,
            "failures": failures,
        },
    )
    return bool(settled.rowcount)


def calls_since(c: Connection, since: datetime) -> int:
    """Calls to the endpoint since then, of all packs."""
    calls: int = c.scalar(
        text("""
            SELECT coalesce(sum(calls), 0)::int
            FROM monitor_data.server_canary_answers WHERE asked_at > :since
        """),
        {"since": since},
    )
    return calls


def save_answers(c: Connection, set_id: str, answers: Iterable[tuple[CanaryAnswer, int]]) -> None:
    """Keep the answers, each with how many calls it took. What they said is not kept but for the first token."""
    rows = [
        {
            "set_id": set_id,
            **{name: getattr(answer, name) for name in _ANSWER},
            "outcome": answer.outcome.value,
            "detail": clean(answer.detail, TEXT_CHARACTERS),
            "first": clean_or_none(answer.first),
            "scores": _list(answer.scores),
            "calls": calls,
        }
        for answer, calls in answers
    ]
    if rows:
        c.execute(
            text(f"""
                INSERT INTO monitor_data.server_canary_answers
                    (set_id, calls, {", ".join(_ANSWER)})
                VALUES (:set_id, :calls, {", ".join(f":{name}" for name in _ANSWER)})
                ON CONFLICT (set_id, question, asked_at) DO NOTHING
            """),
            rows,
        )


def latest_answers(c: Connection, set_id: str, since: datetime) -> list[CanaryAnswer]:
    """The latest compared answer to each question since then."""
    rows = c.execute(
        text(f"""
            SELECT DISTINCT ON (question) {", ".join(_ANSWER)}
            FROM monitor_data.server_canary_answers
            WHERE set_id = :set_id AND asked_at > :since AND outcome = 'compared'
            ORDER BY question, asked_at DESC
        """),
        {"set_id": set_id, "since": since},
    )
    return [_answer(row) for row in rows.mappings()]


def asked_last(c: Connection, set_id: str) -> dict[str, datetime]:
    """When each question was asked last, whatever became of it."""
    rows = c.execute(
        text("""
            SELECT question, max(asked_at) AS asked_at
            FROM monitor_data.server_canary_answers WHERE set_id = :set_id GROUP BY question
        """),
        {"set_id": set_id},
    )
    return {row.question: utc(row.asked_at) for row in rows}


def save_round(c: Connection, made: ServerRound) -> None:
    row = {name: getattr(made, name) for name in _ROUND if name not in ("evidence_limit", "moved")}
    c.execute(
        text(f"""
            INSERT INTO monitor_data.server_canary_rounds ({", ".join(_ROUND)})
            VALUES ({", ".join(f":{name}" for name in _ROUND)})
            ON CONFLICT (pack_id, asked_at) DO NOTHING
        """).bindparams(bindparam("moved", type_=JSONB)),
        {
            **row,
            "served": clean(made.served),
            "problem": clean(made.problem, TEXT_CHARACTERS),
            "evidence_limit": made.limit,
            "moved": clean_json(made.moved),
        },
    )


def server_standing(
    c: Connection, pack_id: str, *, until: datetime | None = None
) -> ServerStanding:
    """The last round that concluded something, and what the last of all failed by; of those asked ``until`` then."""
    asked = "pack_id = :pack_id AND (CAST(:until AS timestamptz) IS NULL OR asked_at <= :until)"
    rows = c.execute(
        text(f"""
            (SELECT {", ".join(_ROUND)} FROM monitor_data.server_canary_rounds
             WHERE {asked} ORDER BY asked_at DESC LIMIT 1)
            UNION ALL
            (SELECT {", ".join(_ROUND)} FROM monitor_data.server_canary_rounds
             WHERE {asked} AND evidence IS NOT NULL ORDER BY asked_at DESC LIMIT 1)
        """),
        {"pack_id": pack_id, "until": until},
    )
    found = [_round(row) for row in rows.mappings()]
    if not found:
        return ServerStanding()
    newest = max(found, key=lambda one: one.asked_at)
    concluded = [one for one in found if one.evidence is not None]
    return ServerStanding(
        concluded=max(concluded, key=lambda one: one.asked_at, default=None),
        problem=newest.problem,
    )


def forget_answers(c: Connection, before: datetime) -> None:
    """Delete answers and rounds from before then."""
    for table in ("server_canary_answers", "server_canary_rounds"):
        c.execute(
            text(f"DELETE FROM monitor_data.{table} WHERE asked_at < :before"), {"before": before}
        )


def _answer(row: Any) -> CanaryAnswer:
    given = {name: row[name] for name in _ANSWER}
    return CanaryAnswer(
        **given
        | {
            "asked_at": utc(row["asked_at"]),
            "outcome": AnswerOutcome(row["outcome"]),
            "scores": _floats(row["scores"]),
        }
    )


def _round(row: Any) -> ServerRound:
    given = {name: row[name] for name in _ROUND if name != "evidence_limit"}
    return ServerRound(**given | {"asked_at": utc(row["asked_at"]), "limit": row["evidence_limit"]})


def _floats(values: Sequence[float | None] | None) -> Floats | None:
    if values is None:
        return None
    return np.array([np.nan if one is None else one for one in values], dtype=np.float32)


def _list(values: Floats | None) -> list[float | None] | None:
    """NaN stands for "absent", and is null in the array."""
    if values is None:
        return None
    return [None if np.isnan(one) else float(one) for one in values]
