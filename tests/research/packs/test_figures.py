from __future__ import annotations

import json

import numpy as np
import pytest

from monitor.research.packs.figures import benign_figures, quantiles, rounded
from tests.scenes.packs import drawn, feature


def test_figures_are_what_json_can_hold() -> None:
    assert [rounded(value) for value in (0.123456, -1e-9, np.nan, np.inf)] == [
        0.1235,
        0,
        None,
        None,
    ]
    assert json.dumps(rounded(-1e-9)) == "0.0"
    assert quantiles(np.arange(5.0), {"median": 0.5, "max": 1.0}) == {"median": 2.0, "max": 4.0}


def test_benign_figures_see_length_and_tail() -> None:
    generator = np.random.default_rng(0)
    tokens = np.exp2(generator.uniform(2, 9, size=2_000)).astype(np.int64)
    scores = generator.normal(size=2_000).astype(np.float32)
    figures = benign_figures(feature("one", drawn(0), tail_threshold=2.3263), scores, tokens)
    assert abs(figures["correlation_with_log_length"]) < 0.06
    assert figures["tail_rate"] == pytest.approx(0.01, abs=0.008)
    drifting = scores + np.log2(tokens).astype(np.float32)
    assert (
        benign_figures(feature("one", drawn(0)), drifting, tokens)["correlation_with_log_length"]
        > 0.8
    )
    falling = feature("one", drawn(0), tail_threshold=2.3263, expected="falls")
    assert benign_figures(falling, -scores, tokens)["tail_rate"] == figures["tail_rate"]
