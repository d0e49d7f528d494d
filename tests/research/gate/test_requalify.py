"""Do thresholds and baseline carry over to another precision? On tiny models, and by simulation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from monitor.errors import BadInput, ModelError
from monitor.research.gate.equivalence import Errors
from monitor.research.gate.requalify import Asked, Requalification, carried, requalify
from monitor.settings import ReplaySettings
from tests.scenes.gates import Scene, exchanges
from tests.scenes.models import save_tiny
from tests.scenes.packs import drawn, feature, on_cpu

ERRORS = Errors.of(0.05, 4)


def outcomes(found: Requalification) -> dict[str, str]:
    return {one.feature: one.outcome for one in found.features}


def asked(scene: Scene, after: ReplaySettings, n: int, **options: float) -> Requalification:
    return requalify(scene.pack, scene.reference, after, exchanges(n), Asked(**options))  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_same_precision_carries_over(scene: Scene) -> None:
    found = asked(scene, scene.reference, 110, tail=0.1)
    assert found.outcome == "pass"
    assert {(one.shift, one.low, one.high, one.newly) for one in found.features} == {(0, 0, 0, 0)}
    assert found.canary_deviation is not None
    assert found.canary_deviation < 1e-3


@pytest.mark.slow
def test_bfloat16_is_measured_and_named(scene: Scene) -> None:
    after = scene.reference.model_copy(update={"dtype": "bfloat16"})
    found = asked(scene, after, 110, shift=0.5, tail=0.1)
    assert (found.before, found.after) == ("float32", "bfloat16")
    assert all(0.0 < one.spread < 0.5 for one in found.features)
    assert found.outcome == "pass"
    assert found.canary_deviation is not None
    assert found.canary_deviation > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("deviations", [1.5, -1.5])
def test_a_copy_that_reads_otherwise_is_stale_in_either_direction(
    scene: Scene, planted: Callable[..., Path], deviations: float
) -> None:
    found = asked(scene, on_cpu(planted(deviations)), 110)
    assert found.outcome == "stale"
    assert outcomes(found)["reckless"] == "stale"
    [reckless] = [one for one in found.features if one.feature == "reckless"]
    assert np.sign(reckless.shift) == np.sign(deviations)


@pytest.mark.slow
def test_too_few_exchanges_decide_nothing_and_say_how_many_would(scene: Scene) -> None:
    found = asked(scene, scene.reference, 20)
    assert found.outcome == "inconclusive"
    assert all(one.needed is not None and one.needed > 20 for one in found.features)


def test_another_model_is_no_other_precision(scene: Scene, tmp_path: Path) -> None:
    other = save_tiny(tmp_path / "other", seed=1, num_hidden_layers=3)
    with pytest.raises(ModelError, match="cannot be read alike"):
        asked(scene, on_cpu(other), 10)


@pytest.mark.parametrize(
    ("named", "value"), [("shift", 0.0), ("tail", 1.0), ("alpha", 0.5), ("least", 1)]
)
def test_limits_that_decide_nothing_are_refused(named: str, value: float) -> None:
    with pytest.raises(BadInput, match="--"):
        Asked(**{named: value})  # type: ignore[arg-type]


def passed(shift: float, spread: float, n: int, runs: int) -> float:
    """In what share of the runs a feature carries over, whose scores move by ``shift`` ± ``spread``."""
    generator = np.random.default_rng(5)
    one, found = feature("curt", drawn(1), tail_threshold=2.5), 0
    for _ in range(runs):
        before = generator.normal(size=n).astype(np.float32)
        after = before + generator.normal(shift, spread, size=n).astype(np.float32)
        found += carried(one, before, after, np.arange(n), Asked(), ERRORS).outcome == "pass"
    return found / runs


def test_a_shift_at_the_margin_passes_no_more_often_than_promised() -> None:
    for shift in (0.1, -0.1):
        assert passed(shift, 0.3, 2_000, 300) <= 0.05 + 3 * (0.05 * 0.95 / 300) ** 0.5


def test_what_bfloat16_does_to_scores_carries_over() -> None:
    """Noise of 0.04 deviations, as the small model's readings have, on 2,000 exchanges."""
    assert passed(0.005, 0.04, 2_000, 100) >= 0.95
