"""A worker whose schema registry is away waits for it, and goes on where it was."""

from __future__ import annotations

import io
import json
import threading

import fastavro
from sqlalchemy import Engine

from monitor.settings import RegistrySettings
from tests.ingest.registry import Registered, SchemaRegistry, framed, serving
from tests.worker.working import number, send, settings_for, wait_for, working

SCHEMA = {
    "type": "record",
    "name": "P",
    "fields": [{"name": "prompt", "type": "string"}, {"name": "response", "type": "string"}],
}
SCORED = "SELECT count(*) FROM monitor_data.scores"


def test_a_registry_that_comes_back_costs_no_record(
    database: Engine, kafka_bootstrap: str, topic: str
) -> None:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(SCHEMA), {"prompt": "x", "response": "y"})
    registry = SchemaRegistry(by_id={7: Registered("AVRO", json.dumps(SCHEMA))}, status=503)
    send(kafka_bootstrap, topic, [framed(7, out.getvalue()), framed(8, b"\x00")])
    with serving(registry):
        reach = RegistrySettings(url=registry.url)
        settings = settings_for(kafka_bootstrap, topic, registry=reach)
        stop = threading.Event()
        with working(database, settings) as worker:
            thread = threading.Thread(target=worker.run, args=(stop,), daemon=True)
            thread.start()
            try:
                wait_for(lambda: len(registry.asked) >= 2, "the registry is asked again")
                assert number(database, "SELECT max(next_offset) FROM monitor_data.offsets") == 0
                registry.status = 200
                wait_for(lambda: number(database, SCORED) == 1, "the record is scored")
            finally:
                stop.set()
                thread.join(30)
        assert not thread.is_alive()
    dead = "SELECT count(*) FROM monitor_data.dead_letters WHERE reason = 'dialect_not_read'"
    assert number(database, dead) == 1
