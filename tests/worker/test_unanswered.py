"""Prompts without a response, from the topic to the buckets, with a real tiny model."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from sqlalchemy import Engine, text

from monitor.instrument import Instrument, build_instrument
from monitor.score.pack import Pack, save_pack
from monitor.settings import PackSettings, ReplaySettings, Settings
from monitor.store.database import transaction
from monitor.values.prompts import Prompt
from tests.scenes.models import CHATML, normal_weights, save_tiny
from tests.scenes.packs import drawn, feature, pack_of
from tests.worker.working import number, run_until, send, settings_for, working

pytestmark = pytest.mark.slow

REGIONS = ("prompt", "last_prompt_token", "response", "all")
SEEN = "SELECT coalesce(sum(n), 0) FROM monitor_data.ingest_counts"
BUCKETS = """
    SELECT feature.region, bucket.segment, sum(bucket.n)::int AS n
    FROM monitor_data.buckets AS bucket
    JOIN monitor_data.lineages USING (lineage_id)
    JOIN monitor_data.pack_features AS feature
        ON feature.pack_id = lineages.pack_id AND feature.ordinal = bucket.feature
    GROUP BY feature.region, bucket.segment
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(
        tmp_path_factory.mktemp("tiny-llama"),
        seed=7,
        template=CHATML,
        weights=normal_weights(lambda _, size: size**-0.5),
        bos_token_id=None,
        eos_token_id=1,
    )


Packed = Callable[..., Pack]


@pytest.fixture
def packed(model: Path, tmp_path: Path) -> Callable[..., Path]:
    """A pack of the tiny model with a feature for each of the regions, in a folder of its own."""

    def build(*regions: str, canary: Prompt | None = None) -> Path:
        features = [feature(one, drawn(seed), region=one) for seed, one in enumerate(regions)]
        folder = tmp_path / "-".join(regions)
        save_pack(pack_of(model, features, canary=canary), folder)
        return folder

    return build


@pytest.fixture
def configured(
    kafka_bootstrap: str, topic: str, model: Path, packed: Callable[..., Path]
) -> Callable[..., Settings]:
    """Settings of the shared topic, the tiny model, a pack of ``regions``, and ``replay`` on top."""

    def build(*regions: str, canary: Prompt | None = None, **replay: Any) -> Settings:
        folder = packed(*(regions or REGIONS), canary=canary)
        given = {"model": model, "device": "cpu", "generate_tokens": 4} | replay
        return settings_for(kafka_bootstrap, topic).model_copy(
            update={
                "replay": ReplaySettings(**given),
                "pack": PackSettings(path=folder),
            }
        )

    return build


def alone(count: int, *, conversations: int = 1_000) -> list[bytes]:
    """Prompts without a response, in so many conversations."""
    return [
        json.dumps(
            {
                "id": f"p{i}",
                "conversation_id": f"c{i % conversations}",
                "messages": [{"role": "user", "content": f"what of {i}?"}],
            }
        ).encode()
        for i in range(count)
    ]


def answered(count: int) -> list[bytes]:
    return [
        json.dumps(
            {
                "id": f"a{i}",
                "messages": [{"role": "user", "content": f"what of {i}?"}],
                "response": f"nothing of {i}",
            }
        ).encode()
        for i in range(count)
    ]


def worked(database: Engine, settings: Settings, values: list[bytes]) -> Instrument:
    """A worker with the tiny model reads ``values``."""
    instrument = build_instrument(settings)
    send(settings.kafka.bootstrap_servers, settings.kafka.topics[0], values)
    with working(database, settings, instrument.engine, pack=instrument.pack) as worker:
        run_until(worker, database, SEEN, len(values))
    return instrument


def counted(database: Engine) -> dict[tuple[str, str], int]:
    with transaction(database) as c:
        return {(row.region, row.segment): row.n for row in c.execute(text(BUCKETS))}


def rows(database: Engine, query: str) -> list[Any]:
    with transaction(database) as c:
        return list(c.execute(text(query)))


def test_a_topic_without_any_response_is_scored_on_the_prompt_side_by_default(
    database: Engine, configured: Callable[..., Settings]
) -> None:
    instrument = worked(database, configured(), alone(30))
    assert number(database, "SELECT count(*) FROM monitor_data.scores") == 30
    # `all` is not read over half an exchange: it would not compare with whole ones.
    assert counted(database) == {("prompt", "all"): 30, ("last_prompt_token", "all"): 30}
    held = rows(database, "SELECT scores, response_tokens, generated FROM monitor_data.scores")
    assert {tuple(score is None for score in row.scores) for row in held} == {
        (False, False, True, True)
    }
    assert {(row.response_tokens, row.generated) for row in held} == {(0, False)}
    assert instrument.engine.loaded.answerer is None  # type: ignore[attr-defined]


def test_logged_answers_are_read_as_ever_beside_prompts_alone(
    database: Engine, configured: Callable[..., Settings]
) -> None:
    worked(database, configured(), [*alone(8), *answered(12)])
    assert counted(database) == {
        ("prompt", "all"): 20,
        ("last_prompt_token", "all"): 20,
        ("response", "all"): 12,
        ("all", "all"): 12,
    }


