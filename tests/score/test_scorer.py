from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from monitor.score.pack import Canary, Pack
from monitor.score.scorer import Scorer
from monitor.values.features import Calibration, Feature
from monitor.values.identity import ModelIdentity


def scorer(canaries: tuple[Canary, ...] = ()) -> Scorer:
    def feature(name: str, calibration: Calibration, **changes: Any) -> Feature:
        return Feature(
            name=name,
            kind="direction",
            site=0,
            region="response",
            pooling="mean",
            weight=np.ones(4, np.float32),
            calibration=calibration,
            **changes,
        )

    return Scorer(
        Pack(
            name="tiny",
            version="1",
            model=ModelIdentity(
                model_id="tiny", architecture="A", hidden_size=4, layers=1, vocab_size=9
            ),
            features=(
                feature(
                    "rising",
                    Calibration(tokens=(8, 32), means=(1.0, 3.0), deviations=(2.0, 0.5)),
                ),
                feature(
                    "falling",
                    Calibration(tokens=(1,), means=(10.0,), deviations=(5.0,)),
                    expected="falls",
                    tail_threshold=2.0,
                ),
            ),
            canaries=canaries,
        )
    )


def test_scores_are_interpolated_in_log_tokens_and_held_outside() -> None:
    readings = np.array([[3.0, 10.0]] * 5, dtype=np.float32)
    tokens = np.array([[8, 8], [16, 16], [32, 32], [1, 1], [4096, 4096]])
    scores = scorer().score(readings, tokens)
    # half way between 8 and 32 in log2 is 16: mean 2, deviation 1.25
    np.testing.assert_allclose(scores[:, 0], [1.0, 0.8, 0.0, 1.0, 0.0], atol=1e-6)
    np.testing.assert_allclose(scores[:, 1], 0.0)
    assert scores.dtype == np.float32


def test_absent_stays_absent() -> None:
    scores = scorer().score(
        np.array([[np.nan, 15.0]], dtype=np.float32), np.array([[0, 5]], dtype=np.int64)
    )
    assert np.isnan(scores[0, 0])
    assert scores[0, 1] == 1.0


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[n, 2\]"):
        scorer().score(np.zeros((1, 3), np.float32), np.ones((1, 3), np.int64))
    with pytest.raises(ValueError, match="differ in shape"):
        scorer().score(np.zeros((2, 2), np.float32), np.ones((1, 2), np.int64))


def test_canary_deviation_is_measured_in_calibration_deviations() -> None:
    canary = Canary(name="c", text="hello", readings=np.array([np.nan, 10.0], np.float32))
    subject = scorer((canary,))
    tokens = np.array([[0, 4]])
    assert subject.canary_deviation(np.array([[np.nan, 10.0]], np.float32), tokens) == 0.0
    assert subject.canary_deviation(np.array([[np.nan, 9.0]], np.float32), tokens) == 0.2
    assert subject.canary_deviation(np.array([[1.0, 10.0]], np.float32), tokens) == np.inf
    assert subject.canary_deviation(np.array([[np.nan, np.nan]], np.float32), tokens) == np.inf
