"""Is the served model the copy? A test on its answers to fixed questions, at temperature 0. Pure.

**One answer.** At temperature 0 a server says the likeliest token. Where it says another one than the copy
would, its log-odds of the two differ from the copy's by at least the margin; where it tells
log-probabilities, these differ by as much as they do. Each difference is counted in *tolerances*: so many
noises as `TOLERATED` says, of the numerics at the very token (`monitor.replay.examining`). The largest of
an answer is its deviation. Beyond 1, numerics do not explain it.

**All of them.** While the server is the copy, a question is answered beyond tolerance with probability at
most `SLIP`, one question independently of another. So the number of questions beyond, of those asked, is at
most binomial, and its exact upper tail is a p-value; -log of it is the ``evidence``. It rests on the latest
answer to each question. Asked again, a server says the same again: repeats are no new data, and no product
of such p-values would hold. Instead each round's is held to risk · (time between rounds) / horizon: by
Boole's inequality the chance of any false alarm within the horizon is at most the risk, in whatever way
rounds depend on one another.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

import numpy as np
from scipy.special import bdtrc, betaincinv

from monitor.values.server_canaries import (
    LIKELY,
    AnswerView,
    CanaryAnswer,
    Expected,
    ServedAnswer,
    ServedToken,
    ServerRound,
    ServerStanding,
    differences,
    tolerance,
)
from monitor.values.witnesses import Witness

SLIP: Final = 0.02
"""Share of the questions that a server which is the copy may answer beyond tolerance."""
VOUCH_WITHIN: Final = 0.5
"""A round vouches for the server when surely fewer than this share of its questions is answered beyond
tolerance: another model answers nearly all of them so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deviation:
    """How far one answer is from the copy's law."""

    tolerances: float
    nats: float
    other_first: bool
    with_log_probs: bool


def deviation(view: AnswerView, served: ServedAnswer, *, numerics: float) -> Deviation:
    """``view`` is the copy's of what was served, and has at least one token.

    Where the server counts other tokens than the view has, only the first one is held against the copy.
    """
    matched = _matched(view, served.tokens)
    with_log_probs = bool(matched) and not all(token.log_prob == 0.0 for _, token in matched)
    held = _held(view, served, len(matched))
    pairs = [*zip(view.away[:held], view.away_noise[:held], strict=True)]
    if with_log_probs:
        pairs += [pair for place, token in matched for pair in _log_probs(view, place, token)]
    nats = np.array([abs(apart) for apart, _ in pairs])
    counted = nats / np.array([tolerance(noise, numerics) for _, noise in pairs])
    worst = int(counted.argmax())
    return Deviation(
        tolerances=float(counted[worst]),
        nats=float(nats[worst]),
        other_first=bool(view.away[0] > 0.0),
        with_log_probs=with_log_probs,
    )


def _held(view: AnswerView, served: ServedAnswer, matched: int) -> int:
    """How many of the view's places are the server's own: a text may be split otherwise than it was said."""
    places = len(view.texts)
    if served.tokens:
        # Some servers tell the token that ends the turn, some do not.
        ended = served.finish_reason == "stop"
        return places if matched + ended >= places else max(1, matched)
    said = served.completion_tokens
    return places if said is None or said in (places, places - 1) else 1


def _matched(view: AnswerView, tokens: Sequence[ServedToken]) -> list[tuple[int, ServedToken]]:
    """The tokens that both have at the same place, up to the first that differs."""
    found = []
    for place, (text, token) in enumerate(zip(view.texts, tokens, strict=False)):
        if _spelled(text) != _spelled(token.text):
            break
        found.append((place, token))
    return found


def _log_probs(view: AnswerView, place: int, token: ServedToken) -> Iterator[tuple[float, float]]:
    """Differences of log-probabilities at one place, each with its noise."""
    if view.log_probs[place] >= LIKELY:
        yield token.log_prob - view.log_probs[place], view.noise[place]
    ours = [_spelled(text) for text in view.top_texts[place]]
    theirs = [_spelled(text) for text in token.top]
    for text, log_prob in token.top.items():
        spelled = _spelled(text)
        if ours.count(spelled) != 1 or theirs.count(spelled) != 1:
            continue
        at = ours.index(spelled)
        if view.top_log_probs[place, at] >= LIKELY:
            yield log_prob - view.top_log_probs[place, at], view.top_noise[place, at]


