"""When answers are not what the copy would say: the condition of the ``identity`` rule. Pure."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Final

from monitor.settings import IdentityRule
from monitor.values.alerts import Alert, Condition
from monitor.values.surprise import IdentityState
from monitor.values.witnesses import UNLABELLED, Verdict, as_json, sentence

RULE: Final = "identity"
MEANING: Final = (
    "answers are held against what the monitored copy would have said at the request's own sampling "
    "parameters; no baseline and no assumption on the traffic is in it"
)
MEND: Final = (
    "Compare the server's weights, adapters, quantisation and chat template with replay.model, and its "
    "default sampling parameters with the records' and identity.temperature."
)


def identity_condition(
    pack_id: str, state: IdentityState, verdict: Verdict, rule: IdentityRule
) -> Condition | None:
    """Whether another model than the copy answers as ``state.served``; None where the rule does not look.

    Its bound is the e-detector's limit, so no number of prompts has to be waited for.
    """
    if not any(fnmatchcase(state.segment, pattern) for pattern in rule.segments):
        return None
    said = {}
    if state.crossed:
        said = {
            "cause": verdict.cause.value,
            "verdict": sentence(verdict.cause, verdict.witnesses),
            "witnesses": as_json(verdict.witnesses),
        }
    return Condition(
        dedupe_key=f"identity/{pack_id}/{state.segment}/{state.served}",
        rule=RULE,
        kind="drift",
        severity=rule.severity,
        active=state.crossed,
        summary=_summary(state),
        labels={
            "kind": "identity",
            "rule": RULE,
            "served": state.served,
            "segment": state.segment,
            "pack": pack_id,
        },
        details={
            "pack": pack_id,
            "segment": state.segment,
            "served": state.served,
            "meaning": MEANING,
            **({"mend": MEND} if state.crossed else {}),
            "evidence": {"value": round(state.evidence, 3), "limit": round(state.limit, 3)},
            "answers": state.n,
            "since": state.started_at.isoformat(),
            "until": state.last_bucket.isoformat(),
            **said,
            "query": _query(pack_id, state),
        },
        hold_for=rule.hold_for,
        cooldown=rule.cooldown,
        reminder=rule.reminder,
    )


def is_identity(alert: Alert) -> bool:
    return alert.labels.get("kind") == "identity"


def _summary(state: IdentityState) -> str:
    name = "the served model" if state.served == UNLABELLED else state.served
    where = "" if state.segment == "all" else f" in {state.segment}"
    if state.crossed:
        return (
            f"{name}{where} does not answer as the monitored copy would: evidence"
            f" {state.evidence:.1f}, limit {state.limit:.1f} ({state.n} answers weighed)"
        )
    return (
        f"{name}{where} answers as the monitored copy would: evidence {state.evidence:.1f}, limit"
        f" {state.limit:.1f} ({state.n} answers weighed)"
    )


def _query(pack_id: str, state: IdentityState) -> str:
    """The SQL that shows the last day's answers, for a person with the reader's role."""
    segment, served = (text.replace("'", "''") for text in (state.segment, state.served))
    moment = state.last_bucket.isoformat()
    return (
        "SELECT bucket_start, n, left_out, tokens, surprise, z, off_support, given_away"
        f" FROM monitor.identity_windows WHERE pack_id = '{pack_id}' AND segment = '{segment}'"
        f" AND served = '{served}' AND bucket_start <= '{moment}'"
        f" AND bucket_start > timestamptz '{moment}' - interval '1 day'"
        " ORDER BY bucket_start DESC"
    )
