"""What weighed answers add up to, in the tables."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
from sqlalchemy import Engine

from monitor.drift.identity import SHARES, start
from monitor.store.database import transaction
from monitor.store.identity import (
    add_identity,
    load_identity,
    new_identity,
    save_identity,
    tallies,
)
from monitor.store.packs import lineage_id_of
from monitor.values.surprise import IdentityBucket, Tally
from tests.store.builders import HOUR, LINEAGE, MINUTE, NOON, PACK, known_pack

ONE = Tally(
    n=2,
    left_out=1,
    tokens=40,
    excess=3.5,
    variance=80.0,
    off_support=1,
    counted_tokens=30,
    counted_excess=2.5,
    counted_variance=60.0,
)
GREEDY = Tally(n=1, greedy_tokens=20, given_away=2)


def bucket(minute: int, tally: Tally = ONE, **changes: str) -> IdentityBucket:
    given = {"segment": "all", "source": "prompts/0", "served": "llama@1"} | changes
    return IdentityBucket(
        bucket_start=NOON + minute * MINUTE,
        tally=tally,
        wagers=np.arange(len(SHARES), dtype=np.float64) + minute,
        **given,
    )


def added(database: Engine, *buckets: IdentityBucket) -> None:
    with transaction(database) as c:
        add_identity(c, lineage_id_of(c, LINEAGE), buckets)


@pytest.fixture
def store(database: Engine) -> Engine:
    known_pack(database)
    return database


def test_sums_grow_by_adding_whoever_adds(store: Engine) -> None:
    added(store, bucket(0), bucket(1))
    added(store, bucket(0, GREEDY), bucket(0, source="prompts/1"))
    with transaction(store) as c:
        first, second = new_identity(c, PACK, NOON - MINUTE, NOON + HOUR)
        found = tallies(c, PACK, NOON, NOON + HOUR)
    assert first.tally == ONE + GREEDY + ONE
    assert first.wagers.tolist() == [3.0 * k for k in range(len(SHARES))]
    assert (second.tally, second.wagers.tolist()) == (ONE, [1.0, 2.0, 3.0, 4.0, 5.0])
    assert found == {"all": ONE + GREEDY + ONE + ONE}


def test_intervals_are_open_where_they_are_said_to_be(store: Engine) -> None:
    added(store, bucket(0), bucket(1), bucket(2))
    with transaction(store) as c:
        assert [b.bucket_start for b in new_identity(c, PACK, NOON, NOON + 2 * MINUTE)] == [
            NOON + MINUTE
        ]
        assert tallies(c, PACK, NOON, NOON + MINUTE) == {"all": ONE}
        assert tallies(c, "another pack", NOON, NOON + HOUR) == {}


def test_streams_stay_apart(store: Engine) -> None:
    added(store, bucket(0), bucket(0, served="llama@2"), bucket(0, segment="route=/chat"))
    with transaction(store) as c:
        found = new_identity(c, PACK, NOON - MINUTE, NOON + HOUR)
    assert [(b.segment, b.served) for b in found] == [
        ("all", "llama@1"),
        ("all", "llama@2"),
        ("route=/chat", "llama@1"),
    ]


def test_a_test_never_goes_back(store: Engine) -> None:
    begun = start("all", "llama@1", NOON)
    later = replace(begun, last_bucket=NOON + timedelta(minutes=5), n=7, evidence=2.5, limit=14.0)
    with transaction(store) as c:
        save_identity(c, PACK, [later])
        save_identity(c, PACK, [begun])
        assert load_identity(c, PACK) == {("all", "llama@1", ""): later}
