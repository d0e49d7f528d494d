"""Records by the thousand that mean ill: each is read within bounds of work and memory, and told as promised."""

from __future__ import annotations

import pytest

from tests.ingest.hostile_flood import KINDS, suffer


@pytest.mark.timeout(7_200)
@pytest.mark.parametrize("records", [1_500, pytest.param(100_000, marks=pytest.mark.nightly)])
def test_each_of_many_hostile_records_costs_little(records: int) -> None:
    cost = suffer(seed=records, records=records)
    assert cost.kinds.total() == records
    assert set(cost.kinds) >= {name for name, weight, _ in KINDS if weight > 5}
    assert cost.outcomes["prompt"] > records / 10, "else nothing is read but refused at once"