def test_a_share_is_answered_by_the_copy_and_counted_apart(
    database: Engine, configured: Callable[..., Settings]
) -> None:
    settings = configured(answer_share=0.5)
    worked(database, settings, [*alone(40, conversations=10), *answered(7)])
    held = rows(
        database,
        "SELECT prompt_id, generated, response_tokens, segments, scores FROM monitor_data.scores",
    )
    own = {row.prompt_id for row in held if row.generated}
    assert len(held) == 47
    assert 0 < len(own) < 40
    assert not any(name.startswith("a") for name in own)
    # Whole conversations, as sampling takes them.
    of = Counter(int(name[1:]) % 10 for name in own)
    assert set(of.values()) == {4}
    for row in held:
        assert ("generated" in row.segments) is row.generated
        if row.generated:
            assert 1 <= row.response_tokens <= 4
            assert all(score is not None for score in row.scores)
    assert counted(database) == {
        ("prompt", "all"): 47,
        ("last_prompt_token", "all"): 47,
        ("response", "all"): 7,
        ("all", "all"): 7,
        ("response", "generated"): len(own),
        ("all", "generated"): len(own),
    }


def test_the_same_prompts_are_answered_whoever_reads_them(
    database: Engine, configured: Callable[..., Settings]
) -> None:
    """Another group with a lower share answers a part of the same prompts."""
    settings = configured(answer_share=0.6)
    worked(database, settings, alone(40))
    chosen = "SELECT prompt_id FROM monitor_data.scores WHERE generated ORDER BY prompt_id"
    first = {row.prompt_id for row in rows(database, chosen)}
    with transaction(database) as c:
        for table in ("scores", "buckets", "ingest_counts", "offsets"):
            c.execute(text(f"DELETE FROM monitor_data.{table}"))
    worked_again = settings.model_copy(
        update={
            "replay": settings.replay.model_copy(update={"answer_share": 0.3}),
            "kafka": settings.kafka.model_copy(update={"group_id": "another"}),
        }
    )
    worked(database, worked_again, [])
    instrument = build_instrument(worked_again)
    with working(database, worked_again, instrument.engine, pack=instrument.pack) as worker:
        run_until(worker, database, SEEN, 40)
    second = {row.prompt_id for row in rows(database, chosen)}
    assert second
    assert second < first


def test_a_pack_of_responses_alone_skips_them_under_a_reason_of_its_own(
    database: Engine, configured: Callable[..., Settings]
) -> None:
    instrument = worked(database, configured("response", "all"), [*alone(9), *answered(3)])
    outcomes = rows(
        database, "SELECT outcome, sum(n)::int AS n FROM monitor_data.ingest_counts GROUP BY 1"
    )
    assert {row.outcome: row.n for row in outcomes} == {"scored": 3, "skipped:no_answer": 9}
    # Nothing is run for a prompt that cannot be read.
    assert instrument.engine.statistics.prompts == 3  # type: ignore[attr-defined]


@pytest.mark.parametrize("mode", ["auto", "logged", "generate"])
def test_canaries_are_replayed_as_they_were_recorded_in_every_mode(
    mode: str, database: Engine, configured: Callable[..., Settings], canary: Prompt
) -> None:
    """A canary without a response must not get one of the copy's own."""
    settings = configured(canary=canary, mode=mode, answer_share=1.0 if mode == "auto" else 0.0)
    worked(database, settings, alone(3))
    (row,) = rows(database, "SELECT reproduced, largest_deviation FROM monitor_data.canary_runs")
    assert row.reproduced, row.largest_deviation


@pytest.fixture
def canary() -> Prompt:
    from datetime import UTC, datetime

    from monitor.values.prompts import Message, RecordKey

    return Prompt(
        key=RecordKey(topic="canary", partition=0, offset=0),
        recorded_at=datetime(2026, 1, 1, tzinfo=UTC),
        messages=(Message(role="user", content="hello there"),),
    )


@pytest.mark.parametrize(("mode", "why"), [("logged", "none"), ("generate", "all of them")])
def test_a_share_that_would_do_nothing_is_refused(mode: str, why: str) -> None:
    with pytest.raises(ValidationError, match=f"answer_share is for mode auto.*answers {why}"):
        ReplaySettings(mode=mode, answer_share=0.1)  # type: ignore[arg-type]


def test_generate_answers_every_prompt_without_a_response(
    database: Engine, configured: Callable[..., Settings]
) -> None:
    worked(database, configured(mode="generate"), [*alone(5), *answered(4)])
    assert counted(database) == {
        ("prompt", "all"): 9,
        ("last_prompt_token", "all"): 9,
        ("response", "all"): 4,
        ("all", "all"): 4,
        ("response", "generated"): 5,
        ("all", "generated"): 5,
    }


def test_logged_reads_what_is_there_and_nothing_else(
    database: Engine, configured: Callable[..., Settings]
) -> None:
    worked(database, configured(mode="logged", answer_share=0.0), alone(5))
    assert counted(database) == {
        ("prompt", "all"): 5,
        ("last_prompt_token", "all"): 5,
        ("all", "all"): 5,
    }
