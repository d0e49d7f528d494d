"""`monitor power` as a person calls it, on stored history of which it is known what can be seen."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
import yaml

from monitor.drift.histogram import EDGES, floor_time
from monitor.settings import load
from monitor.store.buckets import add_buckets
from monitor.store.database import transaction
from monitor.store.packs import lineage_id_of, register_pack, stated_separations
from monitor.store.workers import heartbeat
from monitor.values.scores import SCORE_BINS, Bucket
from tests.traffic import FEATURES, LINEAGE, MINUTE, PACK, Traffic

HOUR = timedelta(hours=1)
SETTINGS = {
    "windows": {"15m": "PT15M", "1h": "PT1H"},
    "rules": [
        {"name": "mean", "features": ["toxic"], "severities": {"warning": {"shift": 0.3}}},
        {"name": "tail", "features": ["toxic"], "severities": {"warning": {"tail_ratio": 3}}},
    ],
}
REPORT = {
    "report": {
        "sources": {
            "a": {
                "features": {"toxic": {"shift": 2.0}, "assistant": {"shift": -1.0}, "odd": 3},
                "judge": {
                    "features": {"toxic": {"separation": {"shift_in_benign_deviations": 5.0}}}
                },
            }
        }
    }
}


def minutes(start, count, *, n=60, seed=5):
    """Buckets of normal scores of both features, each minute's own."""
    generator = np.random.default_rng(seed)
    for minute in range(count):
        for index, feature in enumerate(FEATURES):
            scores = generator.normal(size=n)
            bins = np.searchsorted(EDGES, scores, side="right")
            yield Bucket(
                bucket_start=start + minute * MINUTE,
                bucket_seconds=60,
                feature=index,
                segment="all",
                source="prompts/0",
                n=n,
                total=float(scores.sum()),
                total_squares=float((scores**2).sum()),
                histogram=np.bincount(bins, minlength=SCORE_BINS),
                tail_count=int(feature.in_tail(scores).sum()),
            )


def stored(database, hours):
    """So many hours of history, that end an hour ago, with a baseline of the first four."""
    now = floor_time(datetime.now(UTC), HOUR)
    start = now - hours * HOUR
    with transaction(database) as c:
        register_pack(c, PACK, "test pack", REPORT, FEATURES)
        add_buckets(c, lineage_id_of(c, LINEAGE), minutes(start, (hours - 1) * 60))
        heartbeat(c, "w1", "monitor", PACK, "running", now)
    return start


@pytest.fixture
def configuration(on_database):
    content = yaml.safe_load(on_database.read_text())
    on_database.write_text(yaml.safe_dump({**content, "drift": SETTINGS}))
    return on_database


def approve(database, configuration, start):
    traffic = Traffic(database)
    traffic.minute = start + 4 * HOUR
    return traffic.approve(load(configuration), last=4 * HOUR)


def test_what_can_be_seen_within_an_hour_and_what_takes_more_history(cli, configuration, database):
    start = stored(database, 32)
    approve(database, configuration, start)
    asked = ["power", "--from", "2d", "--runs", "5", "--persona", "4"]
    found = json.loads(cli(*asked, "--json", config=configuration).out)
    rows = {row["rule"]: row for row in found}
    assert list(rows) == ["mean", "tail", "always fires", "never fires"]
    mean = rows["mean"]["least"]
    # The rule asks for a lower bound of 0.3: less is never seen, and 0.5 is far beyond it.
    assert mean["shift"]["hour"]["verdict"] == "seen"
    assert 0.3 <= mean["shift"]["hour"]["size"] <= 0.5
    assert 120 <= mean["shift"]["hour"]["median_seconds"] <= 3_600
    assert mean["share"]["hour"]["size"] == 0.1
    # One prompt in a thousand is tail here; a share of 1 % of them makes it six.
    assert rows["tail"]["least"]["share"]["hour"]["size"] <= 0.05
    assert mean["shift"]["day"] == {"size": None, "verdict": "undecided", "median_seconds": None}
    assert rows["mean"]["needed_hours"] == 7 * 24
    assert rows["mean"]["history_hours"] == 27
    assert rows["mean"]["false_alarms"] == 0
    # Three alarms would not be unusual in as many days as the history has, if none was seen.
    assert rows["mean"]["false_alarms_at_most"] == pytest.approx(3.0 * 30 / (27 / 24), rel=0.01)
    assert rows["always fires"]["least"]["share"]["hour"]["verdict"] == "fires anyway"
    assert rows["always fires"]["false_alarms"] == 30 * 24 * 6
    assert rows["never fires"]["least"]["shift"]["hour"]["verdict"] == "not seen"
    assert rows["never fires"]["false_alarms"] == 0
    assert json.loads(cli(*asked, "--json", config=configuration).out) == found

    shown = cli("power", "--from", "2d", "--runs", "5", config=configuration)
    for words in ("mean", "always fires", "undecided", "as the pack states, 5"):
        assert words in shown.out
    assert "7 days of it decide all" in shown.err


def test_too_little_history_decides_nothing_and_says_how_much_would(cli, configuration, database):
    start = stored(database, 12)
    approve(database, configuration, start)
    shown = cli("power", "--from", "2d", "--json", config=configuration)
    for row in json.loads(shown.out):
        assert row["false_alarms"] is None
        assert row["needed_hours"] == 7 * 24
        verdicts = {one["verdict"] for its in row["least"].values() for one in its.values()}
        assert verdicts == {"undecided"}


def test_what_is_wrong_is_named(cli, configuration, database):
    start = stored(database, 12)
    for given, said in (
        ([], "has no approved baseline"),
        (["--from", "x"], "--from: 'x' is no date or time"),
        (["--baseline", "none"], "has no baseline 'none'"),
    ):
        refused = cli("power", *given, config=configuration)
        assert refused.code == 2
        assert said in refused.err
    approve(database, configuration, start)
    refused = cli("power", "--feature", "toxik", config=configuration)
    assert refused.code == 2
    assert "--feature: no rule watches such a feature" in refused.err
    assert "The pack has toxic, assistant." in refused.err


def test_the_separation_is_the_judges_else_the_builders(database):
    stored(database, 2)
    with transaction(database) as c:
        assert stated_separations(c, PACK) == {"toxic": 5.0, "assistant": -1.0}
