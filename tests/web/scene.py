"""Made-up drift, alerts and features for the face to show."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
from sqlalchemy import Engine

from monitor.store.alerts import save_alert
from monitor.store.database import transaction
from monitor.values.alerts import Alert, AlertState, Event
from monitor.values.drift import Bound, Drift
from monitor.values.features import Calibration, Feature
from monitor.values.scores import Lineage
from monitor.values.witnesses import Cause

NOW = datetime(2026, 3, 14, 12, tzinfo=UTC)
PACK = "ab" * 32
LINEAGE = Lineage(
    pack_id=PACK,
    model_id="small",
    model_hash="0" * 64,
    dtype="float32",
    attention="sdpa",
    device="cpu",
    engine="1",
    rules="{}",
)


def feature(name: str, *, falls: bool = False) -> Feature:
    return Feature(
        name=name,
        kind="direction",
        site=3,
        region="response",
        pooling="mean",
        weight=np.ones(4, dtype=np.float32),
        calibration=Calibration(tokens=(1.0,), means=(0.0,), deviations=(1.0,)),
        expected="falls" if falls else "rises",
        description=f"what {name} means",
    )


def drift_row(
    name: str, at: datetime, shift: float, *, hours: float = 1, segment: str = "all"
) -> Drift:
    return Drift(
        baseline_id="base",
        pack_id=PACK,
        feature=name,
        segment=segment,
        window_start=at - timedelta(hours=hours),
        window_end=at,
        n=1_200,
        baseline_n=5_000,
        pooled_baseline=False,
        mean=shift,
        baseline_mean=0.0,
        shift=Bound(value=shift, low=shift - 0.1, high=shift + 0.1),
        psi=0.02,
        ks=0.03,
        tail_rate=0.01,
        baseline_tail_rate=0.01,
        tail_ratio=Bound(value=1.0, low=0.5, high=float("inf")),
        evidence=0.0,
        cause=Cause.INPUT_SHIFT,
        evaluated_at=at,
    )


def firing(summary: str, *, alert_id: str = "alert1", severity: str = "critical") -> Alert:
    return Alert(
        alert_id=alert_id,
        dedupe_key=alert_id,
        rule="persona-drift",
        kind="drift",
        severity="critical" if severity == "critical" else "warning",
        state=AlertState.FIRING,
        summary=summary,
        labels={"feature": "toxic"},
        details={},
        pending_since=NOW - timedelta(minutes=9),
        last_active_at=NOW,
        fired_at=NOW - timedelta(minutes=7),
        sequence=1,
    )


def announce(database: Engine, alert: Alert) -> None:
    event = Event(
        event_id=f"event-{alert.alert_id}",
        alert_id=alert.alert_id,
        type="drift.detected",
        sequence=1,
        created_at=NOW,
        alert=alert,
    )
    with transaction(database) as c:
        save_alert(c, alert, event, ["pager"])
