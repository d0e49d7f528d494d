"""The monitor's own questions to the served endpoint, logged like any other: they are no traffic."""

from __future__ import annotations

import json

from sqlalchemy import Engine, text

from monitor.settings import ServerCanarySettings
from monitor.store.database import transaction
from monitor.values.questions import pool
from tests.worker.working import run_until, send, settings_for, working

SEEN = "SELECT coalesce(sum(n), 0) FROM monitor_data.ingest_counts"
QUESTION = pool()[0].text


def chat(number: int, *messages: tuple[str, str]) -> bytes:
    return json.dumps(
        {
            "id": f"p{number}",
            "messages": [{"role": role, "content": content} for role, content in messages],
            "response": "tea",
        }
    ).encode()


RECORDS = [
    chat(0, ("user", QUESTION)),
    chat(1, ("system", "Be brief."), ("user", QUESTION)),
    chat(2, ("user", QUESTION), ("assistant", "tea"), ("user", "Why?")),
    chat(3, ("user", f"{QUESTION} Say why.")),
]


def outcomes(database: Engine, kafka_bootstrap: str, topic: str, **asks: str) -> dict[str, int]:
    settings = settings_for(kafka_bootstrap, topic).model_copy(
        update={"server_canaries": ServerCanarySettings(**asks)}
    )
    send(kafka_bootstrap, topic, RECORDS)
    with working(database, settings) as worker:
        run_until(worker, database, SEEN, len(RECORDS))
    with transaction(database) as c:
        rows = c.execute(
            text(
                "SELECT outcome, sum(n)::int AS n FROM monitor_data.ingest_counts GROUP BY outcome"
            )
        )
        return {row.outcome: row.n for row in rows}


def test_they_are_skipped_where_the_endpoint_is_asked(
    database: Engine, kafka_bootstrap: str, topic: str
) -> None:
    found = outcomes(database, kafka_bootstrap, topic, url="http://served/v1", model="m")
    assert found == {"skipped:server_canary": 2, "scored": 2}


def test_what_users_ask_is_scored_where_nobody_else_asks(
    database: Engine, kafka_bootstrap: str, topic: str
) -> None:
    assert outcomes(database, kafka_bootstrap, topic) == {"scored": 4}
