"""Is what was replayed what was served? What token counts that differ mean, and how to mend it. Pure."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from monitor.alert.rules import figure
from monitor.values.fidelity import Compared, Mismatch
from monitor.values.shares import rate_limit

MARKER: Final = 3
"""Tokens up to which a constant difference of a prompt is put down to a BOS or the like."""


def least_share(compared: Compared, confidence: float) -> float:
    """The share of prompts that differ is at least this: exact, one-sided at (1 - ``confidence``) / 2."""
    error = (1.0 - confidence) / 2
    return rate_limit(compared.differing, compared.n, error, upper=False)


def told(compared: Compared) -> str:
    """How many prompts differ, and by what most often; a sentence without its end."""
    said = f"{compared.share:.1%} of {compared.n} prompts have other token counts than the server's own"
    if compared.mismatches:
        said += f", most often {_kind(compared.mismatches[0])}"
    return said


def _kind(mismatch: Mismatch) -> str:
    where = "of the prompt" if mismatch.verdict == "prompt" else "of the answer alone"
    tokens = f"{abs(mismatch.usual)} {'more' if mismatch.usual > 0 else 'fewer'}"
    if mismatch.constant:
        return f"{where}: {tokens} in {mismatch.usual_n} of {mismatch.n}, a constant offset"
    return f"{where} ({mismatch.n}): by various numbers, {tokens} in {mismatch.usual_n}"


def meaning(mismatch: Mismatch) -> str:
    """What such a difference says of the replay."""
    if mismatch.verdict == "answer":
        return (
            "the prompts agree and the answers do not: an answer was logged otherwise than the model "
            "wrote it (reasoning, calls or an end left out)"
        )
    if not mismatch.constant:
        return "the server rendered another template, other tools or another system prompt"
    if abs(mismatch.usual) <= MARKER:
        return (
            "a constant offset of few tokens, such as a BOS or a generation prompt that one side "
            "adds and the other does not"
        )
    return (
        "a constant offset: the server's template adds or leaves out a part, such as a default "
        "system prompt"
    )


def mend(mismatch: Mismatch) -> str:
    """What to do about it."""
    if mismatch.verdict == "answer":
        return (
            "Let the gateway log reasoning and tool calls, and the finish reason; set replay.chat_template "
            "to the server's own. What cannot be mended is allowed by replay.answer_count_tolerance."
        )
    given = (
        "Set replay.chat_template and replay.template_options to the server's own, and let the gateway "
        "log tools and system prompts."
    )
    if mismatch.constant and abs(mismatch.usual) <= MARKER:
        return (
            f"{given} An offset that is understood is allowed by replay.prompt_count_tolerance: "
            f"{abs(mismatch.usual)}."
        )
    return given


def details(
    compared: Compared, low: float, pack_id: str, since: datetime, until: datetime
) -> dict[str, Any]:
    """Figures for a person, with what the commonest difference means and the SQL that shows them all."""
    found: dict[str, Any] = {
        "share": figure(compared.share),
        "share_low": figure(low),
        "records": compared.n,
        "kinds": [_figures(mismatch) for mismatch in compared.mismatches],
        "query": query(pack_id, since, until),
    }
    if compared.mismatches:
        first = compared.mismatches[0]
        found |= {"meaning": meaning(first), "mend": mend(first)}
    return found


def _figures(mismatch: Mismatch) -> dict[str, Any]:
    return {
        "counts_of": mismatch.verdict,
        "prompts": mismatch.n,
        "usual_difference": mismatch.usual,
        "with_usual_difference": mismatch.usual_n,
        "constant": mismatch.constant,
    }


def query(pack_id: str, since: datetime, until: datetime) -> str:
    """The SQL that shows the differences of a window, for a person with the reader's role."""
    return (
        "SELECT fidelity, prompt_difference, answer_difference, count(*) AS prompts,"
        " min(prompt_id) AS example FROM monitor.replay_fidelity"
        f" WHERE pack_id = '{pack_id}' AND recorded_at >= '{since.isoformat()}'"
        f" AND recorded_at < '{until.isoformat()}'"
        " GROUP BY fidelity, prompt_difference, answer_difference ORDER BY prompts DESC LIMIT 20"
    )
