"""Answers of a real tiny model, weighed by its copy on the way from the topic to the tables, exactly once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sqlalchemy import Engine, text

from monitor.errors import StaleChunk
from monitor.instrument import build_instrument
from monitor.score.pack import save_pack
from monitor.settings import IdentitySettings, PackSettings, ReplaySettings, Settings
from monitor.store.chunks import store_chunk
from monitor.store.database import transaction
from tests.scenes.logged import TOKENS, records, spoken
from tests.scenes.models import changed_model, save_lettered
from tests.scenes.packs import drawn, feature, pack_of
from tests.worker.working import run_until, send, settings_for, working

pytestmark = pytest.mark.slow

SEEN = "SELECT coalesce(sum(n), 0) FROM monitor_data.ingest_counts"
ANSWERS = 60


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_lettered(tmp_path_factory.mktemp("lettered"))


@pytest.fixture(scope="module")
def other(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with another last block: it has the name, and says something else."""

    def change(weights: dict[str, Any]) -> None:
        generator = torch.Generator().manual_seed(3)
        for name, weight in weights.items():
            if name == "lm_head.weight":
                weight[:, 1:] = torch.randn(weight[:, 1:].shape, generator=generator) * 0.35

    return changed_model(model, tmp_path_factory.mktemp("other") / "model", change)


@pytest.fixture
def configured(
    kafka_bootstrap: str, topic: str, model: Path, tmp_path: Path
) -> Callable[..., Settings]:
    def build(**identity: Any) -> Settings:
        folder = tmp_path / "pack"
        if not folder.exists():
            features = [feature("said", drawn(1)), feature("asked", drawn(2), region="prompt")]
            save_pack(pack_of(model, features), folder)
        return settings_for(kafka_bootstrap, topic).model_copy(
            update={
                "replay": ReplaySettings(model=model, device="cpu", dtype="float32"),
                "pack": PackSettings(path=folder),
                "identity": IdentitySettings(**{"share": 1.0, **identity}),
            }
        )

    return build


def worked(database: Engine, settings: Settings, values: list[bytes]) -> None:
    instrument = build_instrument(settings)
    send(settings.kafka.bootstrap_servers, settings.kafka.topics[0], values)
    with working(database, settings, instrument.engine, pack=instrument.pack) as worker:
        run_until(worker, database, SEEN, len(values))


def rows(database: Engine, query: str) -> list[Any]:
    with transaction(database) as c:
        return list(c.execute(text(query)).mappings())


SUMS = """
    SELECT sum(n)::int AS n, sum(left_out)::int AS left_out, sum(tokens)::int AS tokens,
        sum(excess) / sqrt(sum(variance)) AS z, sum(wagers[5]) AS boldest
    FROM monitor_data.identity_buckets WHERE segment = 'all'
"""


def test_the_copy_s_own_answers_are_weighed_and_found_its_own(
    database: Engine, configured: Callable[..., Settings], model: Path
) -> None:
    worked(database, configured(), records(spoken(model, ANSWERS)))
    (found,) = rows(database, SUMS)
    assert (found["n"], found["left_out"], found["tokens"]) == (ANSWERS, 0, ANSWERS * TOKENS)
    assert abs(found["z"]) < 3.0
    assert found["boldest"] < 0.0
    each = rows(database, "SELECT * FROM monitor.weighed_answers")
    assert {row["weighing"] for row in each} == {"sampled"}
    assert len(each) == ANSWERS
    assert abs(sum(row["surprise"] for row in each)) < 3.0 * ANSWERS**0.5
    assert all(row["surprise_peak"] >= -4.0 and row["off_support"] == 0 for row in each)
    (window,) = rows(
        database,
        "SELECT served, sum(n)::int AS n FROM monitor.identity_windows GROUP BY served",
    )
    assert (window["served"], window["n"]) == ("tiny@", ANSWERS)


def test_another_model_under_the_same_name_is_not(
    database: Engine, configured: Callable[..., Settings], other: Path
) -> None:
    worked(database, configured(), records(spoken(other, 20)))
    (found,) = rows(database, SUMS)
    assert found["n"] == 20
    assert found["z"] > 5.0
    assert found["boldest"] > 20.0


