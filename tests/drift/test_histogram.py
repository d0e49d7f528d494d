from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.drift.histogram import (
    CENTRES,
    EDGES,
    bucket_scores,
    deciles,
    floor_time,
    grouped,
    histogram_of,
    ks,
    merge,
    psi,
    quantile,
)
from monitor.values.features import Calibration, Feature
from monitor.values.prompts import RecordKey
from monitor.values.scores import SCORE_BINS, ScoredPrompt

NOW = datetime(2026, 3, 1, 12, 0, 30, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def scored(scores, *, at=NOW, partition=0, offset=0, segments=("all",), generated=False):
    values = np.array(scores, dtype=np.float32)
    return ScoredPrompt(
        key=RecordKey(topic="prompts", partition=partition, offset=offset),
        recorded_at=at,
        prompt_id="p",
        content_hash=b"",
        conversation_hash=None,
        segments=segments,
        model=None,
        model_revision=None,
        prompt_tokens=1,
        response_tokens=1,
        cut=False,
        generated=generated,
        inclusion_probability=1.0,
        readings=values,
        scores=values,
    )


def feature(region="response", **changes):
    return Feature(
        name=f"of the {region}",
        kind="direction",
        site=0,
        region=region,
        pooling="mean",
        weight=np.ones(2, dtype=np.float32),
        calibration=Calibration(tokens=(1,), means=(0,), deviations=(1,)),
        **changes,
    )


TWO = (feature(expected="rises", tail_threshold=3.0), feature(expected="falls", tail_threshold=2.0))


def test_a_bucket_holds_the_scores_own_sums():
    prompts = [scored([1.5, -3.0]), scored([4.0, 0.5]), scored([np.nan, -2.0])]
    rising, falling = bucket_scores(prompts, TWO, bucket=MINUTE)
    assert rising.source == "prompts/0"
    assert rising.bucket_start == datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
    assert (rising.n, rising.total, rising.total_squares) == (2, 5.5, 1.5**2 + 16)
    assert rising.tail_count == 1
    # -2.0 is the threshold itself, hence not below it.
    assert (falling.n, falling.tail_count) == (3, 1)
    assert rising.histogram.sum() == 2


def test_time_source_and_segment_part_the_buckets():
    prompts = [
        scored([0.0, 0.0], segments=("all", "route=/a")),
        scored([0.0, 0.0], at=NOW + MINUTE),
        scored([0.0, 0.0], partition=1),
    ]
    keys = {
        (b.bucket_start.minute, b.source, b.segment)
        for b in bucket_scores(prompts, TWO, bucket=MINUTE)
    }
    assert keys == {
        (0, "prompts/0", "all"),
        (0, "prompts/0", "route=/a"),
        (0, "prompts/1", "all"),
        (1, "prompts/0", "all"),
    }


def test_scores_of_generated_answers_count_apart_and_the_prompt_side_as_ever():
    features = [feature(region) for region in ("prompt", "last_prompt_token", "response", "all")]
    logged = scored([1.0, 1.0, 1.0, 1.0], segments=("all", "route=/a"))
    own = scored([2.0, 2.0, 2.0, 2.0], segments=("all", "route=/a", "generated"), generated=True)
    buckets = bucket_scores([logged, own, own], features, bucket=MINUTE)
    seen = {(b.segment, b.feature): (b.n, b.total, int(b.histogram.sum())) for b in buckets}
    assert len(seen) == len(buckets)
    mixed, alone, apart = (3, 5.0, 3), (1, 1.0, 1), (2, 4.0, 2)
    assert seen == {
        **{(segment, f): mixed for segment in ("all", "route=/a") for f in (0, 1)},
        **{(segment, f): alone for segment in ("all", "route=/a") for f in (2, 3)},
        **{("generated", f): apart for f in (2, 3)},
    }


def test_canaries_stand_apart():
    buckets = bucket_scores(
        [scored([0.0, 1.0], segments=("all",))], TWO, canary=True, bucket=MINUTE
    )
    assert {(b.source, b.segment) for b in buckets} == {("canary", "canary")}


def test_nothing_and_nan_make_no_bucket():
    assert bucket_scores([], TWO, bucket=MINUTE) == ()
    assert bucket_scores([scored([np.nan, np.nan])], TWO, bucket=MINUTE) == ()


def test_an_infinite_score_is_refused():
    with pytest.raises(ValueError, match="finite"):
        bucket_scores([scored([np.inf, 0.0])], TWO, bucket=MINUTE)


def test_bins_are_closed_below():
    for index, edge in enumerate(EDGES):
        assert histogram_of(np.array([edge]))[index + 1] == 1
        assert histogram_of(np.array([np.nextafter(edge, -np.inf)]))[index] == 1
    assert histogram_of(CENTRES).tolist() == [1] * SCORE_BINS


@given(st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=60), st.integers(1, 5))
def test_merging_pieces_equals_the_whole(values, pieces):
    prompts = [scored([value, value]) for value in values]
    whole = merge(bucket_scores(prompts, TWO, bucket=MINUTE))
    parts = merge(
        [b for i in range(pieces) for b in bucket_scores(prompts[i::pieces], TWO, bucket=MINUTE)]
    )
    for one, other in zip(whole, parts, strict=True):
        assert (one.n, one.tail_count) == (other.n, other.tail_count)
        assert one.total == pytest.approx(other.total, abs=1e-9)
        assert one.total_squares == pytest.approx(other.total_squares)
        assert (one.histogram == other.histogram).all()
        assert one.end - one.start == MINUTE


