from __future__ import annotations

import itertools
from datetime import timedelta

import numpy as np
import pytest

from monitor.drift.baseline import (
    MOST_INTERVALS,
    baseline_for,
    intervals,
    unwatched,
)
from monitor.drift.dependence import design_effect
from monitor.errors import BadInput
from monitor.values.drift import BaselineStatus
from tests.drift.drafts import START, draft

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)


def test_intervals_cover_without_gap_or_overlap():
    for length in (MINUTE, HOUR, timedelta(days=1), timedelta(days=30, minutes=7)):
        pieces = intervals(START, START + length, MINUTE)
        assert len(pieces) <= MOST_INTERVALS
        assert pieces[0][0] == START
        assert pieces[-1][1] == START + length
        assert all(a[1] == b[0] for a, b in itertools.pairwise(pieces))
        assert all((end - start) % MINUTE == timedelta(0) for start, end in pieces)
    with pytest.raises(BadInput, match="after its start"):
        intervals(START, START, MINUTE)


def test_a_baseline_is_the_sum_of_its_interval(window_of):
    random = np.random.default_rng(1)
    pieces = [window_of(random.normal(size=40), at=i) for i in range(30)]
    baseline = draft([*pieces, window_of([9.0] * 500, segment="canary")])
    assert baseline.status is BaselineStatus.DRAFT
    assert baseline.n == 1_200
    assert set(baseline.streams) == {(0, "all")}
    whole = baseline.streams[0, "all"].window
    assert whole.n == sum(w.n for w in pieces) == whole.histogram.sum()
    assert whole.total == pytest.approx(sum(w.total for w in pieces))
    assert whole.tail_count == sum(w.tail_count for w in pieces)
    assert (whole.start, whole.end) == (START, START + HOUR)
    assert baseline.fingerprint.facts["sampling_rate"] == "0.5"
    assert baseline.fingerprint.facts["n"] == "1200"


def test_a_thin_interval_is_refused_with_the_fix(window_of):
    with pytest.raises(BadInput, match="holds 40 scored prompts, a baseline needs 100") as refused:
        draft([window_of(np.zeros(40))])
    assert "longer interval" in refused.value.hint
    with pytest.raises(BadInput, match="holds 0"):
        draft([])


def test_a_thin_feature_is_left_out_and_named(window_of):
    baseline = draft([window_of(np.zeros(500)), window_of(np.zeros(20), feature=1)])
    assert unwatched(baseline, 3) == (1, 2)
    assert baseline_for(baseline.streams, 1, "all", 500) is None


def test_thin_segments_fall_back_on_all_traffic(window_of):
    baseline = draft(
        [
            window_of(np.zeros(900)),
            window_of(np.zeros(700), segment="route=/a"),
            window_of(np.zeros(200), segment="route=/b"),
        ]
    )
    assert baseline_for(baseline.streams, 0, "route=/a", 500) == ((0, "route=/a"), False)
    for segment in ("route=/b", "route=/new"):
        assert baseline_for(baseline.streams, 0, segment, 500) == ((0, "all"), True)
    assert baseline_for(baseline.streams, 0, "all", 10_000) == ((0, "all"), False)


def test_answers_of_the_copys_own_have_a_baseline_of_their_own_or_none(window_of):
    logged, own = window_of(np.zeros(900)), window_of(np.ones(400), segment="generated")
    both = draft([logged, own])
    assert both.n == 900
    assert baseline_for(both.streams, 0, "generated", 500) == ((0, "generated"), False)
    assert baseline_for(draft([logged]).streams, 0, "generated", 500) is None, (
        "never against logged answers"
    )
    # A topic of prompts alone: nothing but generated answers, and slices of nothing.
    only = draft([own, window_of(np.zeros(150), segment="route=/a")])
    assert set(only.streams) == {(0, "generated")}
    assert only.n == 400
    assert unwatched(only, 2) == (1,)
    assert baseline_for(only.streams, 0, "all", 500) is None
    assert baseline_for(only.streams, 0, "route=/a", 100) is None


def test_independent_prompts_have_a_design_effect_near_one(window_of):
    random = np.random.default_rng(2)
    found = [
        draft([window_of(random.normal(size=25), at=i) for i in range(100)])
        .streams[0, "all"]
        .design_effect
        for _ in range(50)
    ]
    assert 1.0 <= np.mean(found) < 1.35


def test_conversations_are_counted_as_what_they_are(window_of, clustered):
    """Five prompts correlated 0.6: 1 + 4·0.6 = 3.4 (Kish)."""
    random = np.random.default_rng(3)
    found = [
        draft([window_of(clustered(random, 25), at=i) for i in range(140)])
        .streams[0, "all"]
        .design_effect
        for _ in range(50)
    ]
    assert 3.0 < np.mean(found) < 4.8


def test_waves_longer_than_a_batch_show_in_the_joined_ones():
    random = np.random.default_rng(4)
    wave = 0.3 * np.sin(np.arange(96) / 96 * 4 * np.pi)
    totals = 20 * wave + np.sqrt(20) * random.normal(size=96)
    effect = design_effect([20] * 96, list(totals), 1.0 + 0.045)
    assert effect > 5
    assert design_effect([20] * 11, list(totals[:11]), 1.0) == 1.0
    assert design_effect([20] * 96, list(totals), 0.0) == 1.0


def test_waves_of_eight_batches_count_in_full():
    """Twelve stretches of eight batches, by turns 0.5 above and below: joined they are all signal."""
    totals = np.repeat([10.0, -10.0] * 6, 8)
    # Σ 160 · 0.5² over twelve, by eleven.
    assert design_effect([20] * 96, list(totals), 1.0) == pytest.approx(12 * 160 * 0.25 / 11)


def test_bursts_of_tail_prompts_are_counted_as_what_they_are(window_of):
    """Every second minute 10 of 25 prompts are in the tail, else none: far from 20 % of each minute."""
    pieces = [
        window_of([4.0] * (10 * (i % 2)) + [0.0] * (25 - 10 * (i % 2)), at=i) for i in range(24)
    ]
    stream = draft(pieces).streams[0, "all"]
    assert stream.window.tail_count == 120
    # Σ 25 (0.4 - 0.2)² over 24, by 23 · 0.2 · 0.8.
    assert stream.tail_design_effect == pytest.approx(24 * 25 * 0.04 / (23 * 0.16))
