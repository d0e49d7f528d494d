"""When the served endpoint, asked directly, is another model: the condition of ``server_changed``. Pure."""

from __future__ import annotations

from typing import Final

from monitor.alert.rules import figure
from monitor.settings import ServerRule
from monitor.values.alerts import Alert, Condition
from monitor.values.server_canaries import ServerRound
from monitor.values.witnesses import Verdict, as_json, sentence

RULE: Final = "server_changed"
KIND: Final = "server_canaries"
MEANING: Final = (
    "the served endpoint was asked fixed questions at temperature 0, and answers otherwise than the monitored "
    "copy and the numerics of a server explain; no traffic and no baseline is in it"
)
MEND: Final = (
    "Compare the server's weights, adapters, quantisation, chat template and default system prompt with "
    "replay.model. If it is meant to compute more coarsely than the copy, raise server_canaries.numerics."
)
TOWARDS: Final = 5
"""Features that are told."""


def server_condition(found: ServerRound, verdict: Verdict, rule: ServerRule) -> Condition:
    """What the round that concluded last says."""
    said = {}
    if found.crossed:
        said = {
            "mend": MEND,
            "cause": verdict.cause.value,
            "verdict": sentence(verdict.cause, verdict.witnesses),
            "witnesses": as_json(verdict.witnesses),
            "towards": found.furthest(TOWARDS),
        }
    return Condition(
        dedupe_key=f"server_canaries/{found.pack_id}/{found.served}",
        rule=RULE,
        kind="drift",
        severity=rule.severity,
        active=found.crossed,
        summary=_summary(found),
        labels={"kind": KIND, "rule": RULE, "served": found.served, "pack": found.pack_id},
        details={
            "pack": found.pack_id,
            "served": found.served,
            "meaning": MEANING,
            "asked_at": found.asked_at.isoformat(),
            "questions": found.questions,
            "beyond": found.beyond,
            "other_firsts": found.other_firsts,
            "with_log_probs": found.with_log_probs,
            "largest": None if found.largest is None else figure(found.largest),
            "evidence": {
                "value": figure(found.evidence or 0.0),
                "limit": None if found.limit is None else figure(found.limit),
            },
            **said,
            "query": _query(found),
        },
        hold_for=rule.hold_for,
        cooldown=rule.cooldown,
        reminder=rule.reminder,
    )


def is_server(alert: Alert) -> bool:
    return alert.labels.get("kind") == KIND


def _summary(found: ServerRound) -> str:
    how = "is not the monitored copy" if found.crossed else "answers as the monitored copy does"
    return (
        f"{found.served}, asked directly, {how}: {found.beyond} of {found.questions} fixed questions are"
        f" answered otherwise than numerics explain (evidence {found.evidence or 0.0:.1f}, limit"
        f" {found.limit or 0.0:.1f})"
    )


def _query(found: ServerRound) -> str:
    """The SQL that shows the answers that the round rests on, for a person with the reader's role."""
    moment = found.asked_at.isoformat()
    return (
        "SELECT asked_at, question, outcome, copy_first, first, deviation, nats, with_log_probs"
        f" FROM monitor.server_canary_answers WHERE pack_id = '{found.pack_id}'"
        f" AND asked_at > timestamptz '{moment}' - interval '1 day' ORDER BY asked_at DESC"
    )
