"""A dead-letter topic that is away does not hold the scoring up, and every page can say so."""

from __future__ import annotations

from sqlalchemy import Engine

from monitor.demo.services import free_port
from monitor.ingest.kafka import DeadLetterTopic
from monitor.settings import KafkaSettings
from tests.worker.working import number, prompts, run_until, send, settings_for, working


def test_records_are_scored_the_table_holds_the_letters_and_the_worker_says_why(
    database: Engine, kafka_bootstrap: str, topic: str
) -> None:
    send(kafka_bootstrap, topic, [b"{broken"] * 200 + prompts(200))
    settings = settings_for(kafka_bootstrap, topic, dead_letter_limit=1.0, chunk_records=20)
    address = f"127.0.0.1:{free_port()}"
    nowhere = KafkaSettings(bootstrap_servers=address, dead_letter_topic="letters")
    with DeadLetterTopic(nowhere) as sink, working(database, settings, letters_to=sink) as worker:
        run_until(worker, database, "SELECT count(*) FROM monitor_data.scores", 200)
        worker._show_presence()
    assert number(database, "SELECT count(*) FROM monitor_data.dead_letters") == 200
    said = "SELECT count(*) FROM monitor_data.workers WHERE remarks[1] LIKE "
    assert number(database, f"{said} 'The dead-letter topic letters is not told%{address}%'") == 1
