from __future__ import annotations

import numpy as np
import pytest

from monitor.errors import BadInput
from monitor.research.packs.calibrate import fit_calibration, tail_threshold
from monitor.score.scorer import benign_level
from monitor.values.arrays import Counts, Floats


def simulated(n: int, seed: int) -> tuple[Floats, Counts]:
    """Means of n texts: the level drifts with length, the deviation falls with its root."""
    generator = np.random.default_rng(seed)
    tokens = np.exp2(generator.uniform(2, 9, size=n)).astype(np.int64)
    noise = generator.normal(size=n) * (0.5 + 4.0 / np.sqrt(tokens))
    return (10 + 0.8 * np.log2(tokens) + noise).astype(np.float32), tokens


def test_scores_of_new_benign_texts_do_not_read_length() -> None:
    calibration = fit_calibration(*simulated(600, 0))
    readings, tokens = simulated(4_000, 1)
    means, deviations = benign_level(calibration, tokens)
    scores = (readings - means) / deviations
    assert abs(scores.mean()) < 0.1
    assert scores.std() == pytest.approx(1.0, abs=0.08)
    assert abs(np.corrcoef(scores, np.log2(tokens))[0, 1]) < 0.05
    for low, high in ((4, 16), (16, 64), (64, 512)):
        band = scores[(tokens >= low) & (tokens < high)]
        assert abs(band.mean()) < 0.25
        assert band.std() == pytest.approx(1.0, abs=0.2)
    # A constant calibration does read length: this is what the knots are for.
    assert np.corrcoef(readings, np.log2(tokens))[0, 1] > 0.5


def test_knots_stand_where_there_are_readings() -> None:
    readings, tokens = simulated(600, 2)
    calibration = fit_calibration(readings, tokens)
    assert calibration.tokens[0] >= 2
    assert calibration.tokens[-1] <= 512
    absent = np.concatenate([readings, np.full(50, np.nan, np.float32)])
    counts = np.concatenate([tokens, np.zeros(50, np.int64)])
    assert fit_calibration(absent, counts) == calibration


def test_one_length_gives_one_knot() -> None:
    generator = np.random.default_rng(0)
    readings = generator.normal(3.0, 2.0, size=200).astype(np.float32)
    calibration = fit_calibration(readings, np.full(200, 32))
    assert calibration.tokens == (32.0,)
    assert calibration.means[0] == pytest.approx(3.0, abs=0.5)
    assert calibration.deviations[0] == pytest.approx(2.0, abs=0.3)


def test_too_few_or_equal_readings_are_refused() -> None:
    with pytest.raises(BadInput, match="30 benign readings"):
        fit_calibration(np.ones(5, np.float32), np.full(5, 8))
    with pytest.raises(BadInput, match="all the same"):
        fit_calibration(np.ones(50, np.float32), np.full(50, 8))


def test_the_tail_threshold_is_passed_at_its_rate() -> None:
    scores = np.random.default_rng(0).normal(size=100_000).astype(np.float32)
    threshold = tail_threshold(scores, 0.01)
    assert np.mean(scores > threshold) == pytest.approx(0.01, abs=2e-4)
    assert threshold == pytest.approx(2.326, abs=0.05)


def test_no_kind_of_text_that_can_tell_has_more_tail_than_that() -> None:
    scores = np.random.default_rng(0).normal(size=1_000).astype(np.float32)
    scores[900:] += 2.0  # a kind of a hundred texts
    kind = slice(900, 1_000)

    threshold = tail_threshold(scores, 0.01, [kind])

    assert np.mean(scores[kind] > threshold) <= 0.01
    assert threshold > tail_threshold(scores, 0.01) + 0.3
    # Fifty texts cannot tell what one in a hundred is.
    assert tail_threshold(scores, 0.01, [slice(950, 1_000)]) == tail_threshold(scores, 0.01)
