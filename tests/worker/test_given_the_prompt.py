"""A worker takes off what the prompt explains: from the approval on, once for every prompt, beside the raw score."""

from __future__ import annotations

import hashlib
import time
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from sqlalchemy import Engine, text

from benchmarks.null_replay import WIDTH, NullReplay, null_pack
from monitor import operate
from monitor.settings import DriftSettings
from monitor.store.adjustments import load_expectations
from monitor.store.baselines import approve_baseline
from monitor.store.database import transaction
from monitor.values.features import Covariate
from monitor.values.prompts import Prompt
from monitor.values.scores import Replayed
from tests.worker.working import FEATURES, number, prompts, run_until, send, settings_for, working

pytestmark = pytest.mark.slow

SCORED = "SELECT count(*) FROM monitor_data.scores"
ADJUSTED = "SELECT count(adjusted) FROM monitor_data.scores"
COVARIATES = tuple(
    Covariate(
        name=f"prompt.{n}", site=0, region="prompt", weight=np.eye(WIDTH, dtype=np.float32)[n]
    )
    for n in range(2)
)


class Topical(NullReplay):
    """Every prompt has covariates of its own, and the first of them moves the first feature."""

    def _replayed(self, prompt: Prompt) -> Replayed:
        drawn = super()._replayed(prompt)
        digest = hashlib.blake2b(str(prompt.prompt_id).encode(), digest_size=8).digest()
        read = np.random.default_rng(int.from_bytes(digest, "big")).normal(size=2) * 2
        readings = drawn.readings.copy()
        readings[0] += read[0]
        return Replayed(
            prompt=prompt,
            readings=readings,
            pooled_tokens=drawn.pooled_tokens,
            prompt_tokens=10,
            response_tokens=10,
            covariates=read.astype(np.float32),
        )


@pytest.mark.parametrize("adjust", [True, False])
def test_prompts_after_the_approval_have_both_scores(
    database: Engine, kafka_bootstrap: str, topic: str, adjust: bool
) -> None:
    settings = settings_for(kafka_bootstrap, topic).model_copy(
        update={"drift": DriftSettings(min_baseline_n=300, adjust=adjust)}
    )
    send(kafka_bootstrap, topic, prompts(400))
    pack = null_pack(FEATURES, covariates=COVARIATES)
    with working(database, settings, Topical(FEATURES), pack=pack) as worker:
        run_until(worker, database, SCORED, 400)
        assert number(database, ADJUSTED) == 0
        assert number(database, "SELECT count(covariates) FROM monitor_data.scores") == 400
        now = datetime.now(UTC) + timedelta(minutes=2)
        with transaction(database) as c:
            made = operate.capture_baseline(
                c, settings, name="b", start=now - timedelta(hours=1), end=now, now=now
            )
            approve_baseline(c, made.baseline_id, "ada", now)
    assert set(made.expectations) == ({0} if adjust else set())
    send(kafka_bootstrap, topic, prompts(200, start=400))
    with working(database, settings, Topical(FEATURES), pack=pack) as worker:
        run_until(worker, database, SCORED, 600)
    assert number(database, ADJUSTED) == (200 if adjust else 0)
    if not adjust:
        return
    with transaction(database) as c:
        (one,) = load_expectations(c, made.baseline_id).values()
        rows = c.execute(
            text(
                "SELECT scores, covariates, adjusted FROM monitor_data.scores WHERE adjusted_id < 0"
            )
        ).all()
        counted = c.execute(
            text("""
                SELECT sum(n) AS n, sum(total) AS total FROM monitor_data.buckets
                WHERE lineage_id < 0 AND segment = 'all' AND feature = 0
            """)
        ).one()
        others = c.scalar(
            text("SELECT count(*) FROM monitor_data.buckets WHERE lineage_id < 0 AND feature > 0")
        )
        raw = c.scalar(
            text("""
                SELECT sum(n) FROM monitor_data.buckets
                WHERE lineage_id > 0 AND segment = 'all' AND feature = 0
            """)
        )
    assert one.explained > 0.7
    expected = [one.intercept + np.dot(one.weights, row.covariates) for row in rows]
    found = [row.adjusted[0] for row in rows]
    np.testing.assert_allclose(
        [row.scores[0] for row in rows] - np.array(expected), found, atol=1e-5
    )
    assert all(row.adjusted[1:] == [None] * (FEATURES - 1) for row in rows)
    assert (counted.n, raw, others) == (200, 600, 0)
    assert counted.total == pytest.approx(sum(found), abs=1e-3)


def test_a_running_worker_takes_a_new_baseline_up(
    database: Engine, kafka_bootstrap: str, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monitor.worker.PRESENCE_EVERY", timedelta(0))
    settings = settings_for(kafka_bootstrap, topic).model_copy(
        update={"drift": DriftSettings(min_baseline_n=300)}
    )
    send(kafka_bootstrap, topic, prompts(400))
    pack = null_pack(FEATURES, covariates=COVARIATES)
    with working(database, settings, Topical(FEATURES), pack=pack) as worker:
        deadline = time.monotonic() + 60
        while number(database, SCORED) < 400 and time.monotonic() < deadline:
            worker.step()
        now = datetime.now(UTC) + timedelta(minutes=2)
        with transaction(database) as c:
            made = operate.capture_baseline(
                c, settings, name="b", start=now - timedelta(hours=1), end=now, now=now
            )
            approve_baseline(c, made.baseline_id, "ada", now)
        send(kafka_bootstrap, topic, prompts(50, start=400))
        while number(database, SCORED) < 450 and time.monotonic() < deadline:
            worker.step()
    assert number(database, ADJUSTED) == 50