def test_a_share_is_chosen_by_conversation_and_the_rest_costs_nothing(
    database: Engine, configured: Callable[..., Settings], model: Path
) -> None:
    values = records(spoken(model, 3) * 20)
    told = [json.loads(value) | {"conversation_id": f"c{n % 10}"} for n, value in enumerate(values)]
    worked(
        database,
        configured(share=0.5),
        [json.dumps(one | {"id": f"p{n}"}).encode() for n, one in enumerate(told)],
    )
    by_conversation = rows(
        database,
        """
        SELECT conversation_hash, count(*) AS n, count(weighing) AS chosen
        FROM monitor_data.scores GROUP BY conversation_hash
        """,
    )
    assert {row["chosen"] for row in by_conversation} == {0, 6}
    assert 0 < sum(row["chosen"] for row in by_conversation) < 60


def test_what_cannot_be_weighed_is_counted_with_its_reason(
    database: Engine, configured: Callable[..., Settings], model: Path
) -> None:
    said = spoken(model, 1)[0]
    (plain,) = (json.loads(value) for value in records([said]))
    unknown = {key: value for key, value in plain.items() if key != "temperature"}
    changes = [
        plain,
        plain,
        unknown,
        plain | {"response": None},
        plain | {"response_format": {"type": "json_object"}},
        plain | {"logit_bias": {"word": 10}},
        plain
        | {"stop": ["\n"], "response": {"choices": [{"text": said, "finish_reason": "stop"}]}},
        plain | {"usage": {"prompt_tokens": 12, "completion_tokens": TOKENS + 2}},
        plain | {"prompt": "long " * 300},
    ]
    values = [
        json.dumps(
            one | {"id": f"p{n}", "prompt": one["prompt"] if n < 2 else f"{n} {one['prompt']}"}
        )
        for n, one in enumerate(changes)
    ]
    worked(database, configured(), [value.encode() for value in values])
    reasons = Counter(
        row["weighing"] for row in rows(database, "SELECT weighing FROM monitor.weighed_answers")
    )
    assert reasons == {
        "sampled": 1,
        "repeated": 1,
        "sampling_unknown": 1,
        "no_answer": 1,
        "steered": 2,
        "stop_sequence": 1,
        "other_tokens": 1,
        "cut": 1,
    }
    (found,) = rows(database, SUMS)
    assert (found["n"], found["left_out"]) == (1, 8)


def test_the_settings_say_what_records_do_not(
    database: Engine, configured: Callable[..., Settings], model: Path
) -> None:
    values = [json.loads(value) for value in records(spoken(model, 5))]
    for value in values:
        del value["temperature"]
    worked(
        database,
        configured(temperature=1.0),
        [json.dumps(value).encode() for value in values],
    )
    (found,) = rows(database, SUMS)
    assert (found["n"], found["left_out"]) == (5, 0)
    said = rows(database, "SELECT DISTINCT weighing FROM monitor.weighed_answers")
    assert [row["weighing"] for row in said] == ["sampled_assumed"]


def test_a_chunk_that_comes_again_adds_nothing(
    database: Engine, configured: Callable[..., Settings], model: Path
) -> None:
    """A commit whose answer was lost: what the chunk weighed is in the transaction of its offsets."""
    settings = configured()
    instrument = build_instrument(settings)
    send(settings.kafka.bootstrap_servers, settings.kafka.topics[0], records(spoken(model, 8)))
    with working(database, settings, instrument.engine, pack=instrument.pack) as worker:
        kept: list[Any] = []
        keep = worker._keep

        def remembered(result: Any) -> None:
            kept.append(result)
            keep(result)

        worker._keep = remembered  # type: ignore[method-assign]
        run_until(worker, database, SEEN, 8)
    (before,) = rows(database, SUMS)
    for result in kept:
        with pytest.raises(StaleChunk), transaction(database) as c:
            store_chunk(c, result)
    assert rows(database, SUMS) == [before]
    assert before["n"] == 8
