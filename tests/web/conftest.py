"""A database as the loops leave it, and the face on it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import pytest
from sqlalchemy import Engine
from starlette.testclient import TestClient

from monitor.heartbeat import Heartbeat
from monitor.store.database import transaction
from monitor.store.drift import save_drifts
from monitor.store.packs import register_pack
from monitor.store.workers import heartbeat, record_canary_run
from monitor.values.scores import CanaryRun
from monitor.web.app import create_app
from tests.web.scene import LINEAGE, NOW, PACK, drift_row, feature


@pytest.fixture
def watched(database: Engine) -> Engine:
    """A pack of two features, a worker, a canary run and three hours of drift a minute apart."""
    rows = [
        drift_row(name, NOW - timedelta(minutes=minute), shift, hours=hours, segment=segment)
        for minute in range(1, 181)
        for name, shift in (("toxic", 1.5 - minute / 120), ("assistant", 0.02))
        for hours in (0.25, 1)
        for segment in ("all", "route=/<chat>")
    ]
    run = CanaryRun(
        worker_id="w-1",
        ran_at=NOW - timedelta(minutes=4),
        lineage=LINEAGE,
        largest_deviation=0.0012,
        noise_floor=0.05,
        reproduced=True,
    )
    with transaction(database) as c:
        register_pack(c, PACK, "personas", {}, [feature("toxic"), feature("assistant", falls=True)])
        heartbeat(c, "w-1", "monitor", PACK, "running", NOW - timedelta(seconds=20))
        record_canary_run(c, run)
        save_drifts(c, rows)
    return database


@pytest.fixture
def client_of() -> Callable[..., TestClient]:
    """``client_of(database, now=…)``: a client of the face."""

    def make(database: Engine | None, *, now: datetime = NOW) -> TestClient:
        app = create_app(database, Heartbeat(), dict, clock=lambda: now)
        return TestClient(app)

    return make
