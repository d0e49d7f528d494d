"""The demo's last act counts what became of prompts without an answer, on the documented views."""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy import Engine

from monitor.demo.history import Alone, History
from monitor.store.chunks import store_chunk
from monitor.store.database import transaction
from monitor.values.scores import IngestCount
from tests.store.builders import NOON, chunk, known_pack, scored


def test_each_prompt_without_an_answer_is_counted_once_by_what_became_of_it(
    database: Engine, migrated_url: str
) -> None:
    known_pack(database)
    nan = float("nan")
    logged = scored(0, [1.0, 1.0, 1.0])
    alone = [replace(scored(i, [1.0, 1.0, nan]), response_tokens=0) for i in (1, 2)]
    own = replace(scored(3, [1.0, 1.0, 1.0]), generated=True)
    stored = chunk([logged, *alone, own], start=0, end=9)
    skips = IngestCount(bucket_start=NOON, source="prompts/0", outcome="skipped:no_answer", n=5)
    with transaction(database) as c:
        store_chunk(c, replace(stored, counts=(*stored.counts, skips)))
    history = History(migrated_url.replace("+psycopg", ""))
    try:
        seen = history.alone()
    finally:
        history.close()
    assert seen == Alone(read=2, answered=1, skipped=5)
    for part in ("1 answered by the copy", "2 scored by the features", "5 skipped as no_answer"):
        assert part in seen.told
