"""The worker on a real broker and a real Postgres, with a replay that has no model."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from sqlalchemy import Engine, text

from benchmarks.null_replay import NullReplay
from monitor.drift.histogram import histogram_of
from monitor.errors import EverythingUnreadable
from monitor.settings import DriftSettings
from monitor.store.database import transaction
from monitor.values.prompts import DeadReason
from monitor.values.scores import Unreplayable
from monitor.watcher import Watcher
from tests.worker.working import FEATURES, number, prompts, run_until, send, settings_for, working

SCORED = "SELECT count(*) FROM monitor_data.scores"


def test_every_record_is_scored_or_dead_lettered_once(
    database: Engine, kafka_bootstrap: str, topic: str
) -> None:
    values = prompts(120)
    values[10:10] = [b"{", b"\xff\xfe", b"[]"]
    send(kafka_bootstrap, topic, values)
    with working(database, settings_for(kafka_bootstrap, topic)) as worker:
        run_until(worker, database, SCORED, 120)
    assert number(database, "SELECT count(*) FROM monitor_data.dead_letters") == 3
    assert number(database, "SELECT next_offset FROM monitor_data.offsets") == 123


class Counting(NullReplay):
    """Says how many prompts each chunk held."""

    def __init__(self) -> None:
        super().__init__(FEATURES)
        self.chunks: list[int] = []

    def run(self, prepared: Sequence[Any]) -> list[Any]:
        self.chunks.append(len(prepared))
        return super().run(prepared)


def test_a_backlog_is_stored_in_chunks_that_grow_and_every_record_once(
    database: Engine, kafka_bootstrap: str, topic: str
) -> None:
    send(kafka_bootstrap, topic, prompts(3_000))
    # So long a wait that the slowest machine goes through more than a first chunk meanwhile.
    settings = settings_for(kafka_bootstrap, topic, chunk_records=2_048, chunk_wait=5.0)
    replay = Counting()
    with working(database, settings, replay) as worker:
        run_until(worker, database, SCORED, 3_000)
    assert max(replay.chunks) > 256
    assert (
        number(database, "SELECT count(DISTINCT record_offset) FROM monitor_data.scores") == 3_000
    )
    of_all = "SELECT sum(n) FROM monitor_data.buckets WHERE feature = 0 AND segment = 'all'"
    assert number(database, of_all) == 3_000


def test_bucket_sums_are_the_scores_own(database: Engine, kafka_bootstrap: str, topic: str) -> None:
    send(kafka_bootstrap, topic, prompts(200))
    with working(database, settings_for(kafka_bootstrap, topic)) as worker:
        run_until(worker, database, SCORED, 200)
    for feature in range(FEATURES):
        with transaction(database) as c:
            scores = [
                row[0]
                for row in c.execute(
                    text(f"SELECT scores[{feature + 1}] FROM monitor_data.scores ORDER BY 1")
                )
            ]
            rows = c.execute(
                text(
                    "SELECT n, total, total_squares, histogram, tail_count FROM monitor_data.buckets "
                    f"WHERE feature = {feature} AND segment = 'all'"
                )
            ).all()
        assert sum(row.n for row in rows) == 200
        assert sum(row.total for row in rows) == pytest.approx(sum(scores), rel=1e-6)
        assert sum(row.total_squares for row in rows) == pytest.approx(sum(s * s for s in scores))
        assert sum(row.tail_count for row in rows) == sum(s > 2.0 for s in scores)
        merged = [sum(bins) for bins in zip(*(row.histogram for row in rows), strict=True)]
        assert merged == histogram_of(scores).tolist()


def test_a_second_worker_goes_on_where_the_first_stopped(
    database: Engine, kafka_bootstrap: str, topic: str
) -> None:
    settings = settings_for(kafka_bootstrap, topic)
    send(kafka_bootstrap, topic, prompts(60))
    with working(database, settings) as worker:
        run_until(worker, database, SCORED, 60)
    send(kafka_bootstrap, topic, prompts(60, start=60))
    with working(database, settings) as worker:
        run_until(worker, database, SCORED, 120)
    assert number(database, "SELECT count(DISTINCT prompt_id) FROM monitor_data.scores") == 120


def test_a_bad_deploy_upstream_stops_the_worker_before_the_topic_is_eaten(
    database: Engine, kafka_bootstrap: str, topic: str
) -> None:
    send(kafka_bootstrap, topic, [b"not json"] * 200)
    with (
        working(database, settings_for(kafka_bootstrap, topic)) as worker,
        pytest.raises(EverythingUnreadable, match="cannot be read"),
    ):
        worker.run(threading.Event())
    assert number(database, "SELECT count(*) FROM monitor_data.dead_letters") < 50
    assert number(database, "SELECT coalesce(max(next_offset), 0) FROM monitor_data.offsets") < 50


def test_sampled_out_and_redacted_records_are_counted(
    database: Engine, kafka_bootstrap: str, topic: str
) -> None:
    send(kafka_bootstrap, topic, prompts(200))
    settings = settings_for(kafka_bootstrap, topic, sampling_rate=0.3)
    counted = "SELECT coalesce(sum(n), 0) FROM monitor_data.ingest_counts"
    with working(database, settings) as worker:
        run_until(worker, database, counted, 200)
    kept = number(database, SCORED)
    assert 30 <= kept <= 90
    assert number(database, counted + " WHERE outcome = 'skipped:sampled_out'") == 200 - kept
    assert number(database, "SELECT min(inclusion_probability) FROM monitor_data.scores") == (
        pytest.approx(0.3)
    )


def test_no_text_of_a_prompt_reaches_the_database(
    database: Engine, kafka_bootstrap: str, topic: str
) -> None:
    secret = "zanzibar-marker"
    value = json.dumps({"prompt": secret, "response": secret, "id": "p1"}).encode()
    send(kafka_bootstrap, topic, [value, secret.encode()])
    with working(database, settings_for(kafka_bootstrap, topic)) as worker:
        run_until(
            worker,
            database,
            "SELECT next_offset FROM monitor_data.offsets UNION ALL SELECT 0 ORDER BY 1 DESC LIMIT 1",
            2,
        )
    with transaction(database) as c:
        tables = c.execute(
            text(
                "SELECT table_name FROM information_schema.tables WHERE table_schema = 'monitor_data'"
            )
        ).scalars()
        for table in list(tables):
            rows = c.execute(text(f'SELECT t::text FROM monitor_data."{table}" AS t')).scalars()
            assert not any(secret in row for row in rows), table


def test_a_restart_does_not_forget_a_bad_deploy(
    database: Engine, kafka_bootstrap: str, topic: str
) -> None:
    settings = settings_for(kafka_bootstrap, topic)
    dead = "SELECT count(*) FROM monitor_data.dead_letters"
    send(kafka_bootstrap, topic, [b"not json"] * 45)
    with working(database, settings) as worker:
        run_until(worker, database, dead, 45)  # too few to judge by
    send(kafka_bootstrap, topic, [b"not json"] * 8)
    with working(database, settings) as worker, pytest.raises(EverythingUnreadable):
        worker.run(threading.Event())
    assert number(database, dead) == 45


def test_good_records_pass_after_a_bad_deploy(
    database: Engine, kafka_bootstrap: str, topic: str
) -> None:
    settings = settings_for(kafka_bootstrap, topic)
    send(kafka_bootstrap, topic, [b"not json"] * 45)
    with working(database, settings) as worker:
        run_until(worker, database, "SELECT count(*) FROM monitor_data.dead_letters", 45)
    send(kafka_bootstrap, topic, prompts(20))
    with working(database, settings) as worker:
        run_until(worker, database, SCORED, 20)


def test_a_prompt_with_nothing_to_read_is_skipped_not_dead(
    database: Engine, kafka_bootstrap: str, topic: str
) -> None:
    class Blind(NullReplay):
        def run(self, prepared):
            return [Unreplayable(prompt=prompt, reason=DeadReason.NO_TOKENS) for prompt in prepared]

    send(kafka_bootstrap, topic, prompts(5))
    skipped = (
        "SELECT coalesce(sum(n), 0) FROM monitor_data.ingest_counts "
        "WHERE outcome = 'skipped:nothing_to_read'"
    )
    with working(database, settings_for(kafka_bootstrap, topic), Blind(FEATURES)) as worker:
        run_until(worker, database, skipped, 5)
    assert number(database, "SELECT count(*) FROM monitor_data.dead_letters") == 0


def span(**attributes: str) -> bytes:
    """An OpenTelemetry span as a collector exports it."""
    return json.dumps(
        {
            "resourceSpans": [
                {
                    "scopeSpans": [
                        {
                            "spans": [
                                {
                                    "traceId": "0" * 31 + "1",
                                    "spanId": "0" * 15 + "1",
                                    "name": "call",
                                    "startTimeUnixNano": "1772000000000000000",
                                    "endTimeUnixNano": "1772000001000000000",
                                    "attributes": [
                                        {"key": key, "value": {"stringValue": value}}
                                        for key, value in attributes.items()
                                    ],
                                }
                            ]
                        }
                    ]
                }
            ]
        }
    ).encode()


REDACTED = span(**{"gen_ai.operation.name": "chat", "gen_ai.request.model": "m"})
TELEMETRY = span(**{"http.method": "GET"})
COUNTED = "SELECT coalesce(sum(n), 0) FROM monitor_data.ingest_counts"


def test_a_worker_that_skips_nearly_everything_stops_as_one_that_cannot_read(
    database: Engine, kafka_bootstrap: str, topic: str
) -> None:
    send(kafka_bootstrap, topic, [REDACTED] * 200)
    with (
        working(database, settings_for(kafka_bootstrap, topic)) as worker,
        pytest.raises(EverythingUnreadable) as refused,
    ):
        worker.run(threading.Event())
    assert "100% of the last" in str(refused.value)
    assert "skipped:content_redacted" in str(refused.value)
    assert "dead_letter_limit is 90%" in str(refused.value)
    assert "let the sender record contents" in refused.value.hint
    assert number(database, COUNTED) < 50


def test_a_pack_that_has_nothing_to_read_stops_the_worker_whatever_the_sample_is(
    database: Engine, kafka_bootstrap: str, topic: str
) -> None:
    """Records that were sampled out prove that they can be read, and not that a model reads them."""

    class Blind(NullReplay):
        def run(self, prepared):
            return [Unreplayable(prompt=prompt, reason=DeadReason.NO_TOKENS) for prompt in prepared]

    send(kafka_bootstrap, topic, prompts(900))
    settings = settings_for(kafka_bootstrap, topic, sampling_rate=0.1)
    with (
        working(database, settings, Blind(FEATURES)) as worker,
        pytest.raises(EverythingUnreadable, match="skipped:nothing_to_read"),
    ):
        worker.run(threading.Event())
    assert number(database, COUNTED) > 0


def test_telemetry_beside_prompts_and_what_the_sample_leaves_out_stop_nothing(
    database: Engine, kafka_bootstrap: str, topic: str
) -> None:
    send(kafka_bootstrap, topic, [*[TELEMETRY] * 200, *prompts(3), *[TELEMETRY] * 100])
    with working(database, settings_for(kafka_bootstrap, topic)) as worker:
        run_until(worker, database, COUNTED, 303)
    assert number(database, SCORED) == 3
    skipped = COUNTED + " WHERE outcome = 'skipped:not_a_prompt'"
    assert number(database, skipped) == 300


def test_telemetry_does_not_hide_that_every_exchange_is_unreadable(
    database: Engine, kafka_bootstrap: str, topic: str
) -> None:
    values = [value for _ in range(100) for value in (b"not json", *[TELEMETRY] * 10)]
    send(kafka_bootstrap, topic, values)
    with (
        working(database, settings_for(kafka_bootstrap, topic)) as worker,
        pytest.raises(EverythingUnreadable, match="dead:not_json"),
    ):
        worker.run(threading.Event())


def test_a_restart_does_not_forget_what_was_skipped(
    database: Engine, kafka_bootstrap: str, topic: str
) -> None:
    settings = settings_for(kafka_bootstrap, topic)
    spans = [REDACTED] * 45
    with working(database, settings) as worker:
        send(kafka_bootstrap, topic, spans)
        run_until(worker, database, COUNTED, 45)
    send(kafka_bootstrap, topic, spans[:8])
    with working(database, settings) as worker, pytest.raises(EverythingUnreadable):
        worker.run(threading.Event())
    assert number(database, COUNTED) == 45


def test_what_is_skipped_is_told_by_the_alert_of_unreadable_records(
    database: Engine, kafka_bootstrap: str, topic: str
) -> None:
    settings = settings_for(kafka_bootstrap, topic)
    send(kafka_bootstrap, topic, [*[REDACTED] * 45, *prompts(3)])
    with working(database, settings) as worker:
        run_until(worker, database, COUNTED, 48)
    rules = [{"name": "dead_letter_ratio", "limit": 0.05, "for": 0}]
    drift = DriftSettings(silence_rules=rules)
    (event,) = Watcher(database, settings.model_copy(update={"drift": drift})).step().events
    assert event.alert.labels == {"kind": "silence", "rule": "dead_letter_ratio"}
    assert "93.8% of 48 records" in event.alert.summary
    assert "gave nothing to score (limit 90.0%): skipped:content_redacted 45" in event.alert.summary
    assert event.alert.details["reasons"] == {"skipped:content_redacted": 45}
    assert event.alert.details["limit"] == 0.9