def test_quantiles_follow_the_sample():
    sample = np.random.default_rng(1).normal(size=20_000)
    histogram = histogram_of(sample)
    for q in (0.01, 0.25, 0.5, 0.9, 0.99):
        assert quantile(histogram, q) == pytest.approx(np.quantile(sample, q), abs=0.05)
    assert quantile(histogram_of(np.array([99.0])), 0.5) == EDGES[-1]
    assert quantile(histogram_of(np.array([-99.0])), 0.0) == EDGES[0]
    assert np.isnan(quantile(histogram_of(np.array([])), 0.5))
    with pytest.raises(ValueError, match="between 0 and 1"):
        quantile(histogram, 1.5)


def test_distances_are_zero_on_the_same_and_match_the_normal_shift():
    random = np.random.default_rng(2)
    one, same = (histogram_of(random.normal(size=200_000)) for _ in range(2))
    moved = histogram_of(random.normal(loc=1.0, size=200_000))
    assert psi(one, one) == 0.0 == ks(one, one)
    assert psi(same, one) < 0.001
    assert ks(same, one) < 0.005
    # KS of N(1,1) against N(0,1) is 2Φ(1/2) - 1; continuous PSI is 1, grouping to tenths loses a bit.
    assert ks(moved, one) == pytest.approx(0.3829, abs=0.01)
    assert 0.8 < psi(moved, one) < 1.0


def test_distances_stay_finite_on_disjoint_and_empty():
    left, right = histogram_of(np.full(100, -10.0)), histogram_of(np.full(100, 10.0))
    empty = histogram_of(np.array([]))
    assert ks(left, right) == 1.0
    assert np.isfinite(psi(left, right))
    assert psi(left, right) > 1
    assert psi(empty, left) == 0.0 == ks(left, empty)


def test_times_floor_to_the_bucket():
    assert floor_time(NOW, timedelta(minutes=15)) == datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
    assert floor_time(NOW, timedelta(days=1)) == datetime(2026, 3, 1, tzinfo=UTC)


COUNTS = st.lists(
    st.one_of(st.just(0), st.integers(0, 30), st.integers(0, 3_000)),
    min_size=SCORE_BINS,
    max_size=SCORE_BINS,
).map(lambda counts: np.array(counts, dtype=np.int64))


@given(COUNTS)
def test_groups_hold_about_a_tenth_and_what_holds_more_stands_alone(counts):
    groups = deciles(counts)
    held = grouped(counts, groups)
    ends = [*groups[1:].tolist(), SCORE_BINS]
    assert groups[0] == 0
    assert (np.diff(groups) > 0).all()
    assert held.sum() == counts.sum()
    heavy = set(np.flatnonzero(counts * 10 > counts.sum()).tolist())
    for start, end, n in zip(groups.tolist(), ends, held.tolist(), strict=True):
        alone = end - start == 1
        assert alone or not heavy & set(range(start, end))
        assert alone or 10 * n <= 2 * counts.sum()
    # A tenth each makes ten; more only where one is closed early, before a bin that stands alone.
    assert len(groups) <= 10 + len(heavy)
