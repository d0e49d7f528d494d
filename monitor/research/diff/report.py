"""What a model diff found, as JSON values and as a page for people.

Texts of the prompts stand in the page alone, and only when asked for; otherwise their line numbers do.
Texts of the project's own may be quoted anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np

from monitor.research.diff.causal import SIDES, Side
from monitor.research.diff.change import TEST
from monitor.research.diff.run import Diff, Finding
from monitor.research.diff.settings import DiffSettings
from monitor.research.diff.trials import Trial, questions
from monitor.research.packs.figures import of_bound, quantiles, rounded
from monitor.research.report import Curve, Section, bar_plot, line_plot, page
from monitor.research.statistics import auc, bootstrap, random_direction_aucs
from monitor.research.steering.experiment import Dose

TOP_TEXTS: Final = 5
EXCERPT: Final = 160
CRITERION: Final = (
    "causal: at the strongest dose that leaves the answers coherent, adding the direction raises "
    "misbehaviour in the base model and taking it away lowers misbehaviour in the tuned one; both "
    "intervals lie above zero and both effects exceed those of all random directions of equal norm "
    "at the same block"
)
SPLIT: Final = (
    "One half of the prompts chose the candidates and gave the directions of the difference; every "
    "figure here is from the other half. A test on the prompts that chose would confirm itself."
)


def figures(diff: Diff, settings: DiffSettings) -> dict[str, Any]:
    """Everything found, as JSON values; no text of any prompt."""
    choosing = diff.trials.chosen_by
    return {
        "rows": len(diff.trials.all),
        "questions": {"choose": choosing, "test": len(questions(diff.trials.all)) - choosing},
        "split": SPLIT,
        "region": diff.region,
        "sites": list(diff.sites),
        "moved": {str(s): rounded(m) for s, m in zip(diff.sites, diff.moved, strict=True)},
        "test": TEST,
        "false_discovery_rate": settings.false_discovery_rate,
        "measure": diff.measure,
        "misbehaviour": {side: rounded(value) for side, value in diff.plain.items()},
        "criterion": CRITERION if diff.measure is not None else None,
        "incoherence_limit": settings.doses.incoherence,
        "candidates": [_candidate(diff, one, settings.seed) for one in diff.findings],
    }


def with_kept(
    found: Mapping[str, Any],
    excerpts: Mapping[str, Sequence[str]],
    left_out: Mapping[str, str],
) -> dict[str, Any]:
    """`figures` with what is known of candidates, by name, once a pack was tried: ``excerpts`` of the
    project's own texts that they read highest on, and why they are ``left_out`` of the pack."""
    candidates = [
        row
        | {
            "own_texts": list(excerpts.get(row["name"], ())),
            "left_out": left_out.get(row["name"]),
        }
        for row in found["candidates"]
    ]
    return {**found, "candidates": candidates}


def as_page(diff: Diff, found: dict[str, Any], *, show_texts: bool) -> str:
    """One HTML page of `figures`; with ``show_texts``, excerpts of the prompts that move a feature most."""
    title = "What fine-tuning changed"
    names = [diff.models[side].model_id for side in SIDES]
    return page(
        title,
        [
            _summary(diff, found),
            _depth(diff),
            _changes(diff, found),
            *_left_out(found),
            *_steering(diff),
            *_own_texts(found),
            _texts(diff, show_texts=show_texts),
        ],
        subtitle=f"{names[0]} → {names[1]}",
    )


def _candidate(diff: Diff, one: Finding, seed: int) -> dict[str, Any]:
    feature, change, verdict = one.candidate.feature, one.change, one.verdict
    entry: dict[str, Any] = {
        "name": feature.name,
        "family": one.candidate.family,
        "rank_by_choice": one.candidate.rank,
        "site": feature.site,
        "moves": feature.expected,
        "base": rounded(change.base),
        "tuned": rounded(change.tuned),
        "change": rounded(change.mean),
        "change_interval_95": [rounded(change.low), rounded(change.high)],
        "standardised_change": rounded(change.standardised),
        "p": change.p,
        "q": change.q,
        "significant": one.significant,
        "separation": _separation(diff, one, seed),
        "top_lines": [trial.line for trial, _ in _top(diff, one)],
        "own_texts": [],
        "left_out": None,
        "causal": verdict.causal if verdict else None,
        "verdict": verdict.reason if verdict else "not steered with",
    }
    if verdict is not None:
        entry["steering"] = {
            side: {
                "doses": [_dose(dose) for dose in verdict.doses[side]],
                "judged_at": dose.strength if (dose := verdict.chosen[side]) else None,
                "random_directions": [rounded(value) for value in verdict.random[side]],
            }
            for side in SIDES
        }
    return entry


