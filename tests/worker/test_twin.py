"""Prompts that the copy answers too, on the way from the topic to the tables, exactly once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sqlalchemy import Engine, text

from monitor.errors import StaleChunk
from monitor.instrument import build_instrument
from monitor.replay.model import load_model
from monitor.replay.twin import Draw, answers_of
from monitor.score.pack import save_pack
from monitor.settings import PackSettings, ReplaySettings, Settings, TwinSettings
from monitor.store.chunks import store_chunk
from monitor.store.database import transaction
from monitor.values.prompts import Sampling
from tests.scenes.models import LETTERS, changed_model, save_lettered
from tests.scenes.packs import drawn, feature, pack_of
from tests.worker.working import run_until, send, settings_for, working

pytestmark = pytest.mark.slow

SEEN = "SELECT coalesce(sum(n), 0) FROM monitor_data.ingest_counts"
TOKENS = 24


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_lettered(tmp_path_factory.mktemp("lettered"), heat=3.0)


@pytest.fixture(scope="module")
def steered(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model, of whose letters it says two more than all others; it has the name."""

    def change(weights: dict[str, Any]) -> None:
        head = weights["lm_head.weight"]
        said = torch.argsort(head[:, 0], descending=True)[: len(LETTERS)]
        head[said[:2], 0] += 3.0

    return changed_model(model, tmp_path_factory.mktemp("steered") / "model", change)


def asked(number: int, topic: str) -> str:
    return f"{topic} {number}: "


def records(folder: Path, count: int, *, topic: str = "question", **given: Any) -> list[bytes]:
    """As logged: native, with the response object of a completion, drawn at temperature 1 by ``folder``."""
    loaded = load_model(ReplaySettings(model=folder, device="cpu", dtype="float32"), 3, full=True)
    tokenizer = loaded.tokenizer
    law = Sampling(temperature=1.0)
    rows = []
    for number in range(count):
        ids = tokenizer(asked(number, topic), add_special_tokens=False)["input_ids"]
        rows.append(Draw(tuple(ids), law, TOKENS, 1_000 + number))
    answers = [tokenizer.decode(ids) for ids in answers_of(loaded, rows)]
    return [
        json.dumps(
            {
                "id": f"{topic}-{number}",
                "prompt": asked(number, topic),
                "response": {"choices": [{"text": answer, "finish_reason": "length"}]},
                "model": "tiny",
                "temperature": 1.0,
                "max_tokens": TOKENS,
                **given,
            }
        ).encode()
        for number, answer in enumerate(answers)
    ]


@pytest.fixture
def configured(
    kafka_bootstrap: str, topic: str, model: Path, tmp_path: Path
) -> Callable[..., Settings]:
    def build(**twin: Any) -> Settings:
        folder = tmp_path / "pack"
        if not folder.exists():
            features = [feature("said", drawn(1)), feature("asked", drawn(2), region="prompt")]
            save_pack(pack_of(model, features), folder)
        return settings_for(kafka_bootstrap, topic).model_copy(
            update={
                "replay": ReplaySettings(model=model, device="cpu", dtype="float32"),
                "pack": PackSettings(path=folder),
                "twin": TwinSettings(**{"share": 1.0, "tokens": TOKENS, **twin}),
            }
        )

    return build


def worked(database: Engine, settings: Settings, values: Sequence[bytes]) -> None:
    instrument = build_instrument(settings)
    send(settings.kafka.bootstrap_servers, settings.kafka.topics[0], list(values))
    with working(database, settings, instrument.engine, pack=instrument.pack) as worker:
        run_until(worker, database, SEEN, len(values))


def rows(database: Engine, query: str) -> list[Any]:
    with transaction(database) as c:
        return list(c.execute(text(query)).mappings())


DIFFERENCES = """
    SELECT difference, score FROM monitor.twin_scores
    WHERE feature = 'said' AND prompt_id LIKE :topic ORDER BY prompt_id
"""


def differences(database: Engine, topic: str = "%") -> np.ndarray:
    """Differences and scores [n, 2]."""
    with transaction(database) as c:
        found = c.execute(text(DIFFERENCES), {"topic": topic}).all()
    return np.array([tuple(row) for row in found], dtype=np.float64)


def sure(values: np.ndarray) -> float:
    """The mean in its standard errors."""
    return float(values.mean() / (values.std(ddof=1) / len(values) ** 0.5))


