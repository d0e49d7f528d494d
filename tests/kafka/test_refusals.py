"""Each way in which a cluster refuses is named, at once or within seconds, and the log stays short."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kafka.apache import Cluster, kafka_home
from tests.kafka.refusals import CASES, PAGE, PASSWORD, RIGHTS, Case, Stage, look, matches


@pytest.fixture(scope="module")
def stage(server_folder) -> Iterator[Stage]:
    home = kafka_home()
    assert home
    users = dict.fromkeys(RIGHTS, PASSWORD)
    with server_folder("kafka") as folder, Cluster(folder, home, users=users) as cluster:
        yield Stage(cluster)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.wrong.replace("`", ""))
def test_what_is_wrong_is_said(stage: Stage, case: Case) -> None:
    seen = look(case, stage, 30.0 if case.ends else 1.0)  # one that had connected tries three times
    assert matches(case, seen), seen


def test_the_page_has_a_line_for_each() -> None:
    page = Path(PAGE).read_text(encoding="utf-8")
    assert [case.wrong for case in CASES if f"| {case.wrong} |" not in page] == []
