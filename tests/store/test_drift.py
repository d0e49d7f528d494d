"""Baselines and their life, drift history, detectors, canaries."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
from sqlalchemy import Engine, text

from monitor.errors import BadInput
from monitor.store.baselines import (
    approve_baseline,
    list_baselines,
    load_baseline,
    retire_baseline,
    save_baseline,
)
from monitor.store.database import transaction
from monitor.store.discoveries import read_discoveries, save_discoveries
from monitor.store.drift import load_detectors, save_detectors, save_drifts
from monitor.store.ingest import ingest_health
from monitor.store.packs import pack_presence
from monitor.store.workers import heartbeat, latest_canaries, record_canary_run
from monitor.values.drift import (
    DetectorState,
)
from monitor.values.evidence import Discoveries, EProcess, StreamEvidence
from monitor.values.scores import SCORE_BINS, CanaryRun
from tests.store.builders import HOUR, LINEAGE, NOON, PACK, baseline, drift, known_pack, register


@pytest.fixture(autouse=True)
def _pack(database: Engine) -> None:
    known_pack(database)


def test_baseline_comes_back_as_it_was(database: Engine) -> None:
    given = baseline("b1")
    with transaction(database) as c:
        save_baseline(c, given)
        kept = load_baseline(c, "b1")
        assert load_baseline(c, "unknown") is None
        assert load_baseline(c, None, PACK) is None
    assert kept is not None
    assert replace(kept, streams={}) == replace(given, streams={})
    assert set(kept.streams) == set(given.streams)
    for key, stream in kept.streams.items():
        assert stream.design_effect == 1.5
        assert stream.tail_design_effect == 1.25
        assert stream.window.histogram.tolist() == list(range(SCORE_BINS))
        assert replace(stream.window, histogram=given.streams[key].window.histogram) == (
            given.streams[key].window
        )


def test_baseline_ids_are_used_once(database: Engine) -> None:
    with pytest.raises(BadInput, match="'b1' exists"), transaction(database) as c:
        save_baseline(c, baseline("b1"))
        save_baseline(c, baseline("b1"))


def test_life_of_a_baseline(database: Engine) -> None:
    with transaction(database) as c:
        for name in ("b1", "b2"):
            save_baseline(c, baseline(name))
        approve_baseline(c, "b1", "ada", NOON)
        approve_baseline(c, "b2", "grace", NOON + HOUR)
        approved = load_baseline(c, None, PACK)
        listed = {row["baseline_id"]: row for row in list_baselines(c)}
        assert approved is not None
        assert (approved.baseline_id, approved.approved_by) == ("b2", "grace")
        assert listed["b1"]["status"] == "retired"
        assert listed["b1"]["retired_by"] == "grace"
        assert listed["b1"]["streams"] == 6
        retire_baseline(c, "b2", "ada", NOON + 2 * HOUR)
        assert load_baseline(c, None, PACK) is None
        for refused in (approve_baseline, retire_baseline):
            with pytest.raises(BadInput, match="retired"):
                refused(c, "b1", "ada", NOON)
            with pytest.raises(BadInput, match="no baseline 'b9'"):
                refused(c, "b9", "ada", NOON)


def test_each_pack_has_its_own_approved_baseline(database: Engine) -> None:
    with transaction(database) as c:
        register(c, "pack-2")
        save_baseline(c, baseline("b1"))
        save_baseline(c, baseline("b2", pack_id="pack-2"))
        approve_baseline(c, "b1", "ada", NOON)
        approve_baseline(c, "b2", "ada", NOON)
        first, second = load_baseline(c, None, PACK), load_baseline(c, None, "pack-2")
    assert first is not None
    assert second is not None
    assert (first.baseline_id, second.baseline_id) == ("b1", "b2")


def test_two_approvals_at_once_leave_one_approved(database: Engine) -> None:
    with transaction(database) as c:
        for name in ("b1", "b2", "b3"):
            save_baseline(c, baseline(name))

    def approve(name: str) -> None:
        with transaction(database) as c:
            approve_baseline(c, name, "ada", NOON)

    threads = [threading.Thread(target=approve, args=(name,)) for name in ("b1", "b2", "b3")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with transaction(database) as c:
        states = sorted(row["status"] for row in list_baselines(c, PACK))
    assert states == ["approved", "retired", "retired"]


def test_drifts_are_kept_once(database: Engine) -> None:
    given = [drift(), drift("deceptive"), drift(evaluated_at=NOON + HOUR)]
    with transaction(database) as c:
        save_drifts(c, given)
        save_drifts(c, given)
        save_drifts(c, [])
        rows = c.execute(
            text("SELECT feature, psi, tail_ratio_high, cause FROM monitor_data.drifts")
        ).all()
    assert len(rows) == 3
    assert {(row.psi, row.tail_ratio_high, row.cause) for row in rows} == {
        (None, float("inf"), "input_shift")
    }


def test_detectors_never_go_back(database: Engine) -> None:
    state = DetectorState(
        baseline_id="b1",
        feature=1,
        segment="all",
        started_at=NOON,
        last_bucket=NOON + HOUR,
        steps=60,
        log_values=(0.5, float("-inf"), 1e-300),
        process=EProcess(since=NOON, steps=60, log_values=(-3.0, float("-inf"), 0.25), log_e=-0.5),
    )
    behind = replace(state, last_bucket=NOON, steps=1)
    ahead = replace(state, last_bucket=NOON + 2 * HOUR, steps=120)
    with transaction(database) as c:
        save_baseline(c, baseline("b1"))
        save_detectors(c, [state])
        save_detectors(c, [behind])
        assert load_detectors(c, "b1") == {(1, "all"): state}
        save_detectors(c, [ahead, replace(state, feature=2)])
        assert load_detectors(c, "b1")[1, "all"].steps == 120
        assert len(load_detectors(c, "b1")) == 2
        assert load_detectors(c, "b2") == {}


def test_discoveries_are_those_of_the_last_evaluation(database: Engine) -> None:
    toxic = StreamEvidence(family="drift", segment="all", feature="toxic", since=NOON, log_e=9.0)
    served = StreamEvidence(family="identity", segment="all", served="m@1", since=NOON, log_e=8.0)
    quiet = StreamEvidence(family="twin", segment="all", feature="toxic", since=NOON, log_e=0.1)

    def step(hours: int, line: float, *streams: StreamEvidence) -> list[tuple[object, ...]]:
        made = Discoveries(streams=streams, rate=0.05, line=line)
        at = NOON + hours * HOUR
        with transaction(database) as c:
            save_discoveries(c, PACK, made, at)
            assert read_discoveries(c, "another", at) == []
            assert read_discoveries(c, PACK, at + HOUR) == []
            found = read_discoveries(c, PACK, at)
        return [(one["feature"], one["served"], one["found_at"] - NOON) for one in found]

    assert step(1, 7.0, quiet, served, toxic) == [("toxic", None, HOUR), (None, "m@1", HOUR)]
    assert step(2, 8.5, quiet, served, toxic) == [("toxic", None, HOUR)]
    assert step(3, 7.0, served, toxic) == [("toxic", None, HOUR), (None, "m@1", 3 * HOUR)]
    again = replace(toxic, since=NOON + HOUR)
    assert step(4, 8.5, again) == [("toxic", None, 4 * HOUR)], "of another baseline"
    assert step(5, 9.5, again) == []


def test_latest_canaries_of_every_worker(database: Engine) -> None:
    def run(worker: str, hours: int, deviation: float = 0.01) -> CanaryRun:
        return CanaryRun(
            worker_id=worker,
            ran_at=NOON + hours * HOUR,
            lineage=LINEAGE,
            largest_deviation=deviation,
            noise_floor=0.05,
            reproduced=deviation <= 0.05,
        )

    with transaction(database) as c:
        for each in (run("a", 0), run("a", 2, float("nan")), run("b", 1), run("gone", -9)):
            record_canary_run(c, each)
        runs = latest_canaries(c, NOON)
    assert [(r.worker_id, r.ran_at) for r in runs] == [
        *(("a", NOON + 2 * HOUR), ("b", NOON + HOUR))
    ]
    assert runs[0].largest_deviation == float("inf")
    assert runs[1] == run("b", 1)


def test_presence_tells_live_packs_from_those_whose_workers_are_gone(database: Engine) -> None:
    with transaction(database) as c:
        register(c, "pack-2")
        register(c, "pack-3")
        for worker, pack_id, hours in (("a", PACK, 1), ("b", "pack-2", 2), ("c", PACK, 0)):
            heartbeat(
                c,
                worker_id=worker,
                group_id="g",
                pack_id=pack_id,
                state="running",
                at=NOON + hours * HOUR,
            )
        heartbeat(
            c,
            worker_id="d",
            group_id="g",
            pack_id="pack-2",
            state="stopped",
            at=NOON + 2 * HOUR,
        )
        packs = {pack.pack_id: pack for pack in pack_presence(c, NOON + 2 * HOUR)}
        assert {name: (pack.live_workers, pack.last_seen_at) for name, pack in packs.items()} == {
            PACK: (0, NOON + HOUR),
            "pack-2": (1, NOON + 2 * HOUR),
            "pack-3": (0, None),
        }
        health = ingest_health(c, NOON, NOON + 2 * HOUR)
        assert [worker.worker_id for worker in health.workers] == ["b"]
        assert health.lag is None
        assert health.last_scored_at is None
