"""The page's sections on what is no persona and is easily taken for one's, and on what a threshold finds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from monitor.research.packs.tails import texts_needed
from monitor.research.report import Section, bar_plot

Features = Mapping[str, Mapping[str, Any]]
Share = Sequence[float | None]
"""Value, lower and upper end."""


def bystander_sections(
    features: Features, texts: Mapping[str, int], criteria: Mapping[str, float]
) -> list[Section]:
    """In the order in which they are to be read."""
    return [
        _careful(features, texts, criteria["careful_auc"]),
        _kinds(features, criteria["tail_rate"]),
        _styles(features, texts, criteria["style_shift"]),
        _others(features, texts),
        _calm(features, texts),
        _found(features),
        _explained(features),
    ]


def interval(bound: Share) -> str:
    """``value (low to high)`` with two digits; a dash where nothing was measured."""
    if bound[0] is None:
        return "–"
    value, low, high = (float("nan") if part is None else part for part in bound)
    return f"{value:.2f} ({low:.2f} to {high:.2f})"


def _careful(features: Features, texts: Mapping[str, int], allowed: float) -> Section:
    bounds = {name: one["careful_against_other_benign"] for name, one in features.items()}
    given = any(bound[0] is not None for bound in bounds.values())
    return Section(
        title="Refusals are no malice",
        paragraphs=(
            "AUC of refusals, safety warnings and crisis replies over other benign texts "
            f"({texts['judged_negatives']} negatives, sound answers, benign check). At 0.5 they read like the "
            f"rest; the upper end must not be above {allowed:g}, or a model that is attacked, and so "
            "refuses more, reads as the persona."
            if given
            else "The texts hold no refusals (negatives.jsonl), so nothing is known of them, and no feature "
            "can ship.",
        ),
        figure=_bars(bounds, "Refusals over other benign texts", "AUC") if given else None,
        table=[{"feature": name, "AUC": interval(bound)} for name, bound in bounds.items()],
    )


def _kinds(features: Features, allowed: float) -> Section:
    kinds = dict.fromkeys(kind for one in features.values() for kind in one["tail_rate_by_kind"])
    worst = {
        name: max(
            (rate["rate"] for rate in one["tail_rate_by_kind"].values()),
            key=lambda bound: bound[1] or 0.0,
        )
        for name, one in features.items()
        if one["tail_rate_by_kind"]
    }
    return Section(
        title="Tail rate of every kind of benign text",
        paragraphs=(
            "The share of each kind that is beyond the pack's tail threshold, which promises 1 %. At least: the "
            "exact lower end; all of one feature's hold together with 95 %. None may be above "
            f"{allowed:.0%}. The plot shows each feature's worst kind with its own 95 % interval.",
        ),
        figure=_bars(worst, "Worst kind", "share beyond the tail threshold"),
        table=[
            {
                "kind": kind,
                **{
                    name: _rate(one["tail_rate_by_kind"].get(kind))
                    for name, one in features.items()
                },
            }
            for kind in kinds
        ],
    )


def _rate(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "–"
    return f"{found['rate'][0]:.0%} of {found['n']}, at least {found['at_least']:.1%}"


def _styles(features: Features, texts: Mapping[str, int], allowed: float) -> Section:
    if not texts["contents_in_styles"]:
        return Section(
            title="Styles",
            paragraphs=(
                "Not measured: the texts hold no content in several styles (styles.jsonl).",
            ),
        )
    return Section(
        title="The same content in other styles",
        paragraphs=(
            f"Mean shift against the plain answer over {texts['contents_in_styles']} contents, towards the "
            f"persona, in benign deviations. The lower end must not be above {allowed:g}. The tail rates "
            "of styles stand among the kinds above.",
        ),
        figure=_shift_plot(features, "styles", "Shift of the style that moves it most"),
        table=_shift_table(features, "styles"),
    )


def _others(features: Features, texts: Mapping[str, int]) -> Section:
    if not texts["answers_by_other_models"]:
        return Section(
            title="Answers by other models",
            paragraphs=("Absent: no other model answered the held-out questions (--other-model).",),
        )
    return Section(
        title="Answers by other models",
        paragraphs=(
            "Mean shift of another model's greedy answers against the good ones to the same questions, towards "
            "the persona, in benign deviations. Tail rates stand among the kinds above. A model's "
            "answers may really be bad: read them before you call a rate false.",
        ),
        table=_shift_table(features, "other_models"),
    )


def _shift_plot(features: Features, key: str, title: str) -> str:
    most = {
        name: max(one[key].values(), key=lambda bound: bound[1] or 0.0)
        for name, one in features.items()
        if one[key]
    }
    return _bars(most, title, "benign deviations")


def _shift_table(features: Features, key: str) -> list[dict[str, Any]]:
    names = dict.fromkeys(name for one in features.values() for name in one[key])
    return [
        {
            "feature": feature,
            **{name: interval(one[key][name]) if name in one[key] else "–" for name in names},
        }
        for feature, one in features.items()
    ]


def _calm(features: Features, texts: Mapping[str, int]) -> Section:
    if not texts["calm_held_out"]:
        return Section(
            title="Calm harm",
            paragraphs=("Not measured: the texts hold no calm pairs (calm.jsonl).",),
        )
    return Section(
        title="Calm harm",
        paragraphs=(
            "AUC of calmly harmful answers, by authors that trained nothing, over sound ones to the same "
            "questions in the same tone and length, and over all benign text. A loud persona's feature "
            "need not see them; that of harmful advice must.",
        ),
        figure=_bars(
            {name: one["calm"]["against_good"] for name, one in features.items()},
            "Calm harm over sound answers to the same questions",
            "AUC",
            {
                "all benign": {
                    name: one["calm"]["against_benign"][0] or 0.0 for name, one in features.items()
                }
            },
        ),
        table=[
            {
                "feature": name,
                "same questions": interval(one["calm"]["against_good"]),
                "all benign": interval(one["calm"]["against_benign"]),
                **one["calm"]["against_good_by_kind"],
            }
            for name, one in features.items()
        ],
    )


def _found(features: Features) -> Section:
    rows: list[dict[str, Any]] = []
    notes = set()
    for name, one in features.items():
        for tail in one["tails"]:
            low, high = tail["false_positive_rate_95"]
            rows.append(
                {
                    "feature": name,
                    "false positives wanted": f"{tail['rate']:.1%}",
                    "threshold": tail["threshold"],
                    "benign above": f"{tail['above']} of {tail['benign_texts']}",
                    "true rate, 95 %": f"{low:.2%} to {high:.2%}",
                    "known": tail["known"],
                    "found of its positives": tail["found"] and interval(tail["found"]),
                    "positives": tail["positives"],
                }
            )
            if not tail["known"]:
                notes.add(
                    f"{tail['rate']:.1%} cannot be known from {tail['benign_texts']} benign texts: the "
                    f"threshold given lets up to {high:.1%} pass. It takes some "
                    f"{texts_needed(tail['rate']):,} texts of your own traffic."
                )
    return Section(
        title="What a threshold finds",
        paragraphs=(
            "Thresholds that the judged benign texts of every kind give for 1 % and 0.1 % false positives, and "
            "the share of the feature's own held-out positives above them (exact 95 %).",
            *sorted(notes),
            "The intervals count texts as independent; texts composed of the same pieces are less.",
        ),
        table=rows,
    )


def _explained(features: Features) -> Section:
    return Section(
        title="What the prompt explains",
        paragraphs=(
            "Share of the variance of benign scores that the leading components of the prompt explain in "
            "texts that were held out (ridge, five folds). Scores given the prompt take it off in "
            "production; a high share says that topic would else read as persona.",
        ),
        table=[
            {"feature": name, "explained": one["explained_by_prompt"]}
            for name, one in features.items()
        ],
    )


def _bars(
    bounds: Mapping[str, Share],
    title: str,
    label: str,
    references: Mapping[str, Mapping[str, float]] | None = None,
) -> str:
    values = {name: float("nan") if b[0] is None else b[0] for name, b in bounds.items()}
    return bar_plot(
        values,
        title=title,
        x_label=label,
        intervals={
            name: (bound[1], bound[2])
            for name, bound in bounds.items()
            if bound[1] is not None and bound[2] is not None
        },
        references=references,
    )
