"""What changed: what is asked, the served model, or our own instrument? A verdict over witnesses. Pure.

Each witness is a measured ground that says of itself whether it moved, stayed within a bound that would
have shown a change, or cannot tell. `verdict` weighs them; the names that records give the served model
are one of them, and no judge.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from scipy.special import ndtri

from monitor.drift.alternatives import Nearest
from monitor.drift.identity import standing
from monitor.drift.sequential import MEAN_MARGIN
from monitor.values.drift import Bound, Drift
from monitor.values.scores import CanaryRun
from monitor.values.surprise import IdentityState, Tally
from monitor.values.witnesses import UNLABELLED, Cause, Verdict, Witness

ON_ITS_WAY: Final = 0.5
"""Identity does not vouch from this share of the limit (both are logs) on: a small share of answers from another
model hardly moves their mean, and whatever drifts for it would be put down to the users."""


def verdict(witnesses: Sequence[Witness]) -> Verdict:
    """The cause, by the first line that applies, with the witnesses that were heard.

    1. the canaries are absent: `Cause.UNKNOWN`. Nothing vouches for the instrument.
    2. the canaries moved: `Cause.INSTRUMENT_SHIFT`. The copy, its device or its numerics changed.
    3. the answers are the copy's own: `Cause.INPUT_SHIFT`. No served model had a part in them.
    4. identity moved: `Cause.MODEL_SHIFT`. The served model does not answer as the copy would.
    5. the twin moved: `Cause.MODEL_SHIFT`. Served answers read otherwise than the copy's own to the same
       prompts.
    6. the server's canaries moved: `Cause.MODEL_SHIFT`. Asked directly, it answers otherwise.
    7. the twin is steady: `Cause.INPUT_SHIFT`, whatever the labels say: of a change of this size it would have
       shown the model's part.
    8. identity is steady and the prompt side moved: `Cause.INPUT_SHIFT`. Neither would do alone. Answers may read
       otherwise by whole deviations while their mean surprise stays near 0: a system prompt or a template that no record
       tells has the same weights say other things, each of which the copy finds likely.
    9. the labels moved, and identity is not steady: `Cause.MODEL_SHIFT`, on the records' word alone: what was asked
       directly need not be what they name. A new name for the same model is no change of the model.
    10. the server's canaries are steady: `Cause.INPUT_SHIFT`.
    11. the prompt side moved: `Cause.INPUT_SHIFT`.
    12. identity is steady or unsure, or the twin or the server's canaries are unsure: `Cause.UNDECIDED`.
    13. else `Cause.UNKNOWN`: labels that stay the same do not vouch for what stands behind them.
    """
    found = {witness.name: witness.finding for witness in witnesses}
    same_weights = found.get("identity") == "steady"
    rules = (
        (found.get("canaries", "absent") == "absent", Cause.UNKNOWN),
        (found.get("canaries") == "moved", Cause.INSTRUMENT_SHIFT),
        (found.get("own_answers") == "steady", Cause.INPUT_SHIFT),
        (found.get("identity") == "moved", Cause.MODEL_SHIFT),
        (found.get("twin") == "moved", Cause.MODEL_SHIFT),
        (found.get("server_canaries") == "moved", Cause.MODEL_SHIFT),
        (found.get("twin") == "steady", Cause.INPUT_SHIFT),
        (same_weights and found.get("prompt_side") == "moved", Cause.INPUT_SHIFT),
        (found.get("labels") == "moved" and not same_weights, Cause.MODEL_SHIFT),
        (found.get("server_canaries") == "steady", Cause.INPUT_SHIFT),
        (found.get("prompt_side") == "moved", Cause.INPUT_SHIFT),
        (found.get("identity") in ("steady", "unsure"), Cause.UNDECIDED),
        (found.get("twin") == "unsure", Cause.UNDECIDED),
        (found.get("server_canaries") == "unsure", Cause.UNDECIDED),
    )
    cause = next((cause for applies, cause in rules if applies), Cause.UNKNOWN)
    return Verdict(cause=cause, witnesses=tuple(witnesses))


def canaries(runs: Sequence[CanaryRun]) -> Witness:
    """``runs`` are the recent ones of the workers that are alive."""
    if not runs:
        return Witness(
            name="canaries",
            finding="absent",
            told="no live worker replayed its canaries lately",
        )
    largest = max(run.largest_deviation for run in runs)
    figures = {
        "workers": len(runs),
        "largest_deviation": _figure(largest),
        "bound": max(run.noise_floor for run in runs),
    }
    if all(run.reproduced for run in runs):
        told = "the canaries read as recorded"
        return Witness(name="canaries", finding="steady", told=told, figures=figures)
    told = f"the canaries read otherwise than recorded, by up to {largest:.3g} deviations"
    return Witness(name="canaries", finding="moved", told=told, figures=figures)


def own_answers() -> Witness:
    """Of the segment `generated`."""
    told = "the copy gave these answers itself"
    return Witness(name="own_answers", finding="steady", told=told)


def labels(served: Collection[str], served_before: Collection[str]) -> Witness:
    """The served models that records name (``model@revision``) now and in the baseline's interval."""
    known, now = set(served_before) - {UNLABELLED}, set(served) - {UNLABELLED}
    new = sorted(now - known)
    figures = {"served": sorted(now), "baseline": sorted(known)}
    if not known or not now:
        told = "the records do not name the served model"
        return Witness(name="labels", finding="absent", told=told, figures=figures)
    if new:
        told = f"the records name a served model that the baseline's did not ({', '.join(new)})"
        return Witness(name="labels", finding="moved", told=told, figures=figures)
    told = "the records name the same served model, which a model replaced in silence would too"
    return Witness(name="labels", finding="steady", told=told, figures=figures)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """How far one reading of what was asked is from its baseline, in deviations."""

    feature: str
    shift: Bound
    n: int
    expected: bool
    """Of an answer's score: what the prompts let expect of it. Else the feature reads the prompt itself."""

    @property
    def told(self) -> str:
        moved = f"moved by {self.shift.value:+.2f} SD"
        if self.expected:
            return f"what the prompts let expect of {self.feature} {moved}"
        return f"{self.feature} on the prompt side {moved}"


