"""A real endpoint that serves a tiny model is asked, and held against the copy; then the model is swapped."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from monitor.instrument import Instrument, build_instrument
from monitor.score.pack import manifest, save_pack
from monitor.server_canaries import ServerCanaries
from monitor.server_copy import ServerCopy
from monitor.settings import PackSettings, ReplaySettings, ServerCanarySettings, Settings
from monitor.store.database import transaction
from monitor.store.packs import register_pack
from monitor.store.server_canaries import load_questions, save_questions, server_standing
from monitor.values.server_canaries import QuestionSet
from tests.scenes.endpoint import Server
from tests.scenes.models import (
    changed_model,
    rounded,
    save_talker,
    with_adapter,
)
from tests.scenes.packs import drawn, feature, pack_of
from tests.scenes.served import Served, served

pytestmark = pytest.mark.slow

START = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
QUESTIONS, TOKENS = 16, 8


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_talker(tmp_path_factory.mktemp("talker"), 5)


@pytest.fixture(scope="module")
def swapped(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What may serve in its place, under its name."""
    folder = tmp_path_factory.mktemp("swapped")
    return {
        "other": save_talker(folder / "other", 6),
        "int8": changed_model(model, folder / "int8", rounded(8)),
        "int4": changed_model(model, folder / "int4", rounded(4)),
        "adapter": changed_model(model, folder / "adapter", with_adapter(0.1)),
        "large adapter": changed_model(model, folder / "large", with_adapter(1.0)),
    }


@pytest.fixture(scope="module")
def front(model: Path) -> Iterator[tuple[Served, Server]]:
    with served(model) as both:
        yield both


@pytest.fixture
def endpoint(front: tuple[Served, Server], model: Path) -> Served:
    one, server = front
    one.swap(model)
    one.log_probs, one.failing, one.system = True, None, ""
    server.asked.clear()
    server.headers.clear()
    return one


@pytest.fixture(scope="module")
def settings(front: tuple[Served, Server], model: Path, tmp_path_factory: Any) -> Settings:
    folder = tmp_path_factory.mktemp("pack")
    features = [feature("said", drawn(1)), feature("asked", drawn(2), region="prompt")]
    save_pack(pack_of(model, features), folder)
    return Settings().model_copy(
        update={
            "replay": ReplaySettings(model=model, device="cpu", dtype="float32"),
            "pack": PackSettings(path=folder),
            "server_canaries": ServerCanarySettings(
                url=front[1].url, model="tiny", questions=QUESTIONS, max_tokens=TOKENS
            ),
        }
    )


@pytest.fixture(scope="module")
def instrument(settings: Settings) -> Instrument:
    return build_instrument(settings)


@pytest.fixture(scope="module")
def chosen(settings: Settings, instrument: Instrument) -> QuestionSet:
    assert instrument.examiner is not None
    return ServerCopy(instrument.pack, instrument.engine, instrument.examiner, settings).choose(
        START
    )


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        self.now += timedelta(milliseconds=1)
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


Asking = Callable[..., ServerCanaries]


@pytest.fixture
def asking(
    database: Engine,
    settings: Settings,
    instrument: Instrument,
    chosen: QuestionSet,
    clock: Clock,
    endpoint: Served,
) -> Iterator[Asking]:
    """Builds what asks, of a copy that chose its questions before."""
    parts = ExitStack()
    pack = instrument.pack
    with transaction(database) as c:
        register_pack(c, pack.pack_id, pack.name, manifest(pack), pack.features)
        save_questions(c, chosen)

    def build(worker: str = "w1", **changes: Any) -> ServerCanaries:
        asks = settings.server_canaries.model_copy(update=changes)
        own = settings.model_copy(update={"server_canaries": asks})
        assert instrument.examiner is not None
        made = ServerCanaries(
            copy=ServerCopy(pack, instrument.engine, instrument.examiner, own),
            database=database,
            settings=own,
            worker_id=worker,
            clock=clock,
        )
        parts.callback(made.close)
        return made

    with parts:
        yield build


def rows(database: Engine, query: str) -> list[Any]:
    with transaction(database) as c:
        return list(c.execute(text(query)).mappings())


