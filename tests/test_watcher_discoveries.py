"""The watcher lists which streams have changed, with a bounded share of false ones, on a real PostgreSQL."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sqlalchemy import text

from monitor.settings import TwinSettings
from monitor.watcher import Watcher
from tests.scenes.twinned import Twinned
from tests.traffic import settings_of


@pytest.fixture
def template(hour):
    return hour.template


@pytest.fixture
def traffic(hour, database):
    """After a quiet hour without a twin."""
    other = hour.resumed(database)
    other.__class__ = Twinned
    return other


@pytest.fixture
def settings():
    return settings_of(twin=TwinSettings(share=0.2))


@pytest.fixture
def watcher(database, settings, traffic):
    return Watcher(database, settings, clock=traffic.now)


def listed(database):
    with database.connect() as c:
        rows = c.execute(
            text("""
                SELECT family, feature, segment, served, alternative, since, found_at, log_e, log_e_line, streams
                FROM monitor.discoveries ORDER BY family
            """)
        )
        return rows.all()


def test_what_changed_is_listed_and_what_did_not_is_not(traffic, settings, watcher, database):
    traffic.approve(settings)
    approved = traffic.minute
    traffic.minutes(5, watcher=watcher)
    assert listed(database) == []
    traffic.served = (1.5, 0.0)
    seen = traffic.minutes(12, watcher=watcher)
    found = listed(database)
    assert [(row.family, row.feature, row.segment) for row in found] == [
        ("drift", "toxic", "all"),
        ("twin", "toxic", "all"),
    ]
    # Two features have a detector each, and a twin each.
    assert {row.streams for row in found} == {4}
    # The second of two that are found needs half of what the first alone would.
    assert {round(row.log_e_line, 6) for row in found} == {round(math.log(4 / (0.05 * 2)), 6)}
    assert all(row.log_e >= row.log_e_line and row.served is None for row in found)
    drift = found[0]
    assert drift.since <= approved < drift.found_at < traffic.minute
    with database.connect() as c:
        history = c.execute(
            text("""
                SELECT feature, discovery, log_e, log_e_line FROM monitor.drift_history
                WHERE window_name = '15m' ORDER BY evaluated_at DESC, feature LIMIT 2
            """)
        ).all()
    assert [(row.feature, row.discovery) for row in history] == [
        ("assistant", False),
        ("toxic", True),
    ]
    assert history[1].log_e == pytest.approx(drift.log_e)
    shown = {d.feature: d.discovery for d in seen[-1].drifts if d.window == "15m"}
    assert shown == {"assistant": False, "toxic": True}


def test_it_stays_listed_when_the_traffic_is_back(traffic, settings, watcher, database):
    """The list says that it changed at some time since the approval; alerts say what is now."""
    traffic.approve(settings)
    traffic.served = (1.5, 0.0)
    traffic.minutes(12, watcher=watcher)
    before = {row.family: row.found_at for row in listed(database)}
    traffic.served = (0.0, 0.0)
    traffic.minutes(3, watcher=watcher)
    assert {row.family: row.found_at for row in listed(database)} == before


def test_a_new_baseline_begins_anew(traffic, settings, watcher, database):
    traffic.approve(settings)
    traffic.asks = (1.5, 0.0)
    traffic.minutes(12, watcher=watcher)
    assert [row.family for row in listed(database)] == ["drift"]
    traffic.minutes(60)
    traffic.approve(settings)
    traffic.minutes(2, watcher=watcher)
    assert listed(database) == []


def test_without_a_baseline_twins_alone_are_tested(traffic, watcher, database):
    traffic.served = (1.5, 0.0)
    traffic.minutes(10, watcher=watcher)
    (row,) = listed(database)
    assert (row.family, row.streams) == ("twin", 2)


def test_a_restart_in_the_middle_changes_nothing(traffic, settings, database):
    traffic.approve(settings)
    for shift in [0.0] * 4 + [1.5] * 8:
        traffic.served = (shift, 0.0)
        seen = traffic.minutes(1, watcher=Watcher(database, settings, clock=traffic.now))
    with database.connect() as c:
        kept = c.execute(
            text("""
                SELECT process_steps, process_values, log_e FROM monitor_data.detectors
                WHERE feature = 0
            """)
        ).one()
    assert kept.process_steps >= 11
    assert np.isfinite(kept.process_values).all()
    (tested,) = [
        one
        for one in seen[-1].packs[0].discoveries.streams
        if (one.family, one.feature) == ("drift", "toxic")
    ]
    assert tested.log_e == pytest.approx(kept.log_e)
    assert tested in seen[-1].packs[0].discoveries.found


def test_rows_of_a_release_before_begin_their_process_with_the_next_bucket(
    traffic, settings, watcher, database
):
    traffic.approve(settings)
    traffic.minutes(3, watcher=watcher)
    with database.begin() as c:
        for table in ("detectors", "twin_detectors"):
            c.execute(
                text(f"""
                    UPDATE monitor_data.{table} SET process_since = NULL, process_steps = NULL,
                        process_values = NULL, log_e = NULL
                """)
            )
    upgraded = traffic.minute
    traffic.minutes(3, watcher=watcher)
    with database.connect() as c:
        found = c.execute(
            text("SELECT process_since, process_steps, steps FROM monitor_data.detectors")
        ).all()
    assert {(row.process_steps, row.steps) for row in found} <= {(2, 5), (3, 5), (3, 6), (3, 7)}
    assert all(abs((row.process_since - upgraded).total_seconds()) <= 180 for row in found)
