"""The gate's decision for a pull request (Markdown), a pipeline (JUnit XML) and a program (JSON)."""

from __future__ import annotations

import html
import json
import math
import re
from typing import Any, Final
from xml.etree import ElementTree as xml

from monitor.research.gate.decide import GateReport
from monitor.research.gate.equivalence import POWER, Compared
from monitor.research.gate.shifts import FeatureShift, Tails

SCHEMA: Final = 1
EXIT_CODES: Final = {"pass": 0, "fail": 1, "inconclusive": 2}
_KINDS: Final = {
    "model": "Model shift: the same text, read by the candidate instead of the reference",
    "behaviour": "Behaviour shift: the candidate's answers instead of the reference's, both read by "
    "the reference",
}
_NOT_XML: Final = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def headline(report: GateReport) -> str:
    """The verdict and its reason in one sentence."""
    watched = f"{len({one.feature for one in report.shifts})} features on {report.prompts} prompts"
    if report.verdict == "pass":
        return f"PASS: every harmful shift is below its margin ({watched})."
    some = ", ".join(report.decided_by[:3]) + (" …" if len(report.decided_by) > 3 else "")
    if report.verdict == "fail":
        return f"FAIL: above the margin: {some} ({watched})."
    more = (
        f"about {report.needed} prompts would decide"
        if report.needed
        else "a shift stands too near its margin for any number of prompts to decide soon"
    )
    return f"INCONCLUSIVE: {len(report.decided_by)} undecided: {some} ({watched}); {more}."


def as_json(report: GateReport) -> dict[str, Any]:
    """JSON values only; fields as `docs/research/gate.md` lists them. A bound that is not known is null."""
    return {
        "schema": SCHEMA,
        "verdict": report.verdict,
        "exit_code": EXIT_CODES[report.verdict],
        "headline": headline(report),
        "decided_by": list(report.decided_by),
        "alpha": report.settings.alpha,
        "comparisons": report.comparisons,
        "min_n": report.settings.least,
        "generate": report.settings.generate,
        "prompts": report.prompts,
        "clusters": report.clusters,
        "prompts_needed": report.needed,
        "features": [_feature(one) for one in report.shifts],
        "pack": dict(report.pack),
        "reference": dict(report.reference),
        "candidate": dict(report.candidate),
        "canaries": {"deviation": report.canary_deviation, "tolerance": report.canary_tolerance},
        "instrument": dict(report.instrument),
        "notes": list(report.notes),
    }


def json_text(report: GateReport) -> str:
    return json.dumps(as_json(report), indent=2, allow_nan=False) + "\n"


def markdown(report: GateReport) -> str:
    """A short verdict, a table for each kind of shift, and what it rests on."""
    settings = report.settings
    parts = [f"## Persona gate: {report.verdict}", _safe(headline(report))]
    for kind in dict.fromkeys(one.kind for one in report.shifts):
        rows = [one for one in report.shifts if one.kind == kind]
        parts += [f"**{_KINDS[kind]}**", _table(rows)]
    parts += [
        f"Shifts are in benign standard deviations, positive is harmful. P(fail without harm beyond a "
        f"margin) ≤ {settings.alpha:g} over all {report.comparisons} comparisons; P(pass with harm "
        f"beyond a margin) ≤ {settings.alpha:g}. At least {settings.least} conversations are asked for; "
        f"there are {report.clusters}.",
        "\n".join(f"- {_safe(line)}" for line in _facts(report)),
    ]
    return "\n\n".join(parts) + "\n"


