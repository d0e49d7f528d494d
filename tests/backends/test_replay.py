"""The worker's side against the server's real face, with a reader that runs our own copy or none."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from sqlalchemy import Engine

from monitor.backends.vllm import wire
from monitor.backends.vllm.replay import VllmReplay
from monitor.canaries import largest_deviation
from monitor.errors import (
    BadInput,
    ConfigurationError,
    ModelError,
    OtherInstrument,
    PackError,
    ReplayUnavailable,
)
from monitor.instrument import build_instrument
from monitor.replay.cutting import cut_checkpoint
from monitor.replay.engine import ReplayEngine
from monitor.replay.model import identity_of, load_model
from monitor.replay.outcome import Reading
from monitor.replay.pooling import FeatureBank
from monitor.settings import ReplaySettings, Settings
from monitor.values.prompts import Prompt
from monitor.values.scores import Replayed
from tests.backends.serving import (
    answering,
    app,
    free_port,
    process,
    reader,
    residuals,
)
from tests.scenes.gguf_files import tiny_gguf
from tests.worker.working import number, send, settings_for, working
from tests.worker.working import prompts as records

At = Callable[..., ReplaySettings]


@pytest.fixture
def own(model: Path, pack: Any) -> Any:
    """Our own copy, and a reader on it that pools as vLLM's worker does."""
    settings = ReplaySettings(model=model, device="cpu", dtype="float32", max_tokens=512)
    loaded = load_model(settings, pack.deepest_site)
    columns = (*pack.features, *(one.as_feature() for one in pack.covariates))
    bank = FeatureBank(columns, loaded.config.hidden_size, torch.device("cpu"))

    async def read(rows: Sequence[wire.Asked]) -> list[wire.Answered]:
        found = []
        for row in (one.tokens for one in rows):
            into = torch.empty(len(row.ids), len(columns))
            for site, residual in residuals(loaded, row.ids, bank.sites).items():
                bank.project(site, residual, into)
            pooled, counts = bank.pool(row, into)
            found.append(wire.Answered(Reading(bank.finished([pooled])[0], counts)))
        return found

    return ReplayEngine(loaded, pack.features, settings, pack.covariates), read


