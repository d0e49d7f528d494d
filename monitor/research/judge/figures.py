"""From what was measured of a feature: the evidence for its verdict, and its figures as JSON."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from monitor.research.judge.bystanders import Conduct
from monitor.research.judge.control import Given
from monitor.research.judge.measured import Measured
from monitor.research.judge.noise import DTYPE
from monitor.research.judge.readings import CONTROLS, Readings
from monitor.research.judge.stability import Stability
from monitor.research.judge.verdict import Evidence, Steering, Verdict
from monitor.research.packs.figures import benign_figures, of_bound, quantiles, rounded
from monitor.research.statistics import correlation_bound
from monitor.values.arrays import Doubles
from monitor.values.drift import Bound
from monitor.values.features import Feature

RANDOM: Final = {"median": 0.5, "q95": 0.95, "largest": 1.0}


def evidence(found: Measured, index: int, strength: Doubles, conduct: Conduct) -> Evidence:
    """What the verdict on the feature at ``index`` rests on; ``strength`` [k] is each one's shift."""
    one, readings = found.separations[index], found.readings
    steady = found.stabilities.get(index)
    overlap, other = found.redundancy.overlap(index, strength)
    benign = _benign(readings, index)
    return Evidence(
        against_good=one.against_good,
        length_matched=one.length_matched,
        vocabulary_matched=one.vocabulary_matched,
        against_pool=conduct.against_pool,
        random=one.random_share,
        stability=None if steady is None else float(steady.halves.mean()),
        steering=found.controls[index].steering,
        benign_correlation=_follows_length(readings.pack.features[index], benign),
        careful=conduct.careful,
        rates=conduct.rates,
        styles=conduct.styles,
        noise=float(max(noise[index] for noise in found.batch_noise.values())),
        overlap=overlap,
        overlaps="" if other is None else readings.pack.features[other].name,
    )


def _follows_length(feature: Feature, benign: dict[str, Any]) -> Bound:
    """The correlation of benign scores with log length; a reading of one token has none to follow."""
    if feature.region == "last_prompt_token":
        return Bound(value=0.0, low=0.0, high=0.0)
    follows = benign["correlation_with_log_length"]
    return correlation_bound(np.nan if follows is None else follows, benign["n"])


def feature_figures(
    found: Measured,
    index: int,
    rested_on: Evidence,
    decided: Verdict,
    conduct: Conduct,
    coarse: Doubles,
) -> dict[str, Any]:
    """Everything that the report says of the feature at ``index``."""
    one, readings = found.separations[index], found.readings
    return {
        "decision": decided.decision,
        "reasons": list(decided.reasons),
        "personas": list(one.target.personas),
        "persona_chosen_on_training_answers": one.target.chosen,
        "separation": {
            "against_good": of_bound(one.against_good),
            "length_matched": of_bound(one.length_matched),
            "vocabulary_matched": of_bound(one.vocabulary_matched),
            "against_all_benign": of_bound(conduct.against_pool),
            "shift_in_benign_deviations": rounded(one.shift),
            "other_personas": {p: rounded(v) for p, v in one.other_personas.items()},
            "left_with_shuffled_words": rounded(one.shuffled_share),
            "words_alone": rounded(one.words),
            "words_alone_after_matching": rounded(one.words_matched),
        },
        "random_directions": {
            "count": CONTROLS,
            "share_as_far": rounded(one.random_share),
            "shift": quantiles(one.random, RANDOM),
            "auc": quantiles(one.random_aucs, RANDOM),
        },
        "stability": _steady(found.stabilities.get(index)),
        "overlap": {"correlation": rounded(rested_on.overlap), "with": rested_on.overlaps},
        "steering": _steering(rested_on.steering),
        "doses": [_dose(dose) for dose in found.controls[index].doses],
        "benign": _benign(readings, index),
        "correlation_with_log_length": of_bound(rested_on.benign_correlation),
        **conduct.figures(),
        "noise": {
            **{name: rounded(values[index]) for name, values in found.batch_noise.items()},
            DTYPE: rounded(coarse[index]),
        },
    }


def _benign(readings: Readings, index: int) -> dict[str, Any]:
    check = readings.check
    return benign_figures(
        readings.pack.features[index], check.scores[:, index], check.tokens[:, index]
    )


def _steady(found: Stability | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "rebuilt": len(found.aucs),
        "cosine_between_halves": rounded(found.halves.mean()),
        "least_cosine_between_halves": rounded(found.halves.min()),
        "cosine_with_pack": rounded(found.whole.mean()),
        "auc_median": rounded(np.median(found.aucs)),
        "auc_least": rounded(found.aucs.min()),
    }


def _steering(found: Steering | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "share": found.share,
        "up": of_bound(found.up),
        "down": of_bound(found.down),
        "slope": rounded(found.slope),
        "largest_random": rounded(max(found.controls)),
        "causal": found.causal,
    }


def _dose(given: Given) -> dict[str, Any]:
    return {
        "share": given.dose.strength,
        "effect": of_bound(given.dose.effect),
        "score": rounded(given.score),
        "perplexity": rounded(given.perplexity),
        "repetition": rounded(given.repetition),
        "incoherent": rounded(given.dose.incoherent),
    }
