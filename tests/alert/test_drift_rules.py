"""Which drift holds: bounds and not estimates, the rule's direction, one alert for a feature in a segment."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from sqlalchemy import Engine

from monitor.alert.policy import conditions, with_prompts
from monitor.settings import DriftRule, DriftSettings, Thresholds
from monitor.store import partitions as store
from monitor.store.database import transaction
from monitor.store.drift import save_drifts
from monitor.values.alerts import Condition
from monitor.values.drift import Bound, TailGrowth
from monitor.values.witnesses import Cause
from tests.alert.drifts import NOW, drift, feature, rule


def only(found: list[Condition]) -> Condition:
    (condition,) = found
    return condition


def test_the_lower_bound_decides_and_not_the_estimate() -> None:
    wide = drift(shift=(0.29, 2.0))
    narrow = drift(shift=(0.31, 0.4))
    assert not only(conditions([wide], [rule()], [feature()])).active
    assert only(conditions([narrow], [rule()], [feature()])).active


@pytest.mark.parametrize(
    ("low", "severity"), [(0.3, "warning"), (0.79, "warning"), (0.8, "critical"), (3.0, "critical")]
)
def test_the_gravest_crossed_severity_counts(low: float, severity: str) -> None:
    condition = only(conditions([drift(shift=(low, low + 0.2))], [rule()], [feature()]))
    assert (condition.active, condition.severity) == (True, severity)


def test_a_feature_that_falls_is_mirrored() -> None:
    assistant = feature(expected="falls")
    fallen, risen = drift(shift=(-0.9, -0.5)), drift(shift=(0.5, 0.9))
    assert only(conditions([fallen], [rule()], [assistant])).active
    assert not only(conditions([risen], [rule()], [assistant])).active
    assert not only(conditions([fallen], [rule()], [feature()])).active
    either = rule(direction="either")
    assert only(conditions([fallen], [either], [feature()])).active
    assert only(conditions([risen], [either], [assistant])).active


def test_psi_and_ks_count_by_their_lower_bounds_and_only_the_expected_way() -> None:
    shape = rule(severities={"warning": Thresholds(psi=0.2), "critical": Thresholds(ks=0.5)})
    up = {"shift": (0.01, 0.2)}
    assert not only(conditions([drift(psi=0.5, psi_low=0.1, **up)], [shape], [feature()])).active
    assert only(conditions([drift(psi=0.5, psi_low=0.3, **up)], [shape], [feature()])).active
    found = only(conditions([drift(ks=0.7, ks_low=0.6, **up)], [shape], [feature()]))
    assert (found.active, found.severity) == (True, "critical")
    down = drift(shift=(-0.2, -0.01), psi=0.5, psi_low=0.3, ks_low=0.6)
    assert not only(conditions([down], [shape], [feature()])).active
    shape = shape.model_copy(update={"direction": "either"})
    assert only(conditions([down], [shape], [feature()])).active


def test_a_process_change_needs_the_evidence_and_a_running_detector() -> None:
    process = rule(severities={"warning": Thresholds(process_change=True)})
    assert not only(conditions([drift(evidence=50.0)], [process], [feature()])).active
    below, at = drift(evidence=11.9, evidence_limit=12.0), drift(evidence=12.0, evidence_limit=12.0)
    assert not only(conditions([below], [process], [feature()])).active
    assert only(conditions([at], [process], [feature()])).active
    # The detector watches both ways. Away from the persona (more refusals, a calmer topic) nobody is paged.
    away = drift(shift=(-0.9, -0.7), evidence=90.0, evidence_limit=12.0)
    assert not only(conditions([away], [process], [feature()])).active
    either = process.model_copy(update={"direction": "either"})
    assert only(conditions([away], [either], [feature()])).active


def test_a_process_change_that_was_bet_the_other_way_holds_for_no_rule_on_the_expected_way() -> (
    None
):
    process = rule(severities={"warning": Thresholds(process_change=True)})
    # The long window's mean lies above the baseline's by chance, while the detector saw scores fall.
    fell = drift(shift=(-0.02, 0.03), evidence=15.0, evidence_toward=-8.0, evidence_limit=12.0)
    assert not only(conditions([fell], [process], [feature()])).active
    rose = drift(shift=(-0.02, 0.03), evidence=15.0, evidence_toward=14.9, evidence_limit=12.0)
    (crossed,) = only(conditions([rose], [process], [feature()])).details["crossed"]
    assert crossed["lower_bound"] == 14.9
    either = process.model_copy(update={"direction": "either"})
    assert only(conditions([fell], [either], [feature()])).active


def test_a_rare_persona_shows_in_the_tail_while_the_mean_stands_still() -> None:
    condition = only(
        conditions([drift(shift=(-0.05, 0.05), tail=(4.0, 9.0))], [rule()], [feature()])
    )
    assert condition.active
    assert condition.details["crossed"] == [
        {
            "rule": "persona",
            "window": "15m",
            "severity": "warning",
            "statistic": "tail_ratio",
            "lower_bound": 4.0,
            "threshold": 3.0,
        }
    ]


def test_thin_windows_say_nothing() -> None:
    thin = drift(shift=(2.0, 3.0), n=199)
    assert conditions([thin], [rule()], [feature()]) == []
    clear = drift(window="1h")
    condition = only(conditions([thin, clear], [rule()], [feature()]))
    assert not condition.active
    assert condition.details["clear_windows"] == ["1h"]


def test_an_instrument_shift_holds_the_drift_conditions() -> None:
    assert (
        conditions([drift(shift=(2, 3), cause=Cause.INSTRUMENT_SHIFT)], [rule()], [feature()]) == []
    )


def test_one_change_is_one_condition_over_windows_and_rules() -> None:
    drifts = [
        drift(shift=(0.9, 1.1)),
        drift(shift=(0.4, 0.6), window="1h"),
        drift(shift=(0.0, 0.2), window="24h", evidence=20.0, evidence_limit=12.0),
    ]
    process = rule("process", severities={"warning": Thresholds(process_change=True)})
    condition = only(conditions(drifts, [process, rule()], [feature()]))
    assert (condition.rule, condition.severity) == ("persona", "critical")
    assert condition.details["window"] == "15m"
    assert condition.details["shown_by"] == ["15m", "1h", "24h"]
    assert {c["rule"] for c in condition.details["crossed"]} == {"persona", "process"}


def test_features_segments_and_packs_are_told_apart() -> None:
    drifts = [
        drift(),
        drift(feature="sarcastic"),
        drift(segment="route=/chat"),
        drift(pack_id="pack-2"),
        drift(segment="canary"),
        drift(feature="unheard-of"),
    ]
    found = conditions(drifts, [rule(segments=("*",))], [feature(), feature("sarcastic")])
    assert len({condition.dedupe_key for condition in found}) == len(found) == 4


def test_rules_select_features_by_name_glob_and_tag_and_segments_by_glob() -> None:
    features = [
        feature("toxic/a"),
        feature("toxic/b", tags=("rude",)),
        feature("calm", tags=("rude",)),
    ]
    drifts = [drift(feature=f.name, segment=s) for f in features for s in ("all", "route=/a")]

    def selected(**changes: Any) -> set[tuple[str, str]]:
        found = conditions(drifts, [rule(**changes)], features)
        return {(c.labels["feature"], c.labels["segment"]) for c in found}

    assert selected(features=("toxic/*",)) == {("toxic/a", "all"), ("toxic/b", "all")}
    assert selected(features=("tag:rude",)) == {("toxic/b", "all"), ("calm", "all")}
    assert selected(features=("calm",), segments=("route=*",)) == {("calm", "route=/a")}
    assert selected(features=("*", "!tag:rude")) == {("toxic/a", "all")}
    assert selected(features=("!toxic/b", "tag:rude")) == {("calm", "all")}


def test_what_is_only_watched_pages_nobody_unless_a_rule_names_it() -> None:
    features = [feature("reckless"), feature("sarcastic", tags=("style", "watch-only"))]
    drifts = [drift(feature=f.name) for f in features]
    default = DriftRule(name="r", severities={"warning": Thresholds(shift=0.1)})
    assert [c.labels["feature"] for c in conditions(drifts, [default], features)] == ["reckless"]
    named = default.model_copy(update={"features": ("sarcastic",)})
    assert [c.labels["feature"] for c in conditions(drifts, [named], features)] == ["sarcastic"]


def test_a_rule_that_only_leaves_out_is_refused() -> None:
    with pytest.raises(ValidationError, match="only leaves out"):
        rule(features=("!sarcastic",))


def test_a_rule_of_one_window_leaves_the_others_alone() -> None:
    drifts = [drift(shift=(2.0, 3.0)), drift(window="1h")]
    assert not only(conditions(drifts, [rule(windows=("1h",))], [feature()])).active


def test_labels_identify_and_details_measure() -> None:
    a = only(conditions([drift(shift=(0.4, 0.6))], [rule()], [feature()]))
    b = only(conditions([drift(shift=(0.5, 0.9), n=4_000)], [rule()], [feature()]))
    assert a.labels == b.labels
    assert a.details != b.details
    assert set(a.labels) == {"kind", "rule", "feature", "segment", "pack"}
    assert a.details["meaning"] == "Insults and threats."
    assert a.details["shift"] == {"value": 0.5, "low": 0.4, "high": 0.6}
    assert "canaries" in a.details["verdict"]


def test_quotes_in_names_do_not_leave_the_query() -> None:
    name = "it's'; DROP TABLE alerts; --"
    condition = only(conditions([drift(feature=name)], [rule()], [feature(name)]))
    assert "'it''s''; DROP TABLE alerts; --'" in condition.details["query"]


def test_the_query_of_an_alert_finds_the_comparison_behind_it(database: Engine) -> None:
    name = "it's %(odd)s :x"
    odd = drift(feature=name, shift=(1.0, 1.2))
    condition = only(conditions([odd], [rule()], [feature(name)]))
    with transaction(database) as connection:
        store.ensure_partitions(connection, NOW.date(), 1)
        save_drifts(connection, [odd])
        rows = connection.exec_driver_sql(condition.details["query"].replace("%", "%%")).all()
    assert [(row.n, round(row.shift_low, 6), row.cause) for row in rows] == [
        (1_000, 1.0, "input_shift")
    ]


def test_the_shipped_rules_fire_on_a_large_shift_and_not_on_none() -> None:
    rules = DriftSettings().rules
    assert not only(conditions([drift()], rules, [feature()])).active
    found = only(conditions([drift(shift=(1.0, 1.2))], rules, [feature()]))
    assert (found.active, found.severity) == (True, "critical")


def test_strongest_prompts_are_added_to_the_details() -> None:
    condition = only(conditions([drift(shift=(1.0, 1.2))], [rule()], [feature()]))
    told = with_prompts(condition, [{"prompt_id": "p-1", "score": 7.5}])
    assert told.details["strongest_prompts"] == [{"prompt_id": "p-1", "score": 7.5}]
    assert told.details["shift"] == condition.details["shift"]


numbers = st.floats(allow_nan=True, allow_infinity=True)


@given(low=numbers, high=numbers, tail=numbers, psi=numbers, evidence=numbers, limit=numbers)
def test_no_figure_breaks_the_rules_or_the_json(
    low: float, high: float, tail: float, psi: float, evidence: float, limit: float
) -> None:
    odd = drift(
        shift=(low, high),
        tail=(tail, tail),
        psi=psi,
        psi_low=psi,
        evidence=evidence,
        evidence_limit=limit,
    )
    every = Thresholds(shift=0.3, psi=0.1, ks=0.1, tail_ratio=2.0, process_change=True)
    condition = only(conditions([odd], [rule(severities={"critical": every})], [feature()]))
    json.dumps(dict(condition.details), allow_nan=False)
    towards = odd.shift.value > 0
    crossed = low >= 0.3 or tail >= 2.0
    crossed |= towards and math.isfinite(limit) and evidence >= limit
    if crossed:
        assert condition.active


def grown(share: float, low: float) -> TailGrowth:
    ratio = Bound(value=2 * low, low=low, high=4 * low)
    return TailGrowth(share=share, threshold=3.5, rate=0.011, baseline_rate=0.0006, ratio=ratio)


def test_the_level_whose_tail_grew_most_decides_and_is_named() -> None:
    growth = rule(severities={"warning": Thresholds(tail_growth=3.0)})
    quiet = drift(tails=(grown(0.01, 1.2), grown(0.001, 2.9)))
    assert not only(conditions([quiet], [growth], [feature()])).active
    assert not only(conditions([drift()], [growth], [feature()])).active, "no level is watched"
    loud = drift(tails=(grown(0.01, 1.2), grown(0.001, 6.0)))
    told = only(conditions([loud], [growth], [feature()]))
    assert told.active
    (crossing,) = told.details["crossed"]
    assert (crossing["statistic"], crossing["share"]) == ("tail_growth", 0.001)
    assert (crossing["lower_bound"], crossing["threshold"]) == (6.0, 3.0)
    assert told.summary.startswith(
        "toxic has more extreme prompts over 15m: 1.10% lie where the last 0.10% of the baseline begins,"
        " at least 6.0 times as many as before; mean"
    )
    assert [level["share"] for level in told.details["tails"]] == [0.01, 0.001]


def test_the_default_rule_warns_of_a_far_tail_and_wakes_nobody() -> None:
    told = only(
        conditions([drift(tails=(grown(0.001, 50.0),))], DriftSettings().rules[:1], [feature()])
    )
    assert (told.active, told.severity) == (True, "warning")


def test_a_drift_given_the_prompt_says_so_and_tells_the_raw_shift() -> None:
    given_prompt = drift(
        shift=(0.9, 1.1), adjusted=True, raw_shift=Bound(value=0.2, low=0.1, high=0.3)
    )
    told = only(conditions([given_prompt], [rule()], [feature()]))
    assert "mean given the prompt +1.00 SD" in told.summary
    assert told.details["adjusted"] is True
    assert told.details["raw_shift"] == {"value": 0.2, "low": 0.1, "high": 0.3}
    raw = only(conditions([drift(shift=(0.9, 1.1))], [rule()], [feature()]))
    assert raw.details["adjusted"] is False
    assert "raw_shift" not in raw.details