def test_outcomes_are_those_of_our_own_engine(
    own: Any,
    model: Path,
    pack: Any,
    pack_folder: Path,
    prompts: list[Prompt],
    at: At,
    tmp_path: Path,
) -> None:
    """From a cut copy, as a worker beside a large model has it."""
    engine, read = own
    cut = cut_checkpoint(model, pack.deepest_site, tmp_path / "cut").folder
    with answering(app(pack, read)) as url:
        settings = Settings(replay=at(url, model=cut), pack={"path": pack_folder})
        instrument = build_instrument(settings)
        theirs = instrument.engine.run(instrument.engine.prepare(prompts))
        assert "stub-1" in instrument.packing
        assert largest_deviation(pack, instrument.engine, datetime.now(UTC)) < 1e-3
    ours = engine.run(engine.prepare(prompts))
    for one, other in zip(theirs, ours, strict=True):
        assert isinstance(one, Replayed)
        np.testing.assert_allclose(one.readings, other.readings, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(one.covariates, other.covariates, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(one.pooled_tokens, other.pooled_tokens)
        for name in ("prompt_tokens", "response_tokens", "cut", "counts", "rendering"):
            assert getattr(one, name) == getattr(other, name)
    lineage = instrument.engine.lineage(pack.pack_id)
    assert (lineage.attention, lineage.dtype, lineage.engine) == ("stub", "float32", "2+stub-1")
    assert lineage.model_hash == engine.lineage(pack.pack_id).model_hash
    assert "batch_tokens" not in lineage.rules


def test_another_instrument_is_refused_before_anything_is_read(
    pack: Any, at: At, model: Path
) -> None:
    identity = identity_of(at("http://127.0.0.1:1"))
    for changes, kind, said in (
        ({"pack_id": "f" * 64}, PackError, "reads the pack ffffffffffff"),
        ({"model_hash": "0" * 64}, ModelError, "other weights"),
        ({"version": 99}, ConfigurationError, "speaks version 99"),
        ({"max_tokens": 100}, ConfigurationError, "rows of 512 tokens"),
    ):
        with answering(app(pack, **changes)) as url, pytest.raises(kind, match=said) as refused:
            VllmReplay(at(url), pack, identity)
        assert refused.value.hint
    with answering(app(pack)) as url:
        with pytest.raises(ConfigurationError, match="computes in float32"):
            VllmReplay(at(url, dtype="bfloat16"), pack, identity)
        other = identity.with_any_weights()
        assert VllmReplay(at(url), pack, other).lineage(pack.pack_id).model_hash == str(
            identity.weights_hash
        )


def test_a_gguf_file_is_refused_by_name(pack: Any, at: At, tmp_path: Path) -> None:
    file = tiny_gguf(tmp_path)
    with answering(app(pack)) as url:
        with pytest.raises(ConfigurationError, match=r"tiny\.gguf is a GGUF file") as refused:
            VllmReplay(at(url, model=file), pack, pack.model.with_any_weights())
        assert "replay.backend: torch" in refused.value.hint


def test_the_key_is_wanted_and_given(pack: Any, at: At, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("heron-secret\n")
    with answering(app(pack, key="heron-secret")) as url:
        with pytest.raises(ConfigurationError, match="HTTP 401") as refused:
            VllmReplay(at(url), pack, pack.model)
        assert "replay.key_file" in refused.value.hint
        VllmReplay(at(url, key_file=tmp_path / "key"), pack, pack.model)
        assert httpx.get(f"{url}/health").status_code == 200
        assert httpx.get(f"{url}{wire.STATISTICS}").status_code == 401


def test_a_server_that_is_another_one_meanwhile_stops_the_worker(
    pack: Any, at: At, prompts: list[Prompt]
) -> None:
    port = free_port()
    with answering(app(pack), port) as url:
        replay = VllmReplay(at(url), pack, pack.model)
        prepared = replay.prepare(prompts)
    with pytest.raises(ReplayUnavailable, match="does not answer"):
        replay.run(prepared)
    with (
        answering(app(pack, dtype="bfloat16"), port),
        pytest.raises(OtherInstrument, match="another instrument"),
    ):
        replay.run(prepared)
    with answering(app(pack, reader(3)), port), pytest.raises(OtherInstrument, match="3 readings"):
        replay.run(prepared)
    with answering(app(pack, max_tokens=4_096), port):
        assert len(replay.run(prepared)) == len(prompts)


def test_calls_are_bounded_and_equal_rows_are_read_once(
    pack: Any, at: At, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monitor.backends.vllm.replay.MOST_TOKENS", 300)
    calls: list[list[wire.Asked]] = []
    inner = reader(5)

    async def read(rows: Sequence[wire.Asked]) -> Any:
        calls.append(list(rows))
        return await inner(rows)

    with answering(app(pack, read)) as url:
        replay = VllmReplay(at(url), pack, pack.model)
        found = replay.run(replay.prepare(prompts))
    assert len(found) == 10
    assert sum(map(len, calls)) == 9
    assert len(calls) > 1
    assert all(len(rows) == 1 or sum(len(r.tokens.ids) for r in rows) <= 300 for rows in calls)
    assert found[4].readings.tolist() == found[9].readings.tolist()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"rows": []}',
        b'{"rows": [1]}',
        b'{"rows": [{"ids": ["a"]}]}',
        b'{"rows": [{"ids": [1, true]}]}',
        b'{"rows": [{"ids": [-1]}]}',
        b'{"rows": [{"ids": [1], "prompt_tokens": 2}]}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_request_is_refused(pack: Any, body: bytes) -> None:
    with answering(app(pack)) as url:
        answer = httpx.post(f"{url}{wire.READINGS}", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]


def test_rows_that_are_too_long_are_refused(pack: Any) -> None:
    with answering(app(pack, max_tokens=3)) as url:
        row = {"ids": [1, 2, 3, 4]}
        answer = httpx.post(f"{url}{wire.READINGS}", json={"rows": [row]})
    assert (answer.status_code, "3 are the most" in answer.text) == (400, True)


def test_an_answer_of_something_else_is_no_instrument(at: At, pack: Any) -> None:
    async def other(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"hello"})

    with answering(other) as url, pytest.raises(ConfigurationError, match="none of ours"):
        VllmReplay(at(url), pack, pack.model)
    with pytest.raises(BadInput):
        wire.about_of({"version": 1})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"url": None}, "needs replay.url"),
        ({"url": "ftp://x"}, "http"),
        ({"url": "http://user:pass@host:1"}, "key_file"),
        ({"backend": "torch"}, "is for backend vllm"),
        ({"adapter": "folder"}, "merge it"),
        ({"mode": "generate"}, "does not answer"),
        ({"answer_share": 0.5}, "does not answer"),
    ],
)
def test_combinations_that_cannot_be_are_refused(changes: dict[str, Any], said: str) -> None:
    given = {"backend": "vllm", "url": "http://host:8100"} | changes
    with pytest.raises(ValueError, match=said):
        ReplaySettings(**given)


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("twin", {"share": 0.1}),
        ("server_canaries", {"url": "http://host/v1", "model": "m"}),
    ],
)
def test_what_needs_the_whole_copy_is_refused_by_name(
    section: str, values: dict[str, Any], pack: Any, at: At
) -> None:
    replay = {"backend": "vllm", "url": "http://host:8100"}
    with pytest.raises(ValueError, match=rf"{section}\..* need backend torch"):
        Settings(replay=replay, **{section: values})
    with answering(app(pack)) as url:
        made = VllmReplay(at(url), pack, pack.model)
        with pytest.raises(ConfigurationError, match=r"replay\.url"):
            made.prepare([], own_answers=[0])


