"""A working monitor of two workers, two watchers and two couriers, broken over and over: `campaign.run`.

`make test` does a round of each kind of fault, `make nightly` a thousand faults, `make faults` those alone.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.faults.campaign.run import campaign
from tests.faults.campaign.schedule import KINDS, ROUND, schedule

Folder = Callable[[str], AbstractContextManager[Path]]


def test_a_schedule_is_its_seeds_and_every_round_has_every_kind() -> None:
    assert schedule(7, 300) == schedule(7, 300) != schedule(8, 300)
    assert {fault.kind for fault in schedule(7, ROUND)} == {kind.name for kind in KINDS}
    assert len(schedule(7, 1_000)) == 1_000


@pytest.mark.slow
@pytest.mark.timeout(7_200)
@pytest.mark.parametrize(
    ("seed", "faults"), [(1, ROUND), pytest.param(2, 1_000, marks=pytest.mark.nightly)]
)
def test_whatever_breaks_each_record_counts_once_and_each_alert_is_told_once_and_in_order(
    server_folder: Folder, seed: int, faults: int
) -> None:
    with server_folder("campaign") as folder:
        figures = campaign(folder, seed=seed, faults=faults)
    assert figures["faults"] == faults
    assert figures["events"] > 0
    assert figures["dead_letters"] > 0