def asked(drifts: Iterable[Drift], of_prompt: Collection[str]) -> Iterator[Asked]:
    """What ``drifts`` of one window and segment say of its prompts; ``of_prompt`` names what reads them alone."""
    for drift in drifts:
        if drift.feature in of_prompt:
            yield Asked(feature=drift.feature, shift=drift.shift, n=drift.n, expected=False)
        elif drift.adjusted and math.isfinite(drift.expected_shift.low):
            shift = drift.expected_shift
            yield Asked(feature=drift.feature, shift=shift, n=drift.n, expected=True)


def prompt_side(asked: Collection[Asked], confidence: float) -> Witness:
    """Moved: the mean of one surely is off its baseline's, and by more than `MEAN_MARGIN` deviations as far as is known.

    Each shift has bounds at ``confidence``; here they are widened to hold for all readings at once (Bonferroni).
    """
    if not asked:
        told = "nothing is known of the prompt side here"
        return Witness(name="prompt_side", finding="absent", told=told)
    risk = (1.0 - confidence) / 2.0
    wider = float(ndtri(risk / len(asked)) / ndtri(risk))
    together = [replace(one, shift=_widened(one.shift, wider)) for one in asked]
    far = [one for one in together if abs(one.shift.value) > MEAN_MARGIN]
    furthest = max(far or together, key=lambda one: _least(one.shift))
    figures = {
        "feature": furthest.feature,
        "expected": furthest.expected,
        "shift": _bound(furthest.shift),
        "bound": MEAN_MARGIN,
        "n": furthest.n,
    }
    if far and _least(furthest.shift) > 0.0:
        return Witness(name="prompt_side", finding="moved", told=furthest.told, figures=figures)
    widest = max(max(abs(one.shift.low), abs(one.shift.high)) for one in together)
    if widest < 3 * MEAN_MARGIN:
        told = f"no reading of the prompts moved by more than {widest:.2f} SD"
        return Witness(name="prompt_side", finding="steady", told=told, figures=figures)
    told = "no reading of the prompts surely moved"
    return Witness(name="prompt_side", finding="unsure", told=told, figures=figures)