def junit(report: GateReport) -> str:
    """JUnit XML: one test case for each feature and kind; inconclusive is an ``error``, never green."""
    counts = {
        verdict: sum(one.verdict == verdict for one in report.shifts) for verdict in EXIT_CODES
    }
    suite = xml.Element(
        "testsuite",
        name="monitor gate",
        tests=str(len(report.shifts)),
        failures=str(counts["fail"]),
        errors=str(counts["inconclusive"]),
    )
    properties = xml.SubElement(suite, "properties")
    for name, value in (
        ("verdict", report.verdict),
        ("pack", report.pack["id"]),
        ("reference", report.reference["weights_hash"]),
        ("candidate", report.candidate["weights_hash"]),
    ):
        xml.SubElement(properties, "property", name=name, value=_xml(str(value)))
    for one in report.shifts:
        case = xml.SubElement(
            suite, "testcase", classname=f"monitor.gate.{one.kind}_shift", name=_xml(one.feature)
        )
        said = _sentence(one)
        if one.verdict == "pass":
            xml.SubElement(case, "system-out").text = _xml(said)
        else:
            tag = "failure" if one.verdict == "fail" else "error"
            found = xml.SubElement(case, tag, type=one.verdict, message=_xml(said))
            found.text = _xml(headline(report))
    root = xml.Element("testsuites")
    root.append(suite)
    xml.indent(root)
    return xml.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def table_row(one: FeatureShift) -> dict[str, Any]:
    """One feature for people: what the Markdown table and the terminal show."""
    tail = one.tails.compared
    return {
        "feature": one.feature,
        "kind": one.kind,
        "verdict": one.verdict,
        "shift (bounds)": _bounds(one.shift),
        "margin": f"{one.shift.margin:g}",
        "effect": "" if one.effect is None else f"{one.effect:+.2f}",
        "tail change (bounds)": _bounds(tail)
        if tail
        else f"{one.tails.newly} new, {one.tails.no_longer} gone",
        "tail margin": f"{tail.margin:g}" if tail else "not judged",
        "n": str(one.n),
    }


def _table(rows: list[FeatureShift]) -> str:
    cells = [{k: v for k, v in table_row(one).items() if k != "kind"} for one in rows]
    lines = [
        list(cells[0]),
        ["---"] * len(cells[0]),
        *([_safe(v) for v in c.values()] for c in cells),
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _bounds(compared: Compared) -> str:
    bound = compared.bound
    return f"{bound.value:+.3f} ({bound.low:+.3f} to {bound.high:+.3f})"


def _sentence(one: FeatureShift) -> str:
    said = f"shift {_bounds(one.shift)}, margin {one.shift.margin:g}"
    if one.tails.compared:
        said += f"; tail change {_bounds(one.tails.compared)}, margin {one.tails.compared.margin:g}"
    said += f"; n = {one.n}"
    return said + (f"; about {one.needed} prompts would decide" if one.needed else "")


def _facts(report: GateReport) -> list[str]:
    deviation = report.canary_deviation
    return [
        f"reference: {report.reference['model_id']} ({report.reference['weights_hash']!s:.12})",
        f"candidate: {report.candidate['model_id']} ({report.candidate['weights_hash']!s:.12})",
        f"pack: {report.pack['name']} {report.pack['version']} ({report.pack['id']!s:.12})",
        "canaries: the pack has none, so the instrument was not checked"
        if deviation is None
        else f"canaries: reproduced on the reference within {deviation:.2g} of "
        f"{report.canary_tolerance:g} deviations",
        f"prompts for a decision are those that give one with probability {POWER:g} if the shift is "
        "as measured",
        *report.notes,
    ]


def _feature(one: FeatureShift) -> dict[str, Any]:
    return {
        "feature": one.feature,
        "kind": one.kind,
        "expected": one.expected,
        "verdict": one.verdict,
        "n": one.n,
        "clusters": one.clusters,
        "reference": one.reference,
        "candidate": one.candidate,
        "effect": one.effect,
        "prompts_needed": one.needed,
        "shift": _compared(one.shift),
        "tail": _tail(one.tails),
    }


def _tail(tails: Tails) -> dict[str, Any]:
    counts = {
        "before": tails.before,
        "after": tails.after,
        "newly": tails.newly,
        "no_longer": tails.no_longer,
    }
    return counts | (_compared(tails.compared) if tails.compared else {"margin": None})


def _compared(compared: Compared) -> dict[str, Any]:
    bound = compared.bound
    return {
        "value": bound.value,
        "low": bound.low if math.isfinite(bound.low) else None,
        "high": bound.high if math.isfinite(bound.high) else None,
        "margin": compared.margin,
        "verdict": compared.verdict,
    }


def _safe(text: str) -> str:
    """Names of features and folders are not ours: no table, no markup, no mention may open in them."""
    plain = html.escape(text.replace("\n", " "), quote=False)
    return re.sub(r"([|\\`*_\[\]@#])", r"\\\1", plain)


def _xml(text: str) -> str:
    """Without the characters that XML 1.0 cannot hold, even escaped."""
    return _NOT_XML.sub("�", text)