def test_users_who_change_topic_move_the_feature_and_not_the_difference(
    database: Engine, configured: Callable[..., Settings], model: Path
) -> None:
    """Another prompt makes this model say other letters."""
    first, second = records(model, 60), records(model, 60, topic="ZZ{}~~##")
    worked(database, configured(), [*first, *second])
    early, late = differences(database, "question%"), differences(database, "ZZ%")
    assert (len(early), len(late)) == (60, 60)
    both = np.concatenate([early, late])
    assert abs(sure(both[:, 0])) < 3.5
    apart = np.concatenate([early[:, 1] - early[:, 1].mean(), late[:, 1] - early[:, 1].mean()])
    assert abs(sure(apart[60:])) > 5.0, "the topic moves the served scores"
    moved = np.concatenate([early[:, 0] - early[:, 0].mean(), late[:, 0] - early[:, 0].mean()])
    assert abs(sure(moved[60:])) < 4.0
    kept = rows(
        database,
        """
        SELECT feature, sum(n)::int AS n FROM monitor.twin_windows WHERE segment = 'all'
        GROUP BY feature
        """,
    )
    assert [(row["feature"], row["n"]) for row in kept] == [("said", 120)], "no twin of a prompt"


def test_a_steered_model_under_the_same_name_moves_it(
    database: Engine, configured: Callable[..., Settings], steered: Path
) -> None:
    worked(database, configured(), records(steered, 60))
    assert abs(sure(differences(database)[:, 0])) > 5.0


def test_what_has_no_twin_is_counted_with_its_reason(
    database: Engine, configured: Callable[..., Settings], model: Path
) -> None:
    (plain,) = (json.loads(value) for value in records(model, 1))
    unknown = {key: value for key, value in plain.items() if key != "temperature"}
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    chat = {key: value for key, value in plain.items() if key != "prompt"}
    chat["messages"] = [{"role": "user", "content": "look"}]
    changes = [
        plain,
        plain | {"response": {"choices": [{"text": "abc", "finish_reason": "length"}]}},
        unknown | {"prompt": "2"},
        plain | {"prompt": "4", "response_format": {"type": "json_object"}},
        chat | {"tools": [tool]},
        plain | {"prompt": "long " * 300},
    ]
    values = [json.dumps(one | {"id": f"p{n}"}).encode() for n, one in enumerate(changes)]
    worked(database, configured(), values)
    found = Counter(
        row["twinning"]
        for row in rows(database, "SELECT twinning FROM monitor_data.scores")
        if row["twinning"] is not None
    )
    assert found == {
        "paired": 1,
        "repeated": 1,
        "sampling_unknown": 1,
        "steered": 1,
        "tools_offered": 1,
        "cut": 1,
    }


def test_a_share_is_chosen_by_conversation(
    database: Engine, configured: Callable[..., Settings], model: Path
) -> None:
    told = [json.loads(value) for value in records(model, 30)]
    worked(
        database,
        configured(share=0.5),
        [
            json.dumps(one | {"conversation_id": f"c{n % 10}"}).encode()
            for n, one in enumerate(told)
        ],
    )
    by_conversation = rows(
        database,
        """
        SELECT conversation_hash, count(*) AS n, count(twinning) AS chosen
        FROM monitor_data.scores GROUP BY conversation_hash
        """,
    )
    assert {row["chosen"] for row in by_conversation} == {0, 3}


def test_a_chunk_that_comes_again_adds_nothing(
    database: Engine, configured: Callable[..., Settings], model: Path
) -> None:
    """A commit whose answer was lost: differences are in the transaction of the chunk's offsets."""
    settings = configured()
    instrument = build_instrument(settings)
    send(settings.kafka.bootstrap_servers, settings.kafka.topics[0], records(model, 8))
    with working(database, settings, instrument.engine, pack=instrument.pack) as worker:
        kept: list[Any] = []
        keep = worker._keep

        def remembered(result: Any) -> None:
            kept.append(result)
            keep(result)

        worker._keep = remembered  # type: ignore[method-assign]
        run_until(worker, database, SEEN, 8)
    query = "SELECT sum(n)::int AS n, sum(mean * n) AS total FROM monitor.twin_windows"
    before = rows(database, query)
    for result in kept:
        with pytest.raises(StaleChunk), transaction(database) as c:
            store_chunk(c, result)
    assert rows(database, query) == before
    assert before[0]["n"] == 8