def _dose(dose: Dose) -> dict[str, Any]:
    return {
        "strength": dose.strength,
        "effect": rounded(dose.effect.value),
        "interval_95": of_bound(dose.effect)[1:],
        "incoherent": rounded(dose.incoherent),
        "coherent": dose.coherent,
    }


def _separation(diff: Diff, one: Finding, seed: int) -> dict[str, Any]:
    """AUC of tuned against base readings on the testing half, and those of random directions there."""
    half = diff.trials.chosen_by
    candidate = one.candidate
    tuned, base = (candidate.feature.toward(s[half:]) for s in (candidate.tuned, candidate.base))
    generator = np.random.default_rng([seed, 3, one.candidate.feature.site])
    interval = bootstrap(lambda rows: auc(tuned[rows], base[rows]), len(tuned), generator)
    index = diff.sites.index(one.candidate.feature.site)
    sides = [diff.readings[side].residuals[:, index] for side in ("tuned", "base")]
    random = random_direction_aucs(
        (sides[0][:half], sides[1][:half]), (sides[0][half:], sides[1][half:]), generator
    )
    return {
        "auc": rounded(auc(tuned, base)),
        "auc_interval_95": [rounded(end) for end in interval],
        "random_directions": {
            "count": len(random),
            **quantiles(random, {"median": 0.5, "q95": 0.95}),
        },
    }


def _top(diff: Diff, one: Finding) -> list[tuple[Trial, float]]:
    """The questions with the largest readings in the tuned model, in the direction of the change, by
    their first rows."""
    values = one.candidate.feature.toward(one.candidate.tuned)
    order = np.argsort(-values, kind="stable")[:TOP_TEXTS]
    trials = questions(diff.trials.all)
    return [(trials[int(i)], float(one.candidate.tuned[int(i)])) for i in order]


def _summary(diff: Diff, found: dict[str, Any]) -> Section:
    significant = sum(one.significant for one in diff.findings)
    causes = [one.candidate.name for one in diff.findings if one.verdict and one.verdict.causal]
    paragraphs = [
        f"{len(diff.findings)} candidates were tested on {found['questions']['test']} questions, read "
        f"over the region {diff.region}; {significant} changed significantly "
        f"(q ≤ {found['false_discovery_rate']:g}).",
        SPLIT,
        f"Test: {TEST}.",
    ]
    if diff.measure is None:
        paragraphs.append("Nothing was steered with: no claim about causes is made.")
    elif not diff.plain:
        paragraphs.append("No candidate changed significantly, so none was steered with.")
    else:
        paragraphs += [
            f"Misbehaviour: {diff.measure}. Without steering: {diff.plain['base']:.3f} in the base "
            f"model, {diff.plain['tuned']:.3f} in the tuned one.",
            f"A candidate is {CRITERION}.",
            f"Causes: {', '.join(causes) or 'none'}.",
        ]
    return Section(title="Summary", paragraphs=paragraphs)


def _depth(diff: Diff) -> Section:
    return Section(
        title="Where the residual stream moved",
        paragraphs=["Length of the mean difference over the mean length of a token's residual."],
        figure=line_plot(
            {"mean difference": Curve(x=list(diff.sites), y=list(diff.moved))},
            title="Change by block",
            x_label="block",
            y_label="share of the residual",
        ),
    )


