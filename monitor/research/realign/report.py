"""The report of a treatment: the curve, and what was before, after and in the reference."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from monitor.research.realign.exam import Measure, Measurement, Standing
from monitor.research.report import Curve, Section, line_plot, page
from monitor.writing import write_whole

VERDICTS: Final = {
    "returned": "The watched features are back inside the baseline's bounds, and stayed there.",
    "not_returned": "The watched features did not come back to stay within the steps allowed.",
    "no_drift": "The watched features were inside the bounds before any step: nothing to bring back.",
}
EXPLAINED: Final[Mapping[Measure, str]] = {
    "given": "given: each model reads the same written exchanges. The text stays, so a shift is a "
    "change inside the model.",
    "own": "own: the reference reads the answers that each model gives itself. The instrument stays, "
    "so a shift is a change of what is said.",
}
CURVES: Final = 6
ANSWERS: Final = 12
"""Held-out answers shown side by side; those to canaries are all shown."""


def write_report(out: Path, report: Mapping[str, Any], curve: Sequence[Measurement]) -> None:
    """``report.json`` and ``report.html`` in the folder ``out``."""
    write_whole(out / "report.json", json.dumps(_plain(report), indent=2, allow_nan=False) + "\n")
    write_whole(out / "report.html", _html(report, curve))


def _html(report: Mapping[str, Any], curve: Sequence[Measurement]) -> str:
    pack, settings = report["pack"], report["settings"]
    sections = [
        Section(
            title="Outcome",
            paragraphs=(
                VERDICTS[report["outcome"]],
                f"{report['steps']} optimiser steps ({settings['tune']['method']}, batch "
                f"{settings['tune']['batch']}) on {report['examples']} examples; measured on "
                f"{report['held_out']} held-out exchanges. Deciding measure: "
                f"{', '.join(settings['watch'])}; {settings['stay']} measurements in a row must be inside.",
                *report["remarks"],
            ),
        )
    ]
    for measure, explained in EXPLAINED.items():
        points = [one for one in curve if any(s.measure == measure for s in one.standings)]
        if points:
            sections.append(_shifts(measure, explained, points))
    sections += [_losses(curve, report["summaries"]), *_comparisons(report["summaries"])]
    sections += _answers(report)
    return page(
        "Re-alignment",
        sections,
        subtitle=f"{report['models']['drifted']['model_id']} towards "
        f"{report['models']['reference']['model_id']}, read by {pack['name']} {pack['version']}",
    )


def _shifts(measure: Measure, explained: str, points: Sequence[Measurement]) -> Section:
    by_feature: dict[str, list[tuple[int, Standing]]] = {}
    for point in points:
        for one in point.standings:
            if one.measure == measure:
                by_feature.setdefault(one.feature, []).append((point.step, one))
    most = sorted(by_feature, key=lambda name: -by_feature[name][0][1].shift.value)[:CURVES]
    margins = sorted({path[0][1].margin for path in by_feature.values()})
    figure = line_plot(
        {
            name: Curve(
                x=[step for step, _ in by_feature[name]],
                y=[one.shift.value for _, one in by_feature[name]],
                low=[_finite(one.shift.low) for _, one in by_feature[name]],
                high=[_finite(one.shift.high) for _, one in by_feature[name]],
            )
            for name in most
        },
        title=f"Harmful shift against the reference, {measure}",
        x_label="optimiser steps",
        y_label="benign standard deviations",
        levels={f"margin {margin:g}": margin for margin in margins},
    )
    return Section(
        title=f"Features, {measure}",
        paragraphs=(explained, "Inside: the upper bound lies below the margin."),
        figure=figure,
        table=[
            {
                "feature": name,
                "shift at start": path[0][1].shift.value,
                "shift at end": path[-1][1].shift.value,
                "lower bound": path[-1][1].shift.low,
                "upper bound": path[-1][1].shift.high,
                "margin": path[-1][1].margin,
                "inside": path[-1][1].inside,
                "pairs": path[-1][1].n,
            }
            for name, path in by_feature.items()
        ],
    )


def _losses(curve: Sequence[Measurement], summaries: Mapping[str, Any]) -> Section:
    steps = [one.step for one in curve]
    training = [math.nan if one.training_loss is None else one.training_loss for one in curve]
    return Section(
        title="Loss",
        paragraphs=("Nats per response token; lower is likelier.",),
        figure=line_plot(
            {
                "held-out": Curve(x=steps, y=[one.held_out_loss for one in curve]),
                "training": Curve(x=steps, y=training),
            },
            title="Loss of the good answers",
            x_label="optimiser steps",
            y_label="nats per token",
            levels={"reference, held-out": summaries["reference"]["held_out_loss"]},
        ),
    )


def _comparisons(summaries: Mapping[str, Any]) -> list[Section]:
    """Mean scores of each group of prompts in the three models."""
    models = {name: found["levels"] for name, found in summaries.items() if found is not None}
    return [
        Section(
            title=f"Mean scores: {group}",
            table=[
                {"feature": feature}
                | {name: levels[group][feature] for name, levels in models.items()}
                for feature in levels_of_group
            ],
        )
        for group, levels_of_group in models["reference"].items()
        if any(value is not None for value in levels_of_group.values())
    ]


def _answers(report: Mapping[str, Any]) -> list[Section]:
    found = {name: one["answers"] for name, one in report["summaries"].items() if one is not None}
    prompts = report["prompts"]
    if any(texts is None for texts in found.values()) or not prompts:
        return []
    n = len(prompts) - report["canaries"]
    chosen = [*range(min(n, ANSWERS)), *range(n, len(prompts))]
    return [
        Section(
            title="Own answers, side by side",
            paragraphs=("Held-out questions where they may be shown, then the pack's canaries.",),
            table=[
                {"question": prompts[row]} | {name: texts[row] for name, texts in found.items()}
                for row in chosen
            ],
        )
    ]


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.nan


def _plain(value: Any) -> Any:
    """JSON values alone: what is not finite becomes null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
