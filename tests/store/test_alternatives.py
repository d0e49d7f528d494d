"""What weighed answers say for registered alternatives, in the tables."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
from sqlalchemy import Engine

from monitor.drift.identity import start
from monitor.store.alternatives import (
    add_likenesses,
    likenesses,
    load_alternatives,
    new_likenesses,
    save_alternatives,
)
from monitor.store.database import transaction
from monitor.store.identity import load_identity
from monitor.store.packs import lineage_id_of
from monitor.values.likeness import SHARES, Likeness, LikenessBucket
from tests.store.builders import HOUR, LINEAGE, MINUTE, NOON, PACK, known_pack

ONE = Likeness(
    n=2,
    nearer=1,
    tokens=20,
    excess=0.5,
    variance=11.0,
    likelihoods=np.arange(len(SHARES), dtype=np.float64),
    wagers=-np.arange(len(SHARES), dtype=np.float64),
)


def bucket(minute: int, **changes: str) -> LikenessBucket:
    given = {"segment": "all", "source": "prompts/0", "served": "llama@1", "alternative": "b"}
    return LikenessBucket(bucket_start=NOON + minute * MINUTE, likeness=ONE, **(given | changes))


def figures(likeness: Likeness) -> tuple[object, ...]:
    return (
        likeness.n,
        likeness.nearer,
        likeness.tokens,
        likeness.excess,
        likeness.variance,
        likeness.likelihoods.tolist(),
        likeness.wagers.tolist(),
    )


@pytest.fixture
def store(database: Engine) -> Engine:
    known_pack(database)
    return database


def test_sums_grow_by_adding_whoever_adds(store: Engine) -> None:
    for added in (
        [bucket(0), bucket(1), bucket(0, alternative="c")],
        [bucket(0), bucket(0, source="prompts/1")],
    ):
        with transaction(store) as c:
            add_likenesses(c, lineage_id_of(c, LINEAGE), added)
    with transaction(store) as c:
        found = new_likenesses(c, PACK, NOON - MINUTE, NOON + HOUR)
        summed = likenesses(c, PACK, NOON, NOON + HOUR)
        later = new_likenesses(c, PACK, NOON, NOON + HOUR)
    assert [one.stream for one in found] == [
        ("all", "llama@1", "b"),
        ("all", "llama@1", "c"),
        ("all", "llama@1", "b"),
    ]
    assert figures(found[0].likeness) == figures(ONE + ONE + ONE)
    assert {name: figures(one) for name, one in summed["all"].items()} == {
        "b": figures(ONE + ONE + ONE + ONE),
        "c": figures(ONE),
    }
    assert [one.bucket_start for one in later] == [NOON + MINUTE]


def test_a_state_that_is_behind_is_dropped_and_identity_s_own_is_another(store: Engine) -> None:
    begun = start("all", "llama@1", NOON, alternative="b", shares=len(SHARES))
    begun = replace(begun, log_values=(0.0,) * len(SHARES), limit=10.0)
    later = replace(begun, last_bucket=NOON + timedelta(minutes=5), n=7, evidence=2.5)
    with transaction(store) as c:
        save_alternatives(c, PACK, [later])
        save_alternatives(c, PACK, [begun])
        assert load_alternatives(c, PACK) == {("all", "llama@1", "b"): later}
        assert load_identity(c, PACK) == {}
