"""When answers are not what the copy would say: the condition of the ``identity`` rule. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any, Final

from monitor.settings import IdentityRule
from monitor.values.alerts import Alert, Condition
from monitor.values.surprise import IdentityState
from monitor.values.witnesses import UNLABELLED, Verdict, as_json, named, sentence

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
    pack_id: str,
    state: IdentityState,
    verdict: Verdict,
    rule: IdentityRule,
    bets: Sequence[IdentityState] = (),
) -> Condition | None:
    """Whether another model than the copy answers as ``state.served``; None where the rule does not look.

    ``bets`` are the tests of registered alternatives in the same segment and served model. Their bound and that of
    ``state`` is the e-detectors' limit, so no number of prompts has to be waited for.
    """
    if not any(fnmatchcase(state.segment, pattern) for pattern in rule.segments):
        return None
    strongest = max((state, *bets), key=lambda one: (one.crossed, one.evidence - one.limit))
    said: dict[str, Any] = {}
    if strongest.crossed:
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
        active=strongest.crossed,
        summary=_summary(state, strongest, verdict),
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
            **({"mend": MEND} if strongest.crossed else {}),
            "evidence": {"value": round(strongest.evidence, 3), "limit": round(strongest.limit, 3)},
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


def _summary(state: IdentityState, strongest: IdentityState, verdict: Verdict) -> str:
    name = "the served model" if state.served == UNLABELLED else state.served
    where = "" if state.segment == "all" else f" in {state.segment}"
    figures = f"evidence {strongest.evidence:.1f}, limit {strongest.limit:.1f} ({state.n} answers weighed)"
    if not strongest.crossed:
        return f"{name}{where} answers as the monitored copy would: {figures}"
    summary = f"{name}{where} does not answer as the monitored copy would: {figures}"
    if looks := named(verdict.witnesses):
        summary += f"; its answers look like {looks}"
    return summary


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
