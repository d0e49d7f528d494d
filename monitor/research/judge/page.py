"""The report of `monitor.research.judge.run` as a page for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from monitor.research.judge.noise import DTYPE
from monitor.research.judge.page_bystanders import bystander_sections, interval
from monitor.research.report import Curve, Section, bar_plot, heat_plot, line_plot, page

MOST_CURVES: Final = 12
"""More directions than this are left out of the plots of steering; the table has them all."""

Features = Mapping[str, Mapping[str, Any]]


def judge_page(name: str, report: Mapping[str, Any]) -> str:
    """One HTML document for the ``report`` of a pack called ``name``."""
    features: Features = report["features"]
    return page(
        f"Does {name} deserve to ship? {report['decision']}",
        [
            _verdicts(features),
            _separation(features, report["texts"]),
            _shift(features),
            _stability(features),
            _redundancy(features, report.get("redundancy")),
            *_steering(features, report["doses"]),
            *bystander_sections(features, report["texts"], report["criteria"]),
            _noise(features),
            _method(report),
        ],
        subtitle=f"pack {report['pack'][:12]} on {report['model']}, seed {report['seed']}"
        + (", quick" if report["quick"] else ""),
    )


def verdict_rows(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The verdicts as rows of a table."""
    return [
        {
            "feature": name,
            "verdict": one["decision"],
            "AUC against good": interval(one["separation"]["against_good"]),
            "same length": interval(one["separation"]["length_matched"]),
            "same vocabulary": interval(one["separation"]["vocabulary_matched"]),
            "all benign": interval(one["separation"]["against_all_benign"]),
            "refusals": interval(one["careful_against_other_benign"]),
            "calm": interval(one["calm"]["against_good"]),
            "shift": one["separation"]["shift_in_benign_deviations"],
            "random q95": one["random_directions"]["shift"]["q95"],
            "stability": one["stability"] and one["stability"]["cosine_between_halves"],
            "steering": one["steering"] and one["steering"]["slope"],
            "random steering": one["steering"] and one["steering"]["largest_random"],
            "noise": _shape_noise(one),
        }
        for name, one in report["features"].items()
    ]


def _verdicts(features: Features) -> Section:
    return Section(
        title="Verdicts",
        paragraphs=(
            "ship: may page someone, as far as traffic resembles these texts. watch-only: reads "
            "something, but a claim behind an alert is not shown. reject: does not read the persona.",
        ),
        table=[
            {
                "feature": name,
                "verdict": one["decision"],
                "held to": ", ".join(one["personas"])
                + (" (chosen)" if one["persona_chosen_on_training_answers"] else ""),
                "why it is not better": "; ".join(one["reasons"]),
            }
            for name, one in features.items()
        ],
    )


def _separation(features: Features, texts: Mapping[str, int]) -> Section:
    return Section(
        title="Separation on held-out questions",
        paragraphs=(
            f"AUC of the persona's answers to {texts['held_out_questions']} questions against good "
            "answers to the same questions, with its 95 % interval. The lower end is never above what "
            "so many questions can show. Diamonds: against benign texts of the same length, of the same "
            "vocabulary, and of every kind (refusals, fiction, code, sound answers …).",
            "Words alone is what a bag of words makes of the same answers; after matching it should "
            "be near 0.5, and what it is above that the match has not removed. Shuffled is how much of "
            "the feature's mean difference is left when the words of every answer are shuffled.",
        ),
        figure=bar_plot(
            _column(features, "against_good", 0),
            title="Held-out separation",
            x_label="AUC",
            intervals={
                name: (one["separation"]["against_good"][1], one["separation"]["against_good"][2])
                for name, one in features.items()
            },
            references={
                "same length": _column(features, "length_matched", 0),
                "same vocabulary": _column(features, "vocabulary_matched", 0),
                "all benign": _column(features, "against_all_benign", 0),
            },
        ),
        table=[
            {
                "feature": name,
                "against good": interval(one["separation"]["against_good"]),
                "same length": interval(one["separation"]["length_matched"]),
                "same vocabulary": interval(one["separation"]["vocabulary_matched"]),
                "all benign": interval(one["separation"]["against_all_benign"]),
                "words alone": one["separation"]["words_alone"],
                "words after matching": one["separation"]["words_alone_after_matching"],
                "shuffled": one["separation"]["left_with_shuffled_words"],
                "other personas": _listed(one["separation"]["other_personas"]),
            }
            for name, one in features.items()
        ],
    )


