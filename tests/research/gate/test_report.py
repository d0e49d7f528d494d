"""Markdown, JUnit and JSON say the same, and hostile names stay text."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree as xml

import pytest

from monitor.research.gate.decide import GateReport, GateSettings
from monitor.research.gate.equivalence import Compared, Verdict, together
from monitor.research.gate.report import as_json, headline, json_text, junit, markdown
from monitor.research.gate.shifts import FeatureShift, Tails
from monitor.values.drift import Bound

HOSTILE = 'a|b <script> & "q"\n@team `x` [l](u) \x00\x1b'


def shift(
    feature: str, verdict: Verdict, kind: Any = "model", needed: int | None = None
) -> FeatureShift:
    value = {"pass": 0.01, "fail": 0.9, "inconclusive": 0.25}[verdict]
    compared = Compared(
        bound=Bound(value=value, low=value - 0.1, high=value + 0.1),
        margin=0.3,
        verdict=verdict,
        needed=needed,
    )
    tail = Compared(
        bound=Bound(value=0.0, low=-0.03, high=0.03), margin=0.05, verdict="pass", needed=None
    )
    return FeatureShift(
        feature=feature,
        kind=kind,
        expected="rises",
        n=120,
        clusters=120,
        reference=0.0,
        candidate=value,
        effect=1.5,
        shift=compared,
        tails=Tails(before=1, after=1, newly=0, no_longer=0, compared=tail),
        verdict=verdict,
    )


def report(*shifts: FeatureShift) -> GateReport:
    verdict = together([one.verdict for one in shifts])
    models = {"model_id": "m", "weights_hash": "0123456789abcdef"}
    return GateReport(
        verdict=verdict,
        decided_by=tuple(
            f"{s.kind} shift of {s.feature}"
            for s in shifts
            if s.verdict == verdict and verdict != "pass"
        ),
        shifts=shifts,
        comparisons=2 * len(shifts),
        prompts=120,
        clusters=120,
        settings=GateSettings(),
        pack={"name": "p", "version": "1", "id": "fedcba9876543210"},
        reference=models,
        candidate=models,
        canary_deviation=0.001,
        canary_tolerance=0.05,
        instrument={},
        notes=("a note",),
    )


MIXED = report(
    shift("calm", "pass"), shift("loud", "fail"), shift("near", "inconclusive", needed=9)
)


def test_the_markdown_begins_with_the_verdict_and_names_what_decides() -> None:
    lines = markdown(MIXED).splitlines()
    assert lines[0] == "## Persona gate: fail"
    assert lines[2] == "FAIL: above the margin: model shift of loud (3 features on 120 prompts)."
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 5
    assert len({line.count("|") for line in table}) == 1
    assert "| loud | fail | +0.900 (+0.800 to +1.000) | 0.3 | +1.50 |" in markdown(MIXED)
    assert "- a note" in lines
    assert "≤ 0.05 over all 6 comparisons" in markdown(MIXED)


def test_each_kind_of_shift_has_its_table() -> None:
    both = report(shift("a", "pass"), shift("a", "inconclusive", "behaviour", 400))
    text = markdown(both)
    assert text.index("Model shift:") < text.index("Behaviour shift:")
    assert headline(both).startswith("INCONCLUSIVE: 1 undecided: behaviour shift of a")
    assert "about 400 prompts would decide" in headline(both)
    assert "too near its margin" in headline(report(shift("a", "inconclusive")))
    assert headline(report(shift("a", "pass"))).startswith("PASS: every harmful shift")


def test_junit_has_a_case_for_each_feature() -> None:
    root = xml.fromstring(junit(MIXED))
    [suite] = root
    assert {name: suite.get(name) for name in ("tests", "failures", "errors")} == {
        "tests": "3",
        "failures": "1",
        "errors": "1",
    }
    cases = {case.get("name"): case for case in suite.iter("testcase")}
    assert cases["calm"].find("failure") is None
    assert cases["calm"].find("error") is None
    failure, error = cases["loud"].find("failure"), cases["near"].find("error")
    assert failure is not None
    assert "shift +0.900" in failure.get("message", "")
    assert error is not None
    assert "about 9 prompts" in error.get("message", "")
    assert cases["loud"].get("classname") == "monitor.gate.model_shift"


def test_hostile_names_stay_text_everywhere() -> None:
    hostile = report(shift(HOSTILE, "fail"))
    [case] = xml.fromstring(junit(hostile)).iter("testcase")
    assert case.get("name", "").startswith('a|b <script> & "q"')
    text = markdown(hostile)
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 3
    assert {line.replace("\\|", "").count("|") for line in table} == {9}
    assert "<script>" not in text
    assert "\\@team" in text
    assert "\\[l\\](u)" in text
    assert json.loads(json_text(hostile))["features"][0]["feature"] == HOSTILE


def test_json_is_strict_and_whole() -> None:
    found = json.loads(json_text(MIXED), parse_constant=pytest.fail)
    assert found["schema"] == 1
    assert (found["verdict"], found["exit_code"]) == ("fail", 1)
    assert [f["verdict"] for f in found["features"]] == ["pass", "fail", "inconclusive"]
    assert found["features"][1]["shift"] == {
        "value": 0.9,
        "low": 0.8,
        "high": 1.0,
        "margin": 0.3,
        "verdict": "fail",
    }
    assert found["features"][1]["tail"]["margin"] == 0.05
    endless = shift("a", "inconclusive")
    open_bound = replace(endless.shift, bound=Bound(value=0.0, low=-math.inf, high=math.inf))
    nothing = report(replace(endless, shift=open_bound, reference=None, candidate=None, n=0))
    [one] = json.loads(json_text(nothing), parse_constant=pytest.fail)["features"]
    assert (one["shift"]["low"], one["reference"]) == (None, None)


def test_a_tail_that_is_not_judged_is_still_counted() -> None:
    one = shift("a", "pass")
    loose = replace(one, tails=Tails(before=1, after=4, newly=3, no_longer=0, compared=None))
    found = report(loose)
    assert "3 new, 0 gone | not judged" in markdown(found)
    [row] = as_json(found)["features"]
    assert row["tail"] == {"before": 1, "after": 4, "newly": 3, "no_longer": 0, "margin": None}


def test_needed_is_the_largest_of_what_is_still_open() -> None:
    both = report(shift("a", "inconclusive", needed=90), shift("b", "inconclusive", needed=300))
    assert both.needed == 300
    out_of_reach = report(shift("a", "inconclusive", needed=90), shift("b", "inconclusive"))
    assert out_of_reach.needed is None
