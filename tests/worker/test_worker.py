"""The worker on a real broker and a real Postgres, with a replay that has no model."""

from __future__ import annotations

import json
import threading

import pytest
from sqlalchemy import Engine, text

from benchmarks.null_replay import NullReplay
from monitor.drift.histogram import histogram_of
from monitor.errors import EverythingUnreadable
from monitor.store.database import transaction
from monitor.values.prompts import DeadReason
from monitor.values.scores import Unreplayable
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
