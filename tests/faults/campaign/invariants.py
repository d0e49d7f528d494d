"""What must hold after every fault, whatever was broken; each check raises `AssertionError` with what differs.

`at_any_moment` reads one snapshot of the database while everything goes on. `at_rest` is for a moment
when nothing is sent and nothing waits.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg

from monitor.demo.receiver import Received
from tests.faults.campaign.actors import FEATURES
from tests.faults.campaign.schedule import ENDPOINTS
from tests.faults.campaign.stage import Stage

KEY = "topic, partition, record_offset, record_index"


@dataclass(slots=True)
class Heard:
    """What an endpoint has accepted so far: of each alert the first events, in their order."""

    requests: int = 0
    ids: set[str] = field(default_factory=set)
    last: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def hear(self, name: str, received: Sequence[Received]) -> None:
        for request in received[self.requests :]:
            self.requests += 1
            message = request.headers["webhook-id"]
            if not request.accepted or message in self.ids:
                continue  # told again, for its answer did not arrive
            assert request.verified, f"{name}: a signature that does not hold"
            self.ids.add(message)
            data = request.json["data"]
            alert_id, sequence = data["alert_id"], data["sequence"]
            assert sequence == self.last[alert_id] + 1, (
                f"{name}: alert {alert_id}: {sequence} came after {self.last[alert_id]}"
            )
            self.last[alert_id] = sequence


@dataclass(slots=True)
class Ledger:
    """What was checked before: rows are compared one by one once, and counted every time."""

    checked: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    scored: int = 0
    dead: int = 0
    heard: dict[str, Heard] = field(default_factory=lambda: defaultdict(Heard))

    def at_any_moment(self, stage: Stage) -> None:
        with stage.sessions() as session:
            session.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            offsets = _offsets(session)
            self._each_record_once(stage, session, offsets)
            self._sums_are_equal(session, offsets)
            _alerts_in_order(session)
        for name in ENDPOINTS:
            self.heard[name].hear(name, stage.receivers[name].received)

    def at_rest(self, stage: Stage) -> None:
        with stage.sessions() as session:
            assert not stage.load.unknown, f"not acknowledged: {stage.load.unknown[:5]}"
            assert _offsets(session) == stage.load.ends()
            self.checked.clear()  # all of them anew
            self.at_any_moment(stage)
            valid = sum(one.valid for one in stage.load.sent.values())
            assert (self.scored, self.dead) == (valid, len(stage.load.sent) - valid)
            for table in ("scores", "dead_letters"):
                twice = f"SELECT {KEY} FROM monitor_data.{table} GROUP BY {KEY} HAVING count(*) > 1"
                assert not _rows(session, twice), f"twice in {table}"

    def _each_record_once(
        self, stage: Stage, session: psycopg.Connection[Any], offsets: dict[int, int]
    ) -> None:
        """Every offset below the stored one lies in one of the two tables, once, as what was sent there."""
        found: dict[tuple[int, int], list[str | None]] = defaultdict(list)
        for partition, end in offsets.items():
            since = (partition, self.checked[partition])
            for table, what in (("scores", "prompt_id"), ("dead_letters", "NULL")):
                query = (
                    f"SELECT record_offset, {what} FROM monitor_data.{table}"
                    " WHERE partition = %s AND record_offset >= %s"
                )
                for offset, record_id in _rows(session, query, since):
                    found[partition, offset].append(record_id)
            for offset in range(self.checked[partition], end):
                sent = stage.load.sent.get((partition, offset))
                if sent is None:
                    continue  # the broker's acknowledgement is on its way; counted at rest
                is_stored = found.pop((partition, offset), [])
                assert is_stored == [sent.record_id if sent.valid else None], (
                    f"partition {partition}, offset {offset}: sent {sent}, stored {is_stored}"
                )
            self.checked[partition] = end
        beyond = [key for key in found if key not in stage.load.sent or key[1] >= offsets[key[0]]]
        assert not [key for key in beyond if key[1] >= offsets[key[0]]], f"stored ahead: {beyond}"

    def _sums_are_equal(self, session: psycopg.Connection[Any], offsets: dict[int, int]) -> None:
        (scored,), (dead,) = (
            _rows(session, f"SELECT count(*) FROM monitor_data.{table}")[0]
            for table in ("scores", "dead_letters")
        )
        assert scored + dead == sum(offsets.values())
        assert scored >= self.scored, "scores are gone"
        assert dead >= self.dead, "dead letters are gone"
        self.scored, self.dead = scored, dead
        sums = ", ".join(f"sum(scores[{n + 1}]::float8)" for n in range(FEATURES))
        (totals,) = _rows(session, f"SELECT {sums} FROM monitor_data.scores")
        buckets = _rows(
            session,
            "SELECT feature, sum(n), sum(total) FROM monitor_data.buckets"
            " WHERE segment = 'all' GROUP BY feature ORDER BY feature",
        )
        for (feature, n, total), exact in zip(buckets, totals, strict=True):
            assert n == scored, f"feature {feature}: {n} in buckets, {scored} scores"
            assert abs(total - exact) < 1e-3, f"feature {feature}: sum {total} in buckets, {exact}"
        counts = dict(
            _rows(
                session,
                "SELECT split_part(outcome, ':', 1), sum(n) FROM monitor_data.ingest_counts"
                " GROUP BY 1",
            )
        )
        assert (counts.get("scored", 0), counts.get("dead", 0)) == (scored, dead)


def _alerts_in_order(session: psycopg.Connection[Any]) -> None:
    """An alert begins once, goes on and ends once; of one condition no two are open."""
    lives: dict[str, list[tuple[int, str]]] = defaultdict(list)
    events = "SELECT alert_id, sequence, type FROM monitor_data.events ORDER BY alert_id, sequence"
    for alert_id, sequence, type in _rows(session, events):
        lives[alert_id].append((sequence, type.partition(".")[2]))
    for alert_id, life in lives.items():
        numbers, types = zip(*life, strict=True)
        assert list(numbers) == list(range(1, len(life) + 1)), f"alert {alert_id}: {life}"
        assert types[0] == "detected", f"alert {alert_id}: {life}"
        assert types.count("detected") == 1, f"alert {alert_id}: {life}"
        assert "resolved" not in types[:-1], f"alert {alert_id}: {life}"
    overlap = """
        SELECT one.alert_id, other.alert_id FROM monitor_data.alerts AS one
        JOIN monitor_data.alerts AS other USING (dedupe_key)
        WHERE one.alert_id < other.alert_id AND one.pending_since < coalesce(other.resolved_at, 'infinity')
            AND other.pending_since < coalesce(one.resolved_at, 'infinity')"""
    assert not _rows(session, overlap), "two alerts of one condition at once"
    given_up = "SELECT delivery_id FROM monitor_data.deliveries WHERE state = 'given_up'"
    assert not _rows(session, given_up), "deliveries given up"


def untold(stage: Stage) -> list[str]:
    """What was announced and has not come to each endpoint, or came and was never announced."""
    with stage.sessions() as session:
        told = {row[0] for row in _rows(session, "SELECT event_id FROM monitor_data.events")}
        waiting = _rows(
            session, "SELECT delivery_id FROM monitor_data.deliveries WHERE state <> 'delivered'"
        )
    found = [f"delivery {number} waits" for (number,) in waiting]
    for name in ENDPOINTS:
        got = {one.headers["webhook-id"] for one in stage.receivers[name].events}
        found += [f"{name} never got {event}" for event in told - got]
        found += [f"{name} got {event}, which nobody announced" for event in got - told]
    return found


def _offsets(session: psycopg.Connection[Any]) -> dict[int, int]:
    return dict(_rows(session, "SELECT partition, next_offset FROM monitor_data.offsets"))


def _rows(
    session: psycopg.Connection[Any], query: str, given: tuple[Any, ...] | None = None
) -> list[tuple[Any, ...]]:
    return session.execute(query, given).fetchall()
