"""The contract of docs/engines.md over HTTP: the monitor's own server, and one that is written from the page alone."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from monitor.backends.vllm.replay import VllmReplay
from monitor.errors import ConfigurationError, ReplayUnavailable
from monitor.settings import ReplaySettings
from monitor.values.prompts import Prompt, Sampling
from monitor.values.scores import Replayed
from monitor.values.surprise import NotWeighed, Surprise
from tests.backends.serving import answering, app

At = Callable[..., ReplaySettings]
KEY = "heron-secret"
SAYS = "/v1/instrument"
READS = "/v1/readings"


class Another(BaseHTTPRequestHandler):
    """A server of an engine that the monitor knows nothing of; it imports nothing of the monitor's.

    What it reads of a row is made up of its ids: what arrives is checked, not what a model makes of it.
    """

    instrument: dict[str, Any]
    columns: int
    fails: int = 0

    def do_GET(self) -> None:
        if self.path == "/health":
            self._say(200, {"status": "ok"})
        elif not self._known():
            self._say(401, {"error": "no key"})
        elif self.path == SAYS:
            self._say(200, self.instrument)
        elif self.path == "/v1/statistics":
            self._say(200, {"passes": 3})
        else:
            self._say(404, {"error": "nothing here"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if not self._known():
            self._say(401, {"error": "no key"})
        elif type(self).fails > 0:
            type(self).fails -= 1
            self._say(503, {"error": "the engine is gone"})
        else:
            self._read(body)

    def _read(self, body: bytes) -> None:
        try:
            rows = json.loads(body)["rows"]
            if not 0 < len(rows) <= 1_024:
                raise ValueError
            answers = [self._answer(row) for row in rows]
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
            self._say(400, {"error": "these are no rows"})
            return
        self._say(200, {"instrument": self.instrument, "rows": answers})

    def _answer(self, row: dict[str, Any]) -> dict[str, Any]:
        ids, asked, thought = row["ids"], row["prompt_tokens"], row["reasoning_tokens"]
        bits = base64.b64decode(row["readable"], validate=True)
        if not all(type(one) is int and one >= 0 for one in ids):
            raise ValueError
        if not 0 < len(ids) <= self.instrument["max_tokens"] or len(bits) != -(-len(ids) // 8):
            raise ValueError
        if min(asked, thought) < 0 or asked + thought > len(ids):
            raise ValueError
        readable = [bool(bits[place // 8] >> (7 - place % 8) & 1) for place in range(len(ids))]
        mean = np.mean([one for one, may in zip(ids, readable, strict=True) if may] or [np.nan])
        answer = {
            "readings": _packed(np.full(self.columns, mean), "<f4"),
            "pooled_tokens": _packed(np.full(self.columns, sum(readable)), "<i8"),
        }
        if laws := row.get("laws"):
            if self.instrument["no_weighing"]:
                raise ValueError
            said = len(ids) - asked
            answer["weighed"] = [self._weighed(law, said) for law in laws]
        return answer

    def _weighed(self, law: dict[str, Any], tokens: int) -> dict[str, Any]:
        if law["sampling"]["temperature"] == 0.5:
            return {"outcome": "not_weighed", "reason": "out_of_memory"}
        if law.get("estimate", ...) is None:
            return {
                "outcome": "likelihood",
                "tokens": tokens,
                "logs": [-1.5] * 288,
                "squares": [1] * 288,
            }
        return {
            "outcome": "surprise",
            "law": "sampled",
            "said_by": "record",
            "tokens": tokens,
            "excess": 0.25 * tokens,
            "variance": 2.0,
            "peak": 1,
            "off_support": 0,
            "given_away": 0,
            "log_bets": [0.1, 0.2, 0.3, 0.4, 0.5],
            "counted_bets": None,
            "likelihood": None,
        }

    def _known(self) -> bool:
        return self.headers["authorization"] == f"Bearer {KEY}"

    def _say(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing of a row is logged."""


def _packed(values: Any, kind: str) -> str:
    return base64.b64encode(np.asarray(values).astype(kind).tobytes()).decode()


@contextmanager
def another(pack: Any, **changes: Any) -> Iterator[str]:
    told = {
        "version": 2,
        "pack_id": pack.pack_id,
        "model_hash": pack.model.weights_hash,
        "model_id": pack.model.model_id,
        "dtype": "bfloat16",
        "device": "cuda",
        "engine": "sglang-0.5.23",
        "max_tokens": 1_024,
        "no_weighing": "",
    }
    columns = len(pack.features) + len(pack.covariates)
    held = {"instrument": told, "columns": columns} | changes
    kind = type("Held", (Another,), held)
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


@contextmanager
def our_own(pack: Any) -> Iterator[str]:
    with answering(app(pack, key=KEY)) as url:
        yield url


@pytest.fixture(params=[our_own, another], ids=["ours", "another"])
def url(request: pytest.FixtureRequest, pack: Any) -> Iterator[str]:
    with request.param(pack) as where:
        yield where


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    (tmp_path / "key").write_text(f"{KEY}\n")
    return tmp_path / "key"


@pytest.fixture
def row(pack: Any, at: At, prompts: list[Prompt], url: str, key_file: Path) -> Any:
    """A row as a worker sends it."""
    from monitor.backends.vllm import wire

    replay = VllmReplay(at(url, key_file=key_file), pack, pack.model)
    return wire.row_of(wire.Asked(tokens=replay.prepare(prompts).replays[0]))


