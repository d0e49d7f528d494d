"""How many segments there are is the store's to know: neither a restart nor a second worker adds any."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine, text

from monitor.segments import LOOK_AGAIN, Segments
from monitor.settings import IngestSettings
from monitor.store.database import transaction
from monitor.store.segments import admit_segments
from monitor.values.prompts import Message, Prompt, RecordKey
from tests.worker.working import number, run_until, send, settings_for, working

SCORED = "SELECT count(*) FROM monitor_data.scores"
NOW = datetime(2026, 3, 14, 12, tzinfo=UTC)
SETTINGS = IngestSettings(segment_keys=("tenant",), max_segments=3)


def of_tenants(names: list[str]) -> list[bytes]:
    return [
        json.dumps(
            {"id": name, "prompt": "text", "response": "yes", "segment": {"tenant": name}}
        ).encode()
        for name in names
    ]


def stored(database: Engine) -> set[str]:
    with transaction(database) as c:
        return set(c.scalars(text("SELECT DISTINCT segment FROM monitor_data.buckets")))


def test_a_restart_lets_no_more_segments_in(
    database: Engine, kafka_bootstrap: str, topic: str
) -> None:
    """102 of them, and after a restart 202, where 100 were the limit."""
    settings = settings_for(kafka_bootstrap, topic, segment_keys=("tenant",), max_segments=3)
    for turn in (1, 2):
        send(kafka_bootstrap, topic, of_tenants([f"t{turn}-{i}" for i in range(5)]))
        with working(database, settings) as worker:
            run_until(worker, database, SCORED, 5 * turn)
        assert stored(database) == {
            *("all", "tenant=t1-0", "tenant=t1-1", "tenant=t1-2", "tenant=(other)"),
        }
    others = (
        "SELECT sum(n) FROM monitor_data.buckets WHERE segment = 'tenant=(other)' AND feature = 0"
    )
    assert number(database, others) == 7


def prompt(tenant: str) -> Prompt:
    return Prompt(
        key=RecordKey(topic="prompts", partition=0, offset=0),
        recorded_at=NOW,
        messages=(Message(role="user", content="text"),),
        segment={"tenant": tenant},
    )


def test_two_workers_share_the_places(database: Engine) -> None:
    one, other = (Segments(database, "monitor", SETTINGS) for _ in range(2))
    one.admit([prompt("a"), prompt("b")], NOW)
    other.admit([prompt("c"), prompt("d"), prompt("b")], NOW)
    assert [other.of(prompt(name))[1] for name in "abcd"] == [
        *("tenant=a", "tenant=b", "tenant=c", "tenant=(other)"),
    ]
    assert one.of(prompt("c")) == ("all", "tenant=(other)"), "not asked about yet"
    one.admit([prompt("c")], NOW)
    assert one.of(prompt("c")) == ("all", "tenant=c")


def test_a_place_that_nobody_uses_is_given_up(database: Engine) -> None:
    segments = Segments(database, "monitor", SETTINGS)
    segments.admit([prompt(name) for name in "abc"], NOW)
    segments.admit([prompt("d")], NOW)
    assert segments.of(prompt("d")) == ("all", "tenant=(other)")
    with transaction(database) as c:
        c.execute(
            text(
                "UPDATE monitor_data.segments SET last_seen_at = last_seen_at - interval '46 days'"
            )
        )
    segments.admit([prompt("d")], NOW + LOOK_AGAIN / 2)
    assert segments.of(prompt("d")) == ("all", "tenant=(other)"), "it is full, and knows it"
    later = Segments(database, "monitor", SETTINGS)
    later.admit([prompt("a"), prompt("d")], NOW)
    assert [later.of(prompt(name))[1] for name in "abcd"] == [
        *("tenant=a", "tenant=(other)", "tenant=(other)", "tenant=d"),
    ]
    segments.admit([prompt("d")], NOW + LOOK_AGAIN)
    assert segments.of(prompt("b")) == ("all", "tenant=(other)"), "learnt within the hour"


@pytest.mark.parametrize("name", ["long" * 200, "nul\0inside"])
def test_names_are_known_as_they_are_stored(database: Engine, name: str) -> None:
    with transaction(database) as c:
        first = admit_segments(c, "monitor", [f"tenant={name}"], 3, timedelta(days=1))
        assert admit_segments(c, "monitor", [f"tenant={name}"], 3, timedelta(days=1)) == first
    assert len(first) == 1
