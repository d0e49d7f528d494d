"""The probes: liveness by heartbeats alone, readiness with reasons, metrics as scraped."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as prometheus
from starlette.testclient import TestClient

from monitor.heartbeat import Heartbeat
from monitor.metrics import METRICS
from monitor.web.app import create_app


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def face(heartbeat: Heartbeat, checks: Mapping[str, bool | str] | None = None) -> TestClient:
    app = create_app(None, heartbeat, lambda: checks or {}, live_within=timedelta(seconds=60))
    return TestClient(app)


def test_alive_while_every_loop_goes_round() -> None:
    clock = Clock()
    heartbeat = Heartbeat(clock)
    client = face(heartbeat)
    assert client.get("/livez").json()["alive"] is True, "nothing has started: the model loads"
    heartbeat.beat("worker")
    heartbeat.beat("watcher")
    clock.now += 59
    assert client.get("/livez").status_code == 200
    heartbeat.beat("watcher")
    clock.now += 2
    answer = client.get("/livez")
    assert answer.status_code == 503
    assert answer.json()["silent"] == ["worker"]
    heartbeat.retire("worker")
    assert client.get("/livez").status_code == 200, "a loop that ended as it should is not missed"


def test_ready_only_when_everything_is_and_says_what_is_not() -> None:
    ready = face(Heartbeat(), {"model": True, "database": True})
    assert ready.get("/readyz").status_code == 200
    waiting = face(Heartbeat(), {"model": "is being loaded", "database": False, "assignment": True})
    answer = waiting.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["waiting_for"] == ["database", "model"]
    assert answer.json()["checks"]["model"] == "is being loaded"


def test_metrics_hold_every_documented_metric_with_fresh_heartbeats() -> None:
    clock = Clock()
    heartbeat = Heartbeat(clock)
    heartbeat.beat("courier")
    clock.now += 7
    METRICS.prompts_scored.inc(0)
    answer = face(heartbeat).get("/metrics")
    families = {family.name: family for family in prometheus(answer.text)}
    documented = {row.name.removesuffix("_total") for row in METRICS.table}
    assert documented <= set(families)
    ages = families["monitor_loop_heartbeat_age_seconds"].samples
    assert [(s.labels["loop"], s.value) for s in ages] == [("courier", 7.0)]
    assert "process_resident_memory_bytes" in families
    assert families["monitor_build_info"].samples[0].value == 1


def test_metrics_as_openmetrics_when_asked() -> None:
    answer = face(Heartbeat()).get(
        "/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"}
    )
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert {family.name for family in openmetrics(answer.text)} >= {"monitor_records"}


def test_without_a_database_there_are_only_health_and_metrics() -> None:
    client = face(Heartbeat())
    assert client.get("/").status_code == 404
    assert client.get("/api/overview").status_code == 404
