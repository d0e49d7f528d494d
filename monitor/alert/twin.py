"""When served answers read otherwise than the copy's own: the condition of the ``twin`` rule. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Final

from monitor.settings import IdentityRule
from monitor.values.alerts import Alert, Condition
from monitor.values.drift import Window
from monitor.values.twin import TwinState
from monitor.values.witnesses import Verdict, as_json, sentence

RULE: Final = "twin"
MEANING: Final = (
    "the monitored copy answers some of the prompts too; what users ask moves both answers alike, so a "
    "difference between them is the served model's"
)
MEND: Final = (
    "Compare the server's weights, adapters, quantisation, chat template and default sampling parameters with "
    "those of replay.model."
)


def twin_condition(
    pack_id: str,
    segment: str,
    states: Sequence[TwinState],
    names: Sequence[str],
    windows: Mapping[int, Window],
    verdict: Verdict,
    rule: IdentityRule,
) -> Condition | None:
    """Whether answers of the segment read otherwise than the copy's; None where the rule does not look.

    ``states`` are the segment's tests, at least one; ``windows`` the differences of the shortest window by
    index into the features' ``names``. The bound is the e-detectors' limit: no number of prompts has to
    be waited for.
    """
    if not any(fnmatchcase(segment, pattern) for pattern in rule.segments):
        return None
    crossed = [state for state in states if state.crossed]
    shown = max(crossed or states, key=lambda state: state.evidence)
    said = {}
    if crossed:
        said = {
            "cause": verdict.cause.value,
            "verdict": sentence(verdict.cause, verdict.witnesses),
            "witnesses": as_json(verdict.witnesses),
            "features": [_figures(state, names, windows) for state in crossed],
        }
    return Condition(
        dedupe_key=f"twin/{pack_id}/{segment}",
        rule=RULE,
        kind="drift",
        severity=rule.severity,
        active=bool(crossed),
        summary=_summary(segment, [names[state.feature] for state in crossed], shown),
        labels={"kind": "twin", "rule": RULE, "segment": segment, "pack": pack_id},
        details={
            "pack": pack_id,
            "segment": segment,
            "meaning": MEANING,
            **({"mend": MEND} if crossed else {}),
            "evidence": {"value": round(shown.evidence, 3), "limit": round(shown.limit, 3)},
            "pairs": shown.n,
            "since": shown.started_at.isoformat(),
            "until": shown.last_bucket.isoformat(),
            **said,
            "query": _query(pack_id, segment, shown),
        },
        hold_for=rule.hold_for,
        cooldown=rule.cooldown,
        reminder=rule.reminder,
    )


def is_twin(alert: Alert) -> bool:
    return alert.labels.get("kind") == "twin"


def _figures(
    state: TwinState, names: Sequence[str], windows: Mapping[int, Window]
) -> dict[str, object]:
    window = windows.get(state.feature)
    return {
        "feature": names[state.feature],
        "evidence": round(state.evidence, 3),
        "difference": round(window.total / window.n, 3) if window and window.n else None,
    }


def _summary(segment: str, crossed: Sequence[str], shown: TwinState) -> str:
    where = "" if segment == "all" else f" in {segment}"
    figures = f"evidence {shown.evidence:.1f}, limit {shown.limit:.1f} ({shown.n} pairs)"
    if crossed:
        what = ", ".join(crossed)
        return f"served answers{where} read otherwise than the monitored copy's own ({what}): {figures}"
    return f"served answers{where} read as the monitored copy's own: {figures}"


def _query(pack_id: str, segment: str, state: TwinState) -> str:
    """The SQL that shows the last day's differences, for a person with the reader's role."""
    quoted = segment.replace("'", "''")
    moment = state.last_bucket.isoformat()
    return (
        "SELECT window_start, feature, n, mean, deviation FROM monitor.twin_windows"
        f" WHERE pack_id = '{pack_id}' AND segment = '{quoted}' AND window_start <= '{moment}'"
        f" AND window_start > timestamptz '{moment}' - interval '1 day'"
        " ORDER BY window_start DESC, feature"
    )