def call(url: str, path: str, key: str = KEY, **given: Any) -> httpx.Response:
    method = "POST" if given else "GET"
    return httpx.request(method, url + path, headers={"authorization": f"Bearer {key}"}, **given)


def test_health_needs_no_key_and_all_else_does(url: str) -> None:
    assert httpx.get(f"{url}/health").status_code == 200
    for path in (SAYS, "/v1/statistics"):
        assert call(url, path).status_code == 200
        assert call(url, path, key="other").status_code == 401
    assert call(url, READS, key="other", json={"rows": []}).status_code == 401


def test_the_instrument_has_the_entries_of_the_page(url: str) -> None:
    told = call(url, SAYS).json()
    kinds = dict.fromkeys(("version", "max_tokens"), int)
    names = ("pack_id", "model_hash", "model_id", "dtype", "device", "engine", "no_weighing")
    kinds |= dict.fromkeys(names, str)
    assert {name: type(one) for name, one in told.items()} == kinds
    assert told["version"] == 2
    page = Path(__file__).parents[2].joinpath("docs", "engines.md").read_text()
    assert all(f"`{name}`" in page for name in kinds)


def test_readings_come_in_order_with_the_instrument(url: str, row: Any, pack: Any) -> None:
    longer = row | {"ids": [*row["ids"], 9], "readable": _bits(len(row["ids"]) + 1)}
    answer = call(url, READS, json={"rows": [row, longer, row]})
    assert answer.status_code == 200
    content = answer.json()
    assert content["instrument"] == call(url, SAYS).json()
    columns = len(pack.features) + len(pack.covariates)
    first, second, third = content["rows"]
    assert first == third != second
    for one in (first, second):
        assert len(base64.b64decode(one["readings"])) == 4 * columns
        assert len(base64.b64decode(one["pooled_tokens"])) == 8 * columns
        assert "weighed" not in one


@pytest.mark.parametrize(
    "changes",
    [
        {"ids": []},
        {"ids": [1, -1]},
        {"ids": [5] * 5_000},
        {"prompt_tokens": -1},
        {"prompt_tokens": 5_000},
        {"reasoning_tokens": None},
        {"readable": "!"},
        {"readable": ""},
        {"laws": 3},
        {"laws": [{"temperature": 1.0}], "ends": [1]},
    ],
    ids=str,
)
def test_a_row_that_is_none_is_refused_in_a_sentence(
    url: str, row: Any, changes: dict[str, Any]
) -> None:
    answer = call(url, READS, json={"rows": [row, row | changes]})
    assert answer.status_code == 400
    assert isinstance(answer.json()["error"], str)


def test_a_worker_reads_and_weighs_by_an_engine_that_it_does_not_know(
    pack: Any, at: At, prompts: list[Prompt], key_file: Path
) -> None:
    from monitor.values.likelihood import Likelihood, Untold

    laws = {
        0: Sampling(temperature=1.0),
        1: Sampling(temperature=0.5),
        2: Untold(said=Sampling(), law=None),
        3: Sampling(temperature=1.0),
    }
    with another(pack) as url:
        replay = VllmReplay(at(url, key_file=key_file), pack, pack.model, weighs=True)
        prepared = replay.prepare(prompts, weighed=laws)
        found = replay.run(prepared)
        lineage = replay.lineage(pack.pack_id)
    for index, one in enumerate(found):
        assert isinstance(one, Replayed)
        tokens = prepared.tokens[index]
        mean = np.mean(np.array(tokens.ids)[tokens.readable])
        np.testing.assert_allclose(one.readings, mean, rtol=1e-6)
        assert one.pooled_tokens.tolist() == [int(tokens.readable.sum())] * len(pack.features)
    first, second, third, fourth = (one.weighed for one in found[:4])
    assert isinstance(first, Surprise)
    assert first.excess == 0.25 * first.tokens == 0.25 * prepared.tokens[0].response_tokens
    assert second is NotWeighed.OUT_OF_MEMORY
    assert isinstance(third, Likelihood)
    assert fourth is NotWeighed.NO_ANSWER
    assert (lineage.attention, lineage.dtype, lineage.device) == ("sglang", "bfloat16", "cuda")
    assert lineage.engine.endswith("+sglang-0.5.23")


def test_an_engine_that_is_gone_is_waited_for_and_one_that_cannot_weigh_refused(
    pack: Any, at: At, prompts: list[Prompt], key_file: Path
) -> None:
    with another(pack, fails=1) as url:
        replay = VllmReplay(at(url, key_file=key_file), pack, pack.model)
        prepared = replay.prepare(prompts)
        with pytest.raises(ReplayUnavailable, match="HTTP 503"):
            replay.run(prepared)
        assert len(replay.run(prepared)) == len(prompts)
        told = call(url, SAYS).json()
    with (
        another(pack, instrument=told | {"no_weighing": "it runs a cut copy"}) as url,
        pytest.raises(ConfigurationError, match="weighs no answers: it runs a cut copy"),
    ):
        VllmReplay(at(url, key_file=key_file), pack, pack.model, weighs=True)
    older = {name: one for name, one in told.items() if name != "no_weighing"} | {"version": 1}
    with (
        another(pack, instrument=older) as url,
        pytest.raises(ConfigurationError, match="speaks version 1, the worker 2"),
    ):
        VllmReplay(at(url, key_file=key_file), pack, pack.model)


def _bits(n: int) -> str:
    return base64.b64encode(np.packbits(np.ones(n, np.bool_)).tobytes()).decode()