def _spelled(text: str) -> str:
    """Servers spell the blank before a word in their own ways."""
    return text.replace("\N{LOWER ONE EIGHTH BLOCK}", " ").replace("\u0120", " ").strip(" ")


# --- all answers -----------------------------------------------------------------------------------


def evidence(beyond: int, questions: int) -> float:
    """-log P(X ≥ ``beyond``), X binomial of ``questions`` at `SLIP`."""
    if beyond == 0:
        return 0.0
    tail = float(bdtrc(beyond - 1, questions, SLIP))
    return -math.log(max(tail, 1e-300))


def limit(*, risk: float, every: timedelta, horizon: timedelta) -> float:
    """The evidence at which a round alarms, so that ``risk`` holds for all rounds within ``horizon``."""
    return -math.log(risk * min(every / horizon, 1.0))


def concluded(
    begun: ServerRound,
    latest: Sequence[CanaryAnswer],
    expected: Mapping[str, Expected],
    features: Sequence[str],
    *,
    limit: float,
) -> ServerRound:
    """``begun`` with what the ``latest`` compared answers, one a question, say together; its own are among them."""
    compared = [one for one in latest if one.question in expected and one.deviation is not None]
    own = [one for one in compared if one.asked_at >= begun.asked_at]
    beyond = sum(one.beyond for one in compared)
    return replace(
        begun,
        compared=len(own),
        compared_beyond=sum(one.beyond for one in own),
        questions=len(compared),
        beyond=beyond,
        other_firsts=sum(bool(one.other_first) for one in compared),
        with_log_probs=sum(one.with_log_probs for one in compared),
        largest=max((one.deviation for one in compared if one.deviation is not None), default=None),
        evidence=evidence(beyond, len(compared)) if compared else None,
        limit=limit,
        moved=differences(compared, expected, features),
    )


def at_most(beyond: int, questions: int, confidence: float) -> float:
    """Clopper and Pearson's one-sided upper bound of the share of questions answered beyond tolerance."""
    if beyond >= questions:
        return 1.0
    return float(betaincinv(beyond + 1, questions - beyond, confidence))


def witness(
    standing: ServerStanding, *, since: datetime, counts_from: datetime, confidence: float
) -> Witness:
    """Whether the served endpoint answers as the copy does.

    A round before ``counts_from`` says nothing. One before ``since``, when what is asked about began, may
    accuse the server and vouches for nothing.
    """
    found = standing.concluded
    if found is None or found.evidence is None or found.asked_at < counts_from:
        why = standing.problem or "it has not been asked lately"
        told = f"no canaries of the served endpoint are to be had: {why}"
        return Witness(name="server_canaries", finding="absent", told=told)
    figures = _told(found)
    share = f"{found.beyond} of {found.questions} fixed questions"
    if found.crossed:
        told = (
            f"{found.served} answers {share} otherwise than the copy and numerics can:"
            f" evidence {found.evidence:.1f}, limit {found.limit:.1f}"
        )
        return Witness(name="server_canaries", finding="moved", told=told, figures=figures)
    high = at_most(found.compared_beyond, found.compared, confidence)
    figures |= {"fresh": found.compared, "fresh_beyond_at_most": round(high, 4)}
    if found.asked_at < since:
        told = f"asked directly, {found.served} answered as the copy does, but not since this began"
    elif high < VOUCH_WITHIN:
        told = f"asked directly, {found.served} answers as the copy does ({share} otherwise)"
        return Witness(name="server_canaries", finding="steady", told=told, figures=figures)
    else:
        told = f"{share} were answered otherwise than by the copy, which does not tell yet"
    return Witness(name="server_canaries", finding="unsure", told=told, figures=figures)


def _told(found: ServerRound) -> dict[str, Any]:
    return {
        "asked_at": found.asked_at.isoformat(),
        "served": found.served,
        "questions": found.questions,
        "beyond": found.beyond,
        "other_firsts": found.other_firsts,
        "with_log_probs": found.with_log_probs,
        "largest": _figure(found.largest),
        "evidence": _figure(found.evidence),
        "limit": _figure(found.limit),
        "towards": found.furthest(5),
    }


def _figure(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")