def identity(
    states: Sequence[IdentityState],
    tally: Tally,
    *,
    prompts: int,
    confidence: float,
    within: float,
    nearest: Nearest | None = None,
) -> Witness:
    """Whether the served model answers as the copy would.

    ``states`` are the running tests of a segment, for each served model one and one for each alternative; ``tally`` is
    of the answers of the window, among its ``prompts``. ``within`` in nats a token, see `monitor.drift.identity.standing`.
    ``nearest`` is the registered alternative whose own test reached its limit: that refutes the copy as well.
    """
    found = standing(tally, confidence=confidence, within=within)
    strongest = _strongest(state for state in states if not state.alternative)
    figures = {
        "evidence": _figure(strongest.evidence) if strongest else None,
        "limit": _figure(strongest.limit) if strongest else None,
        "served": strongest.served if strongest else None,
        "answers": tally.n,
        "left_out": tally.left_out,
        "tokens": tally.tokens + tally.greedy_tokens,
        "surprise": _bound(found.surprise) if found.surprise else None,
        "given_away": _bound(found.given_away) if found.given_away else None,
        "within": within,
        "off_support": tally.off_support,
        **({"looks_like": nearest.figures()} if nearest else {}),
    }
    crossed = strongest if strongest is not None and strongest.crossed else nearest
    if crossed is not None:
        name = f" of {crossed.served}" if crossed.served != UNLABELLED else ""
        told = (
            f"answers{name} are not what the copy would say: evidence"
            f" {crossed.evidence:.1f}, limit {crossed.limit:.1f}"
        )
        if nearest is not None:
            told += f"; {nearest.told}"
        return Witness(name="identity", finding="moved", told=told, figures=figures)
    coming = _strongest(states)
    if coming is not None and coming.evidence >= ON_ITS_WAY * coming.limit:
        told = (
            "evidence that another model gave some of the answers is on its way:"
            f" {coming.evidence:.1f}, limit {coming.limit:.1f}"
        )
        return Witness(name="identity", finding="unsure", told=told, figures=figures)
    if found.vouched:
        told = f"{tally.n} answers are what the copy would say: {_surprise(found.surprise, within)}"
        return Witness(name="identity", finding="steady", told=told, figures=figures)
    told, needed = "no answer of the window was weighed", None
    if tally.n:
        told = f"{tally.n} answers do not tell whether the copy would say them"
    if tally.n and found.needed is not None:
        needed = math.ceil(found.needed * max(prompts, tally.n) / tally.n)
        told += f", about {needed} more prompts would decide"
    elif found.surprise is not None:
        told += f": {_surprise(found.surprise, within)}"
    return Witness(name="identity", finding="unsure", told=told, figures=figures, needed=needed)


def _strongest(states: Iterable[IdentityState]) -> IdentityState | None:
    """The one that is nearest to its limit, or furthest beyond."""
    return max(states, key=lambda state: state.evidence - state.limit, default=None)


def not_weighed() -> Witness:
    """Identity is switched off."""
    told = "answers are not held against the copy (identity.share is 0)"
    return Witness(name="identity", finding="absent", told=told)


def _surprise(bound: Bound | None, within: float) -> str:
    if bound is None:
        return "at temperature 0 they take its most likely tokens"
    return (
        f"their mean surprise is {bound.value:+.3f} nats a token [{bound.low:+.3f},"
        f" {bound.high:+.3f}], where {within:g} is allowed"
    )


def _least(bound: Bound) -> float:
    """How far from 0 it surely is; below 0 where it may be 0."""
    return max(bound.low, -bound.high)


def _widened(bound: Bound, wider: float) -> Bound:
    """Its sides ``wider`` times as far from the value."""
    return Bound(
        value=bound.value,
        low=bound.value - wider * (bound.value - bound.low),
        high=bound.value + wider * (bound.high - bound.value),
    )


def _bound(bound: Bound) -> dict[str, float | None]:
    return {
        "value": _figure(bound.value),
        "low": _figure(bound.low),
        "high": _figure(bound.high),
    }


def _figure(number: float) -> float | None:
    """JSON has no infinity and no NaN."""
    return float(f"{number:.6g}") if math.isfinite(number) else None
