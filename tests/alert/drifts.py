"""A feature, a drift of it, and a rule that the drift may cross."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from monitor.settings import DriftRule, Thresholds
from monitor.values.drift import Bound, Drift
from monitor.values.features import Calibration, Feature
from monitor.values.witnesses import Cause, Witness

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
LENGTHS = {"15m": timedelta(minutes=15), "1h": timedelta(hours=1), "24h": timedelta(hours=24)}

WITNESSES = (
    Witness(
        name="canaries",
        finding="steady",
        told="the canaries read as recorded",
        figures={"workers": 1, "largest_deviation": 0.004, "bound": 0.05},
    ),
    Witness(
        name="identity",
        finding="steady",
        told="62 answers are what the copy would say: their mean surprise is +0.012 nats a token"
        " [-0.083, +0.107], where 0.15 is allowed",
        figures={"answers": 62, "within": 0.15},
    ),
    Witness(
        name="prompt_side",
        finding="moved",
        told="asked_harm on the prompt side moved by +0.61 SD",
        figures={
            "feature": "asked_harm",
            "expected": False,
            "shift": {"value": 0.61, "low": 0.53, "high": 0.69},
            "bound": 0.1,
        },
    ),
)


def feature(name: str = "toxic", **changes: Any) -> Feature:
    given: dict[str, Any] = {
        "name": name,
        "kind": "direction",
        "site": 15,
        "region": "response",
        "pooling": "mean",
        "weight": np.ones(4, np.float32),
        "calibration": Calibration(tokens=(1,), means=(0,), deviations=(1,)),
        "tags": ("persona",),
        "description": "Insults and threats.",
    }
    return Feature(**given | changes)


def drift(
    *,
    shift: tuple[float, float] = (0.0, 0.1),
    tail: tuple[float, float] = (0.5, 2.0),
    window: str = "15m",
    **changes: Any,
) -> Drift:
    given: dict[str, Any] = {
        "baseline_id": "base-1",
        "pack_id": "pack-1",
        "feature": "toxic",
        "segment": "all",
        "window": window,
        "window_start": NOW - LENGTHS[window],
        "window_end": NOW,
        "n": 1_000,
        "baseline_n": 5_000,
        "pooled_baseline": False,
        "mean": 0.5,
        "baseline_mean": 0.0,
        "shift": Bound(value=sum(shift) / 2, low=shift[0], high=shift[1]),
        "psi": 0.0,
        "ks": 0.0,
        "tail_rate": 0.02,
        "baseline_tail_rate": 0.01,
        "tail_ratio": Bound(value=sum(tail) / 2, low=tail[0], high=tail[1]),
        "evidence": 0.0,
        "cause": Cause.INPUT_SHIFT,
        "witnesses": WITNESSES,
        "evaluated_at": NOW,
    }
    return Drift(**given | changes)


def rule(name: str = "persona", **changes: Any) -> DriftRule:
    given: dict[str, Any] = {
        "severities": {
            "warning": Thresholds(shift=0.3, tail_ratio=3.0),
            "critical": Thresholds(shift=0.8, tail_ratio=10.0),
        },
    }
    return DriftRule(name=name, **given | changes)
