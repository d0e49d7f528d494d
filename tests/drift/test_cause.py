from __future__ import annotations

from datetime import UTC, datetime

import pytest

from monitor.drift.cause import cause_of
from monitor.values.scores import CanaryRun, Lineage
from monitor.values.witnesses import Cause

LINEAGE = Lineage(
    pack_id="p",
    model_id="m",
    model_hash="h",
    dtype="float32",
    attention="sdpa",
    device="cpu",
    engine="1",
    rules="{}",
)


def run(reproduced):
    return CanaryRun(
        worker_id="w",
        ran_at=datetime(2026, 3, 1, tzinfo=UTC),
        lineage=LINEAGE,
        largest_deviation=0.0,
        noise_floor=0.05,
        reproduced=reproduced,
    )


@pytest.mark.parametrize(
    ("canaries", "served", "before", "expected"),
    [
        ([], ["llama@1"], ["llama@1"], Cause.UNKNOWN),
        ([True], ["llama@1"], ["llama@1"], Cause.INPUT_SHIFT),
        ([True, False], ["llama@2"], ["llama@1"], Cause.INSTRUMENT_SHIFT),
        ([True], ["llama@1", "llama@2"], ["llama@1"], Cause.MODEL_SHIFT),
        ([True], ["llama@1"], ["llama@1", "llama@2"], Cause.INPUT_SHIFT),
        ([True], ["llama@1"], ["@"], Cause.INPUT_SHIFT),
        ([True], ["@"], ["llama@1"], Cause.INPUT_SHIFT),
        ([True], [], [], Cause.INPUT_SHIFT),
    ],
)
def test_the_first_line_that_applies_decides(canaries, served, before, expected):
    assert cause_of([run(reproduced) for reproduced in canaries], served, before) is expected