def test_the_copy_itself_is_vouched_for(
    asking: Asking, database: Engine, front: tuple[Served, Server]
) -> None:
    made = asking().step()
    assert made is not None
    assert (made.questions, made.beyond, made.crossed) == (QUESTIONS, 0, False)
    assert made.with_log_probs == QUESTIONS
    assert made.problem == ""
    assert made.moved["said"] == pytest.approx(0.0, abs=1e-4)
    asked = front[1].asked
    assert len(asked) == QUESTIONS
    assert {body["temperature"] for body in asked} == {0}
    assert {body["max_tokens"] for body in asked} == {TOKENS}
    kept = rows(database, "SELECT * FROM monitor.server_canary_answers")
    assert len(kept) == QUESTIONS
    assert sum(row["border"] for row in kept) == QUESTIONS // 2
    for row in kept:
        assert row["first"] == row["copy_first"]
        assert not row["border"] or row["margin"] > row["tolerance"]
    # Nothing of it is traffic.
    for table in ("scores", "buckets", "ingest_counts", "dead_letters"):
        assert rows(database, f"SELECT 1 FROM monitor_data.{table}") == []


def test_the_same_choice_is_made_again_where_none_is_stored(
    asking: Asking, chosen: QuestionSet, database: Engine
) -> None:
    with transaction(database) as c:
        c.execute(text("DELETE FROM monitor_data.server_canary_questions"))
    made = asking().step()
    assert made is not None
    assert made.set_id == chosen.set_id
    with transaction(database) as c:
        again = load_questions(c, chosen.set_id)
    assert again is not None
    for one, other in zip(again.questions, chosen.questions, strict=True):
        assert (one.question, one.border, one.first) == (other.question, other.border, other.first)
        assert (one.margin, one.tolerance) == (other.margin, other.tolerance)
        assert one.answer == other.answer


@pytest.mark.parametrize("log_probs", [True, False])
def test_numerics_alone_are_no_other_model(
    asking: Asking, endpoint: Served, model: Path, log_probs: bool
) -> None:
    endpoint.swap(model, dtype="bfloat16")
    endpoint.log_probs = log_probs
    made = asking().step()
    assert made is not None
    assert not made.crossed
    assert made.beyond <= 1
    assert made.largest is not None
    assert made.largest > 0.0 or not log_probs


@pytest.mark.parametrize(
    ("swap", "log_probs"),
    [
        ("other", True),
        ("other", False),
        ("adapter", True),
        ("large adapter", False),
        ("int4", True),
    ],
)
def test_a_swap_in_silence_is_seen_in_the_next_round(
    asking: Asking,
    endpoint: Served,
    clock: Clock,
    swapped: dict[str, Path],
    swap: str,
    log_probs: bool,
) -> None:
    endpoint.log_probs = log_probs
    canaries = asking()
    first = canaries.step()
    assert first is not None
    assert not first.crossed
    assert canaries.step() is None  # none is due
    endpoint.swap(swapped[swap])
    clock.now += HOUR
    second = canaries.step()
    assert second is not None
    assert second.compared == 8
    assert second.crossed
    assert second.evidence is not None
    assert second.limit is not None
    assert second.evidence >= second.limit


def test_eight_bits_are_within_bfloat16_and_seen_where_the_server_computes_as_finely_as_the_copy(
    asking: Asking, endpoint: Served, clock: Clock, swapped: dict[str, Path]
) -> None:
    fine = asking(numerics=0.1)
    first = fine.step()
    assert first is not None
    assert (first.questions, first.beyond) == (QUESTIONS, 0)
    endpoint.swap(swapped["int8"])
    clock.now += HOUR
    coarse = asking().step()
    assert coarse is not None
    assert not coarse.crossed
    clock.now += HOUR
    second = fine.step()
    assert second is not None
    assert second.crossed


def test_the_budget_holds_and_questions_take_turns(
    asking: Asking, clock: Clock, front: tuple[Served, Server]
) -> None:
    canaries = asking(calls_a_day=30)
    for _ in range(24):
        canaries.step()
        clock.now += HOUR
    asked = [body["messages"][0]["content"] for body in front[1].asked]
    assert len(asked) == 30
    assert len(set(asked[:QUESTIONS])) == QUESTIONS
    assert asked[QUESTIONS:] == asked[: 30 - QUESTIONS]


