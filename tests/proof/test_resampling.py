"""Blocks of stored history, and persona prompts mixed into them, against scores that are known."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from monitor.drift.histogram import histogram_of
from monitor.drift.history import History
from monitor.proof.resampling import blocks_of, with_persona
from monitor.values.features import Directed
from monitor.values.scores import Bucket

START = datetime(2026, 3, 2, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)


def bucket(at, scores, feature):
    return Bucket(
        bucket_start=at,
        bucket_seconds=60,
        feature=0,
        segment="all",
        source="*",
        n=len(scores),
        total=float(scores.sum()),
        total_squares=float((scores**2).sum()),
        histogram=histogram_of(scores),
        tail_count=int(feature.in_tail(scores).sum()),
    )


def history_of(scores, feature, start=START):
    rows = [bucket(start + m * MINUTE, row, feature) for m, row in enumerate(scores)]
    return History.of(rows, start, start + len(scores) * MINUTE, MINUTE)


@pytest.mark.parametrize("expected", ["rises", "falls"])
@pytest.mark.parametrize("threshold", [1.75, 1.9])
def test_a_shift_of_all_prompts_is_what_shifted_scores_would_be(expected, threshold):
    feature = Directed(expected=expected, tail_threshold=threshold)
    generator = np.random.default_rng(1)
    scores = generator.normal(size=(120, 400))
    moved = with_persona(
        history_of(scores, feature),
        feature,
        [0.5],
        since=START + 20 * MINUTE,
        share=1.0,
        size=1.4,
        generator=generator,
    )
    scores[20:] += feature.sign * 0.7
    truth = history_of(scores, feature)
    assert (moved.n == truth.n).all()
    assert (moved.histograms.sum(axis=2) == truth.n).all()
    assert moved.totals == pytest.approx(truth.totals)
    assert moved.squares == pytest.approx(truth.squares)
    assert (moved.tails[:20] == truth.tails[:20]).all()
    assert (moved.histograms[:20] == truth.histograms[:20]).all()
    assert moved.tails[20:].sum() == pytest.approx(truth.tails[20:].sum(), rel=0.05)
    ours, theirs = (one.histograms[20:, 0].sum(axis=0) / 40_000 for one in (moved, truth))
    assert np.abs(np.cumsum(ours) - np.cumsum(theirs)).max() < 0.01


def test_a_share_of_the_prompts_is_moved_and_no_other():
    feature = Directed(tail_threshold=3.0)
    generator = np.random.default_rng(2)
    scores = generator.normal(size=(600, 100))
    before = history_of(scores, feature)
    moved = with_persona(
        before, feature, [1.0], since=START, share=0.05, size=6.0, generator=generator
    )
    assert (moved.n == before.n).all()
    assert moved.tails.sum() - before.tails.sum() == pytest.approx(3_000, rel=0.05)
    assert moved.totals.sum() - before.totals.sum() == pytest.approx(6 * 3_000, rel=0.05)
    expected = 3_000 * 36
    assert moved.squares.sum() - before.squares.sum() == pytest.approx(expected, rel=0.1)
    still = with_persona(
        before, feature, [1.0], since=START, share=0.0, size=6.0, generator=generator
    )
    assert (still.histograms == before.histograms).all()
    assert (still.tails == before.tails).all()


def test_blocks_are_whole_hours_beside_what_is_left_out():
    scores = np.zeros((7 * 60, 3))
    begun = START + 20 * MINUTE
    found = blocks_of(
        history_of(scores, Directed(), begun), [(START + 3.5 * HOUR, START + 4 * HOUR)]
    )
    assert found.length == 60
    starts = [found.history.start + int(first) * MINUTE for first in found.firsts]
    assert starts == [START + hour * HOUR for hour in (1, 2, 4, 5, 6)]
    assert found.by_hour == {}
    assert found.span == 5 * HOUR


def test_with_days_enough_a_block_stands_for_one_of_its_hour():
    """Each bucket's n tells the hour of the day it was stored in."""
    days = 3
    hours = np.repeat(np.tile(np.arange(24), days), 60)
    rows = [
        replace(bucket(START + m * MINUTE, np.zeros(1), Directed()), n=int(hour) + 1)
        for m, hour in enumerate(hours)
    ]
    kept = History.of(rows, START, START + days * 24 * HOUR, MINUTE)
    found = blocks_of(kept, [])
    drawn = found.drawn(START + 5 * HOUR, 30, np.random.default_rng(3))
    assert (drawn.n[:, 0].reshape(30, 60) == (np.arange(5, 35) % 24 + 1)[:, None]).all()
    assert drawn.end - drawn.start == 30 * HOUR
    assert blocks_of(kept.since(START + 24 * HOUR), []).by_hour == {}
    again = found.drawn(START, 30, np.random.default_rng(4))
    assert (again.n == found.drawn(START, 30, np.random.default_rng(4)).n).all()