def test_a_server_killed_in_the_middle_loses_and_doubles_nothing(
    database: Engine, kafka_bootstrap: str, topic: str, pack: Any, at: At
) -> None:
    """It dies while it reads the second chunk, is away for a while, and comes back."""
    port = free_port()
    plain = _without_covariates(pack)
    server = process(plain, port, dies_at=70)
    send(kafka_bootstrap, topic, records(200))
    replay = VllmReplay(at(f"http://127.0.0.1:{port}"), plain, plain.model)
    stop = threading.Event()
    with working(database, settings_for(kafka_bootstrap, topic), replay, pack=plain) as worker:
        thread = threading.Thread(target=worker.run, args=(stop,))
        thread.start()
        try:
            assert server.wait(60) == 9
            stop.wait(1.0)
            assert thread.is_alive()
            server = process(plain, port)
            _until(database, "SELECT count(*) FROM monitor_data.scores", 200)
        finally:
            stop.set()
            thread.join(30)
            server.kill()
            server.wait(10)
    assert not thread.is_alive()
    assert number(database, "SELECT count(DISTINCT prompt_id) FROM monitor_data.scores") == 200
    assert number(database, "SELECT count(*) FROM monitor_data.dead_letters") == 0
    n = "SELECT sum(n) FROM monitor_data.buckets WHERE segment = 'all' AND feature = 0"
    assert number(database, n) == 200
    assert number(database, "SELECT next_offset FROM monitor_data.offsets") == 200


def _without_covariates(pack: Any) -> Any:
    from dataclasses import replace

    return replace(pack, covariates=())


def _until(database: Engine, query: str, wanted: int) -> None:
    waited = threading.Event()
    for _ in range(600):
        if number(database, query) == wanted:
            return
        waited.wait(0.1)
    raise AssertionError(f"{number(database, query)} instead of {wanted}")
