"""Exactly once while brokers are killed, paused and restarted, workers come and go, and topics change.

More faults: ``python -m tests.kafka.campaign.run``.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.kafka.apache import Cluster
from tests.kafka.campaign.run import campaign
from tests.kafka.campaign.schedule import MOST_WORKERS, Kind, schedule


def test_a_schedule_has_every_kind_and_comes_again() -> None:
    drawn = schedule(100, seed=3)
    assert drawn == schedule(100, seed=3) != schedule(100, seed=4)
    assert len(drawn) == 100
    assert Counter(one.kind for one in drawn).keys() == set(Kind)
    assert {one.kind for one in schedule(8, seed=5)} == set(Kind)
    resized = [one.workers for one in drawn if one.kind is Kind.RESIZE]
    assert set(resized) == set(range(1, MOST_WORKERS + 1))
    assert all(before != after for before, after in zip([1, *resized], resized, strict=False))


@pytest.mark.nightly
@pytest.mark.timeout(7_200)
def test_every_record_is_stored_once_whatever_happens(
    tmp_path: Path, three_brokers: Cluster, migrated_url: str
) -> None:
    result = campaign(tmp_path, three_brokers, migrated_url, faults=100, seed=1)
    print(result.table())
    assert result.outcome.records > 1_000