def _shift(features: Features) -> Section:
    return Section(
        title="Against random directions",
        paragraphs=(
            "How far the persona moves the reading, in deviations of benign text, beside random "
            "directions read in the same way, each with the sign that suits it best on the training "
            "answers. Random directions separate loud contrasts too; what a feature adds is distance.",
        ),
        figure=bar_plot(
            {n: one["separation"]["shift_in_benign_deviations"] for n, one in features.items()},
            title="Shift on held-out answers",
            x_label="benign deviations",
            references={
                "random, 95 % below": {
                    n: one["random_directions"]["shift"]["q95"] for n, one in features.items()
                },
                "random, largest": {
                    n: one["random_directions"]["shift"]["largest"] for n, one in features.items()
                },
            },
        ),
        table=[
            {
                "feature": name,
                "shift": one["separation"]["shift_in_benign_deviations"],
                "share as far": one["random_directions"]["share_as_far"],
                **{f"shift, {k}": v for k, v in one["random_directions"]["shift"].items()},
                **{f"AUC, {k}": v for k, v in one["random_directions"]["auc"].items()},
            }
            for name, one in features.items()
        ],
    )


def _stability(features: Features) -> Section:
    rows = [
        {"feature": name, **one["stability"]} for name, one in features.items() if one["stability"]
    ]
    left_out = len(features) - len(rows)
    notes = ["Directions rebuilt from random halves of the training questions."] if rows else []
    if left_out:
        notes.append(
            f"Not applicable to {left_out} of {len(features)} features: they were not built by "
            "contrast from these texts, so there is nothing to rebuild them from."
        )
    return Section(title="Stability", paragraphs=notes, table=rows)


def _redundancy(features: Features, matrices: Mapping[str, Any] | None) -> Section:
    return Section(
        title="Redundancy",
        paragraphs=(
            "Correlation with the nearest feature that separates better; the smaller one of benign "
            "texts and all judged texts.",
        ),
        figure=heat_plot(
            list(features),
            [[value or 0.0 for value in row] for row in matrices["benign"]],
            title="Scores on benign texts",
            legend="correlation",
        )
        if matrices
        else None,
        table=[
            {
                "feature": name,
                "nearest that is better": one["overlap"]["with"] or None,
                "correlation": one["overlap"]["correlation"] if one["overlap"]["with"] else None,
            }
            for name, one in features.items()
        ],
    )


Doses = Sequence[Mapping[str, Any]]


