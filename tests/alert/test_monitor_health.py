"""Silence rules: no data is never read as no drift, and no facts are never read as health."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from monitor.alert.policy import Health, PackHealth, silence_conditions
from monitor.settings import DriftSettings, SilenceRule
from monitor.values.alerts import Condition
from monitor.values.fidelity import Compared
from monitor.values.progress import Progress
from monitor.values.scores import CanaryRun, Lineage

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
LINEAGE = Lineage(
    pack_id="p", model_id="m", model_hash="h", dtype="float32", attention="sdpa",
    device="cpu", engine="1", rules="{}",
)  # fmt: skip


OF_PACK = {"mismatches", "canaries", "baseline_id", "replays"}


def health(**known: Any) -> Health:
    """Facts of the ingest, and of one pack unless ``pack_id`` is None."""
    pack = {name: known.pop(name) for name in OF_PACK & set(known)}
    pack_id = known.pop("pack_id", "p")
    packs = [PackHealth(pack_id=pack_id, **pack)] if pack_id else []
    given = {
        "since": NOW - timedelta(hours=1),
        "until": NOW,
        "watching_since": NOW,
        "packs": packs,
    }
    return Health(**given | known)


def read(partition: int, seconds_ago: float | None, *, known: float | None = 5_000) -> Progress:
    def ago(seconds: float | None) -> datetime | None:
        return None if seconds is None else NOW - timedelta(seconds=seconds)

    return Progress(
        topic="prompts",
        partition=partition,
        lag=7,
        asked_at=NOW,
        watermark=ago(seconds_ago),
        known_since=ago(known),
    )


def canary(worker: str, *, reproduced: bool, deviation: float = 0.01) -> CanaryRun:
    return CanaryRun(
        worker_id=worker,
        ran_at=NOW,
        lineage=LINEAGE,
        largest_deviation=deviation,
        noise_floor=0.05,
        reproduced=reproduced,
    )


def skips(scored: int = 0, **reasons: int) -> dict[str, Any]:
    outcomes = {"scored": scored} | {f"skipped:{reason}": n for reason, n in reasons.items()}
    return {"outcomes": outcomes, "loss_limit": 0.9}


def judged(facts: Health, name: Any, limit: float | None = None) -> Condition | None:
    found = silence_conditions(facts, [SilenceRule(name=name, limit=limit)], NOW)
    assert len(found) <= 1
    for condition in found:
        json.dumps(dict(condition.details), allow_nan=False)
    return found[0] if found else None


@pytest.mark.parametrize(
    ("name", "limit", "facts", "active"),
    [
        ("lag", 100, {"lag": {"prompts/0": 60, "prompts/1": 41}}, True),
        ("lag", 100, {"lag": {"prompts/0": 60, "prompts/1": 40}}, False),
        ("lag", 100, {}, None),
        ("delay", 600, {"progress": [read(0, 20), read(1, 601)]}, True),
        ("delay", 600, {"progress": [read(0, 20), read(1, 599)]}, False),
        ("delay", 600, {"progress": [read(0, None, known=601)]}, True),
        ("delay", 600, {"progress": [read(0, 20, known=None)]}, False),
        ("delay", 600, {"progress": [read(0, None, known=None)]}, None),
        ("delay", 600, {}, None),
        ("starvation", 900, {"last_scored_at": NOW - timedelta(seconds=901)}, True),
        ("starvation", 900, {"last_scored_at": NOW - timedelta(seconds=899)}, False),
        ("starvation", 900, {"watching_since": NOW - timedelta(seconds=901)}, True),
        ("starvation", 900, {"watching_since": NOW - timedelta(seconds=10)}, False),
        ("dead_letter_ratio", 0.05, {"outcomes": {"scored": 94, "dead:not_json": 6}}, True),
        ("dead_letter_ratio", 0.05, {"outcomes": {"scored": 95, "dead:not_json": 5}}, False),
        ("dead_letter_ratio", 0.05, {"outcomes": {"dead:empty": 19}}, None),
        (
            "dead_letter_ratio",
            0.05,
            {"outcomes": {"scored": 90, "dead:empty": 10, "skipped:sampled_out": 9_000}},
            True,
        ),
        # Skips by the limit at which a worker stops, of those who could have given a score.
        ("dead_letter_ratio", 0.05, skips(content_redacted=91, scored=9), True),
        ("dead_letter_ratio", 0.05, skips(content_redacted=89, scored=11), None),
        ("dead_letter_ratio", 0.05, skips(content_redacted=89, scored=31), False),
        ("dead_letter_ratio", 0.05, skips(content_redacted=50, only_media=45, scored=5), True),
        ("dead_letter_ratio", 0.05, skips(nothing_to_read=95, sampled_out=9_000, scored=5), True),
        (
            "dead_letter_ratio",
            0.05,
            skips(content_redacted=95, sampled_out=9_000, scored=40),
            False,
        ),
        ("dead_letter_ratio", 0.05, skips(not_a_prompt=9_000, scored=40), False),
        ("dead_letter_ratio", 0.05, skips(not_a_prompt=9_000), True),
        ("dead_letter_ratio", 0.05, skips(other_model=9_000), True),
        ("dead_letter_ratio", 0.05, skips(no_answer=9_000), True),
        ("dead_letter_ratio", 0.05, skips(no_answer=9_000, scored=40), False),
        ("dead_letter_ratio", 0.05, skips(sampled_out=9_000, tombstone=50), None),
        ("non_finite", 0.01, {"outcomes": {"scored": 90, "dead:not_json": 10}}, False),
        ("non_finite", 0.01, {"outcomes": {"scored": 98, "dead:non_finite": 2}}, True),
        ("model_mismatch", None, {"mismatches": ["hidden size 576, pack 960"]}, True),
        ("model_mismatch", None, {}, False),
        ("instrument", None, {"canaries": [canary("a", reproduced=True)]}, False),
        ("instrument", None, {}, None),
        ("no_baseline", None, {}, True),
        ("no_baseline", None, {"baseline_id": "b"}, False),
        ("no_baseline", None, {"pack_id": None}, None),
    ],
)
def test_each_rule(
    name: str, limit: float | None, facts: dict[str, Any], active: bool | None
) -> None:
    condition = judged(health(**facts), name, limit)
    assert (condition.active if condition else None) is active


@pytest.mark.parametrize(
    ("name", "limit", "facts", "said"),
    [
        (
            "starvation",
            900,
            {"last_scored_at": NOW - timedelta(seconds=901)},
            "no prompt was scored for 901 s (limit 900 s): drift cannot be seen",
        ),
        (
            "starvation",
            900,
            {"last_scored_at": NOW - timedelta(seconds=3)},
            "the last prompt was scored 3 s ago (limit 900 s)",
        ),
        (
            "starvation",
            900,
            {"watching_since": NOW - timedelta(seconds=3)},
            "no prompt was scored yet, for 3 s (limit 900 s)",
        ),
        (
            "dead_letter_ratio",
            0.05,
            {"since": NOW - timedelta(minutes=15), "outcomes": {"scored": 96, "dead:empty": 4}},
            "4.0% of 100 records since 2026-03-01 11:45 UTC could not be read or replayed (limit 5.0%)",
        ),
        (
            "dead_letter_ratio",
            0.05,
            {**skips(content_redacted=940, only_media=10, scored=50), "since": NOW - timedelta(minutes=15)},
            "95.0% of 1000 records since 2026-03-01 11:45 UTC gave nothing to score (limit 90.0%): "
            "skipped:content_redacted 940, skipped:only_media 10",
        ),
        (
            "delay",
            600,
            {"progress": [read(0, 20)]},
            "prompts/0 is read up to 2026-03-01 11:59 UTC, 20 s behind (limit 600 s)",
        ),
        (
            "delay",
            600,
            {"progress": [read(0, 601)]},
            "prompts/0 is read up to 2026-03-01 11:49 UTC, 601 s behind (limit 600 s): drift since then is not seen yet",
        ),
        ("lag", 100, {"lag": {"p/0": 3}}, "the monitor is 3 records behind the end of its topics (limit 100)"),
    ],
)  # fmt: skip
def test_the_sentence_is_true_whether_it_fires_or_not(
    name: str, limit: float, facts: dict[str, Any], said: str
) -> None:
    condition = judged(health(**facts), name, limit)
    assert condition is not None
    assert condition.summary == said


def test_one_broken_copy_among_good_ones_is_named() -> None:
    runs = [
        canary("good", reproduced=True),
        canary("bad", reproduced=False, deviation=float("inf")),
    ]
    condition = judged(health(canaries=runs), "instrument")
    assert condition is not None
    assert condition.active
    assert condition.details["workers"] == [{"worker": "bad", "deviation": None}]
    assert "1 of 2" in condition.summary


def test_the_worst_partitions_are_named_and_labels_hold_no_figures() -> None:
    lag = {f"prompts/{p}": p for p in range(100)}
    condition = judged(health(lag=lag), "lag", 10)
    assert condition is not None
    assert list(condition.details["worst_partitions"]) == [
        f"prompts/{p}" for p in range(99, 94, -1)
    ]
    assert condition.labels == {"kind": "silence", "rule": "lag"}


def test_the_partition_that_is_read_least_far_is_named() -> None:
    condition = judged(health(progress=[read(p, 100 * p) for p in range(20)]), "delay", 600)
    assert condition is not None
    assert condition.summary == (
        "prompts/19 is read up to 2026-03-01 11:28 UTC, 1900 s behind (limit 600 s): "
        "drift since then is not seen yet"
    )
    assert list(condition.details["worst_partitions"]) == [
        f"prompts/{p}" for p in range(19, 14, -1)
    ]


def test_each_pack_has_alarms_of_its_own_and_the_ingest_has_one() -> None:
    facts = health(
        lag={"prompts/0": 9},
        packs=[
            PackHealth(pack_id="a", baseline_id="b", canaries=[canary("a", reproduced=True)]),
            PackHealth(pack_id="b", canaries=[canary("b", reproduced=False)]),
        ],
    )
    rules = [SilenceRule(name="lag", limit=1)]
    rules += [SilenceRule(name=name) for name in ("instrument", "no_baseline")]
    found = silence_conditions(facts, rules, NOW)
    assert [(c.dedupe_key, c.labels.get("pack"), c.active) for c in found] == [
        ("silence/lag", None, True),
        ("silence/instrument/a", "a", False),
        ("silence/instrument/b", "b", True),
        ("silence/no_baseline/a", "a", False),
        ("silence/no_baseline/b", "b", True),
    ]


def test_every_shipped_rule_is_judged() -> None:
    facts = health(
        lag={},
        progress=[read(0, 0)],
        outcomes={"scored": 100},
        canaries=[canary("a", reproduced=True)],
        baseline_id="b",
        last_scored_at=NOW,
        replays=Compared(n=100),
    )
    rules = DriftSettings().silence_rules
    found = silence_conditions(facts, rules, NOW)
    assert [c.rule for c in found] == [r.name for r in rules]
    assert not any(c.active for c in found)