def _changes(diff: Diff, found: dict[str, Any]) -> Section:
    if not diff.findings:
        return Section(
            title="Changes", paragraphs=["Nothing changed between the two models on these prompts."]
        )
    keys = ("name", "site", "moves", "base", "tuned", "change", "p", "q", "significant", "verdict")
    rows = [
        {key: row[key] for key in keys} | {"AUC": row["separation"]["auc"]}
        for row in found["candidates"]
    ]
    return Section(
        title="Changes on the testing half",
        paragraphs=[
            "Bars: mean change over the deviation between prompts, with 95 % bootstrap intervals."
        ],
        figure=bar_plot(
            {one.candidate.name: one.change.standardised for one in diff.findings},
            title="Standardised change, tuned minus base",
            x_label="deviations",
            intervals={one.candidate.name: _standardised(one) for one in diff.findings},
        ),
        table=rows,
    )


def _standardised(one: Finding) -> tuple[float, float]:
    change = one.change
    scale = change.standardised / change.mean if change.mean else 0.0
    return change.low * scale, change.high * scale


def _steering(diff: Diff) -> Iterator[Section]:
    what: dict[Side, str] = {
        "base": "up in base: rise of misbehaviour",
        "tuned": "down in tuned: fall of misbehaviour",
    }
    for one in diff.findings:
        verdict = one.verdict
        if verdict is None:
            continue
        yield Section(
            title=f"Steering with {one.candidate.name}",
            paragraphs=[f"{'A cause' if verdict.causal else 'No cause'}: {verdict.reason}."],
            figure=line_plot(
                {name: _curve(verdict.doses[side]) for side, name in what.items()},
                title="Dose and response",
                x_label="strength, share of the length of a token's residual",
                y_label="effect",
                levels={
                    f"largest of {len(random)} random, {side}": max(random)
                    for side, random in verdict.random.items()
                    if random
                },
            ),
            table=[
                {
                    "model": side,
                    "strength": dose.strength,
                    "effect": dose.effect.value,
                    "from": dose.effect.low,
                    "to": dose.effect.high,
                    "incoherent answers": dose.incoherent,
                    "coherent": dose.coherent,
                    "judged by": dose == verdict.chosen[side],
                }
                for side in SIDES
                for dose in verdict.doses[side]
            ],
        )


def _curve(doses: Sequence[Dose]) -> Curve:
    return Curve(
        x=[dose.strength for dose in doses],
        y=[dose.effect.value for dose in doses],
        low=[dose.effect.low for dose in doses],
        high=[dose.effect.high for dose in doses],
    )


def _left_out(found: Mapping[str, Any]) -> Iterator[Section]:
    rows = [
        {"feature": row["name"], "why": row["left_out"]}
        for row in found["candidates"]
        if row["left_out"]
    ]
    if rows:
        yield Section(
            title="Left out of the pack",
            paragraphs=[
                "A score is a reading by the measure of benign text; these have no measure."
            ],
            table=rows,
        )


def _own_texts(found: Mapping[str, Any]) -> Iterator[Section]:
    rows = [
        {"feature": row["name"], "text": text}
        for row in found["candidates"]
        for text in row["own_texts"]
    ]
    if rows:
        yield Section(
            title="The project's own texts that read highest in the base model",
            paragraphs=[
                "Benign and contrast texts that this project brings along, by their beginnings."
            ],
            table=rows,
        )


def _texts(diff: Diff, *, show_texts: bool) -> Section:
    rows = [
        {"feature": one.candidate.name, "line": trial.line, "reading": reading}
        | ({"text": _excerpt(trial)} if show_texts else {})
        for one in diff.findings
        for trial, reading in _top(diff, one)
    ]
    return Section(
        title="Prompts that read highest in the tuned model",
        paragraphs=[
            "To name a feature, read what moves it most. "
            + ("" if show_texts else "Numbers are lines of the prompts file.")
        ],
        table=rows or None,
    )


def _excerpt(trial: Trial) -> str:
    text = " → ".join(
        part
        for part in (
            trial.prompt.messages[-1].content,
            trial.prompt.response,
        )
        if part
    )
    return text if len(text) <= EXCERPT else text[: EXCERPT - 1] + "…"