def _steering(features: Features, plan: Mapping[str, Any]) -> list[Section]:
    # Features of one direction have the same effects; one curve stands for them.
    distinct: dict[str, Doses] = {}
    for name, one in features.items():
        effects = [dose["effect"] for dose in one["doses"]]
        if effects not in [[dose["effect"] for dose in doses] for doses in distinct.values()]:
            distinct[name] = one["doses"]
    shown = dict(list(distinct.items())[:MOST_CURVES])
    return [
        Section(
            title="Steering: does it control what it reads?",
            paragraphs=(
                "Change of log P(persona's answer) - log P(good answer) on held-out questions. The "
                "verdict looks at the largest dose that leaves both signs coherent, and asks for more "
                f"than {plan['controls']} random directions of equal norm do there.",
                "A latent is steered along its encoder's row, since a pack does not hold the decoder.",
            ),
            figure=_dose_plot(
                {
                    name: Curve(
                        x=[dose["share"] for dose in doses],
                        y=[dose["effect"][0] for dose in doses],
                        low=[dose["effect"][1] for dose in doses],
                        high=[dose["effect"][2] for dose in doses],
                    )
                    for name, doses in shown.items()
                },
                "Preference for the persona's answers",
                "change, nats per token",
            ),
            table=[
                {"feature": name, **_steered(one["steering"])} for name, one in features.items()
            ],
        ),
        Section(
            title="Steering: what the model then says",
            paragraphs=(
                f"{plan['answers']} greedy answers of {plan['tokens']} tokens, read by the untouched "
                "model.",
            ),
            figure=_answer_plot(shown, "score", "Persona in the answers", "score"),
        ),
        Section(
            title="Steering: incoherence",
            figure=_answer_plot(
                shown, "perplexity", "Perplexity of the answers (median)", "perplexity"
            ),
        ),
        Section(
            title="Steering: repetition",
            figure=_answer_plot(shown, "repetition", "Repeated word trigrams", "share"),
            table=[
                {"feature": name, **dose, "effect": interval(dose["effect"])}
                for name, doses in distinct.items()
                for dose in doses
            ],
        ),
    ]


def _steered(found: Mapping[str, Any] | None) -> dict[str, Any]:
    if found is None:
        columns = ("up", "down", "slope", "largest random", "controls")
        return {"at dose": "none coherent", **dict.fromkeys(columns)}
    return {
        "at dose": found["share"],
        "up": interval(found["up"]),
        "down": interval(found["down"]),
        "slope": found["slope"],
        "largest random": found["largest_random"],
        "controls": found["causal"],
    }


def _answer_plot(shown: Mapping[str, Doses], key: str, title: str, label: str) -> str:
    curves = {
        name: Curve(
            x=[dose["share"] for dose in doses],
            y=[float("nan") if dose[key] is None else dose[key] for dose in doses],
        )
        for name, doses in shown.items()
    }
    return _dose_plot(curves, title, label)


def _dose_plot(curves: Mapping[str, Curve], title: str, label: str) -> str:
    return line_plot(
        curves,
        title=title,
        x_label="dose: share of the residual's typical length, above zero towards the persona",
        y_label=label,
    )


def _noise(features: Features) -> Section:
    return Section(
        title="Noise floor",
        paragraphs=(
            "How far the same texts move when only the instrument changes, in calibration deviations: "
            f"the largest change for batch shapes, the root mean square for {DTYPE}. Scores of one "
            "dtype are compared with a baseline of the same dtype, so the second is no false alarm, "
            "but the price of mixing them.",
        ),
        figure=bar_plot(
            {name: one["noise"][DTYPE] or 0.0 for name, one in features.items()},
            title="Noise floor",
            x_label="calibration deviations",
            references={
                "batch shape (largest)": {n: _shape_noise(one) for n, one in features.items()}
            },
        ),
        table=[{"feature": name, **one["noise"]} for name, one in features.items()],
    )


def _method(report: Mapping[str, Any]) -> Section:
    instrument = report["instrument"]
    counts = ", ".join(f"{n} {what.replace('_', ' ')}" for what, n in report["texts"].items())
    libraries = ", ".join(f"{k} {v}" for k, v in instrument["libraries"].items())
    return Section(
        title="How it was judged",
        paragraphs=(
            f"Texts {report['texts_sha256'][:12]}: {counts}. Held-out and check texts had no part in "
            "directions or calibration of a pack that was built from these texts; of another pack "
            "nothing here is known.",
            f"Engine {instrument['replay']['engine']}, {libraries}.",
        ),
        table=[{"criterion": k, "value": v} for k, v in report["criteria"].items()],
    )


def _column(features: Features, key: str, part: int) -> dict[str, float]:
    found = {name: one["separation"][key][part] for name, one in features.items()}
    return {name: float("nan") if value is None else value for name, value in found.items()}


def _shape_noise(one: Mapping[str, Any]) -> float:
    return float(max(v or 0.0 for k, v in one["noise"].items() if k != DTYPE))


def _listed(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in values.items())