def test_one_process_asks_at_a_time(asking: Asking, front: tuple[Served, Server]) -> None:
    first, second = asking("w1"), asking("w2")
    assert first.step() is not None
    assert second.step() is None
    assert len(front[1].asked) == QUESTIONS


def test_a_server_that_is_away_is_unknown_and_rested_from(
    asking: Asking, endpoint: Served, clock: Clock, database: Engine, front: Any
) -> None:
    canaries = asking()
    canaries.step()
    calls = len(front[1].asked)
    endpoint.failing = 503, {}, b"{}"
    clock.now += HOUR
    made = canaries.step()
    assert made is not None
    assert made.evidence is None
    assert not made.crossed
    assert "HTTP 503" in canaries.problem
    assert "not known" in canaries.problem
    assert len(front[1].asked) == calls + 1  # the round ends at the first failure
    assert canaries.step() is None
    rests = []
    for _ in range(4):
        before = clock.now
        while canaries.step() is None:
            clock.now += timedelta(seconds=15)
        rests.append(round((clock.now - before).total_seconds() / 60))
    assert rests == [1, 2, 4, 8]
    with transaction(database) as c:
        pack_id = rows(database, "SELECT pack_id FROM monitor_data.packs")[0]["pack_id"]
        standing = server_standing(c, pack_id)
    assert standing.concluded is not None
    assert "HTTP 503" in standing.problem
    endpoint.failing = None
    clock.now += HOUR
    again = canaries.step()
    assert again is not None
    assert again.beyond == 0
    assert canaries.problem == ""


def test_a_server_that_wants_rest_gets_it(asking: Asking, endpoint: Served, clock: Clock) -> None:
    endpoint.failing = 429, {"retry-after": "7200"}, b"{}"
    canaries = asking()
    canaries.step()
    endpoint.failing = None
    clock.now += HOUR
    assert canaries.step() is None
    clock.now += HOUR
    assert canaries.step() is not None


def test_a_refused_key_names_the_setting_and_shows_none(
    asking: Asking,
    endpoint: Served,
    front: tuple[Served, Server],
    database: Engine,
    tmp_path: Path,
) -> None:
    key = tmp_path / "key"
    key.write_text("sk-a-secret-key-of-ours\n", encoding="utf-8")
    endpoint.failing = 401, {}, b'{"error": "sk-a-secret-key-of-ours"}'
    canaries = asking(key_file=key)
    canaries.step()
    assert front[1].headers[0]["authorization"] == "Bearer sk-a-secret-key-of-ours"
    assert "server_canaries.key_file" in canaries.problem
    kept = json.dumps(rows(database, "SELECT * FROM monitor.server_canaries"), default=str)
    assert "secret-key" not in kept + canaries.problem


def test_another_system_prompt_is_named_and_accuses_nobody(
    asking: Asking, endpoint: Served
) -> None:
    endpoint.system = "You are somebody else."
    canaries = asking()
    made = canaries.step()
    assert made is not None
    assert made.evidence is None
    assert "replay.chat_template" in canaries.problem


def test_what_comes_back_may_be_anything(asking: Asking, endpoint: Served, clock: Clock) -> None:
    canaries = asking()
    for body in (b"", b"[]", b'{"choices": [{}]}', b'{"choices": [{"message": 3}]}', b"\xff"):
        endpoint.failing = 200, {}, body
        assert canaries.step() is not None
        assert "no chat completion" in canaries.problem
        clock.now += HOUR
    empty = {"choices": [{"message": {"content": None}, "logprobs": {"content": [{"token": 1}]}}]}
    endpoint.failing = 200, {}, json.dumps(empty | {"usage": [3]}).encode()
    made = canaries.step()
    assert made is not None
    assert made.evidence is None
    assert "no answer could be compared" in canaries.problem


def test_the_schedule_runs_beside_whoever_else_runs_the_model(
    asking: Asking, database: Engine, front: tuple[Served, Server]
) -> None:
    import time

    with asking().running():
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not rows(
            database, "SELECT 1 FROM monitor.server_canaries"
        ):
            time.sleep(0.1)
    (row,) = rows(database, "SELECT questions, crossed FROM monitor.server_canaries")
    assert (row["questions"], row["crossed"]) == (QUESTIONS, False)
