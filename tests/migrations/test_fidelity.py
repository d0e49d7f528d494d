"""Revision 0006: prompts that the releases before it stored stay, and are not taken for compared ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy import Engine, text

from monitor.settings import PostgresSettings
from monitor.store.database import connect, migrate
from monitor.store.fidelity import replays_compared
from monitor.values.fidelity import Compared, Fidelity, Mismatch
from tests.store.builders import HOUR, LINEAGE, MINUTE, NOON, PACK, chunk, keep, register, scored

BEFORE = """
    INSERT INTO monitor_data.scores
        (recorded_at, topic, partition, record_offset, record_index, lineage_id, prompt_id,
         content_hash, conversation_hash, segments, model, model_revision, prompt_tokens,
         response_tokens, cut, generated, inclusion_probability, readings, scores)
    VALUES (:at, 'prompts', 0, :offset, 0, :lineage, 'old', 'x', NULL, ARRAY['all'], 'm', NULL, 10,
        20, false, false, 1, ARRAY[1, 2, 3], ARRAY[1, 2, 3])
"""
"""What a worker of the release before stores: it names the columns that it knows."""


@pytest.fixture
def settings(postgres_url: str) -> PostgresSettings:
    return PostgresSettings(url=postgres_url)


def compared(engine: Engine) -> dict[str, Compared]:
    with engine.connect() as c:
        return replays_compared(c, NOON - HOUR, NOON + HOUR)


def test_old_prompts_stay_and_old_workers_may_run_on(settings: PostgresSettings) -> None:
    migrate(settings, "0005")
    engine = connect(settings)
    with engine.begin() as c:
        register(c)
        lineage = c.scalar(
            text("""
                INSERT INTO monitor_data.lineages
                    (pack_id, model_id, model_hash, dtype, attention, device, engine, rules)
                VALUES (:pack_id, :model_id, :model_hash, :dtype, :attention, :device, :engine, :rules)
                RETURNING lineage_id
            """),
            {name: getattr(LINEAGE, name) for name in LINEAGE.__slots__},
        )
        c.execute(text(BEFORE), {"at": NOON, "offset": 0, "lineage": lineage})
    migrate(settings)
    with engine.begin() as c:
        c.execute(text(BEFORE), {"at": NOON, "offset": 1, "lineage": lineage})
    assert compared(engine) == {}, "what was not compared is neither same nor other"
    rows = [
        replace(
            scored(offset, [0.0, 0.0, 0.0], at=NOON + MINUTE),
            fidelity=Fidelity(prompt_difference=-3, answer_difference=None),
            left_out=("id",),
        )
        for offset in (2, 3)
    ]
    keep(engine, chunk(rows, start=2, end=4))
    assert compared(engine) == {
        PACK: Compared(n=2, mismatches=(Mismatch(verdict="prompt", n=2, usual=-3, usual_n=2),))
    }
    with engine.connect() as c:
        c.execute(text("SET ROLE monitor_reader"))
        for view, n in (("feature_scores", 12), ("replay_fidelity", 2), ("left_out", 2)):
            assert c.scalar(text(f"SELECT count(*) FROM monitor.{view}")) == n
    migrate(settings, "0005")
    with engine.connect() as c:
        assert c.scalar(text("SELECT count(*) FROM monitor.feature_scores")) == 12
    engine.dispose()
