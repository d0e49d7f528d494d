"""What of weighing goes between the worker and the engine: how an answer was drawn there, what became of it back.

Numbers are JSON's own, which keep every bit of a double. Nothing of a record is sent but what its law depends on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, cast, get_args

import numpy as np

from monitor.errors import BadInput
from monitor.values.arrays import Doubles
from monitor.values.likelihood import DrawnBy, EstimatedLaw, Likelihood, Untold
from monitor.values.prompts import Sampling
from monitor.values.surprise import Law, NotWeighed, Said, Surprise, Weighed

NUMBERS: Final = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
)
"""Of `Sampling`, beside ``logit_bias`` and ``finish_reason``: what the law of an answer and its end depend on."""
FIGURES: Final = ("tokens", "excess", "variance", "peak", "off_support", "given_away")


def law_entry(drawn_by: DrawnBy) -> dict[str, Any]:
    """``sampling``, and of an answer whose law nobody tells ``estimate``: null where there is none."""
    if isinstance(drawn_by, Sampling):
        return {"sampling": _said(drawn_by)}
    estimate = None if drawn_by.law is None else drawn_by.law.entry()
    return {"sampling": _said(drawn_by.said), "estimate": estimate}


def law_from(content: Any) -> DrawnBy:
    """What `law_entry` was made of. Raises `BadInput` for what is none."""
    try:
        sampling = _sampling(content["sampling"])
        if "estimate" not in content:
            if sampling.temperature is None and sampling.top_k != 1:
                raise ValueError
            return sampling
        estimate = content["estimate"]
        return Untold(said=sampling, law=None if estimate is None else EstimatedLaw(**estimate))
    except (TypeError, KeyError, ValueError, OverflowError):
        raise BadInput(
            "rows: a law needs its sampling, with a temperature unless estimate stands beside it"
        ) from None


def weighed_entry(weighed: Weighed) -> dict[str, Any]:
    """``outcome`` and what belongs to it."""
    if isinstance(weighed, NotWeighed):
        return {"outcome": "not_weighed", "reason": weighed.value}
    if isinstance(weighed, Likelihood):
        return {"outcome": "likelihood"} | _likelihood_entry(weighed)
    one = weighed.likelihood
    return {
        "outcome": "surprise",
        "law": weighed.law,
        "said_by": weighed.said_by,
        "log_bets": weighed.log_bets.tolist(),
        "counted_bets": None if weighed.counted_bets is None else weighed.counted_bets.tolist(),
        "likelihood": None if one is None else _likelihood_entry(one),
        **{name: getattr(weighed, name) for name in FIGURES},
    }


def weighed_from(content: Any) -> Weighed:
    """What `weighed_entry` was made of. Raises `BadInput` for what is none."""
    try:
        outcome = content["outcome"]
        if outcome == "not_weighed":
            return NotWeighed(content["reason"])
        if outcome == "likelihood":
            return _likelihood(content)
        if outcome == "surprise":
            return _surprise(content)
        raise ValueError
    except (TypeError, KeyError, ValueError, OverflowError):
        raise BadInput("it answers with what no answer is weighed by") from None


def _said(sampling: Sampling) -> dict[str, Any]:
    said = {name: getattr(sampling, name) for name in NUMBERS}
    biases = [list(one) for one in sampling.logit_bias]
    return said | {"logit_bias": biases, "finish_reason": sampling.finish_reason}


def _sampling(content: Mapping[str, Any]) -> Sampling:
    given: dict[str, Any] = {name: content.get(name) for name in NUMBERS}
    biases = [(token, _number(bias)) for token, bias in content.get("logit_bias") or ()]
    given = {name: None if one is None else _number(one) for name, one in given.items()}
    if given["top_k"] is not None:
        given["top_k"] = int(given["top_k"])
    reason = content.get("finish_reason")
    # Any number: whatever a record says must get through, or one record would stop the worker.
    if not isinstance(reason, str | None):
        raise ValueError
    if not all(type(token) is int and token >= 0 for token, _ in biases):
        raise ValueError
    return Sampling(logit_bias=tuple(biases), finish_reason=reason, **given)


def _surprise(content: Mapping[str, Any]) -> Surprise:
    counted, likelihood = content["counted_bets"], content["likelihood"]
    if content["law"] not in get_args(Law) or content["said_by"] not in get_args(Said):
        raise ValueError
    return Surprise(
        law=cast(Law, content["law"]),
        said_by=cast(Said, content["said_by"]),
        log_bets=_doubles(content["log_bets"]),
        counted_bets=None if counted is None else _doubles(counted),
        likelihood=None if likelihood is None else _likelihood(likelihood),
        tokens=_count(content["tokens"]),
        off_support=_count(content["off_support"]),
        given_away=_count(content["given_away"]),
        excess=_number(content["excess"]),
        variance=_number(content["variance"]),
        peak=_number(content["peak"]),
    )


def _likelihood_entry(one: Likelihood) -> dict[str, Any]:
    return {"tokens": one.tokens, "logs": one.logs.tolist(), "squares": one.squares.tolist()}


def _likelihood(content: Mapping[str, Any]) -> Likelihood:
    logs, squares = _doubles(content["logs"]), _doubles(content["squares"])
    return Likelihood(tokens=_count(content["tokens"]), logs=logs, squares=squares)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError
    return float(value)


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError
    return value


def _doubles(values: Any) -> Doubles:
    return np.array([_number(one) for one in values], dtype=np.float64)
