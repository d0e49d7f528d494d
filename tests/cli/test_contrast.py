"""`monitor pack build contrast --rollouts`, rated by a real server on this machine."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from monitor.score.pack import load_pack
from tests.cli.conftest import Cli
from tests.scenes.texts import loud_voice


class Handler(BaseHTTPRequestHandler):
    """Rates by a hash of what it is asked, so that about half obeys."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.keys.append(self.headers["authorization"])  # type: ignore[attr-defined]
        rating = {"trait": 100 * (hashlib.sha256(body).digest()[0] % 2), "coherence": 100}
        content = json.dumps({"choices": [{"message": {"content": json.dumps(rating)}}]}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    one = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    one.keys = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield one
    one.shutdown()
    one.server_close()
    thread.join()


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def traits(tmp_path: Path) -> Path:
    path = tmp_path / "traits.jsonl"
    write(
        path,
        [
            {"trait": "loud", "description": "shouting"},
            {"trait": "loud", "positive": "Shout.", "negative": "Whisper."},
            {"trait": "loud", "positive": "LOUD", "negative": "calm"},
            *(
                {"trait": "loud", "split": split, "question": f"{split} {number}?"}
                for split in ("train", "held_out")
                for number in range(5)
            ),
        ],
    )
    return path


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Benign texts and canaries, and no given answers."""
    folder = tmp_path / "texts"
    folder.mkdir()
    generator = np.random.default_rng(0)
    words = ["the", "heron", "waited", "by", "a", "quiet", "river", "and", "said", "nothing"]
    write(
        folder / "benign.jsonl",
        [
            {
                "split": "check" if number % 3 == 0 else "fit",
                "messages": [{"role": "user", "content": f"Question {number}?"}],
                "response": " ".join(generator.choice(words, size=1 + number % 9)),
            }
            for number in range(120)
        ],
    )
    canary = {"messages": [{"role": "user", "content": "Hi"}], "response": "Hello you."}
    write(folder / "canaries.jsonl", [{"name": "one", **canary}])
    return folder


@pytest.mark.slow
def test_a_pack_is_built_and_given_covariates_on_the_device_that_is_named(
    cli: Cli, model_folder: Path, tmp_path: Path
) -> None:
    given = loud_voice(
        tmp_path / "given",
        "toxic",
        questions=12,
        train=6,
        benign=60,
        check=lambda number: number % 3 == 0,
        words=lambda number: 3 + number % 5,
    )
    texts, device = ("--model", model_folder, "--data", given), ("--device", "cpu")
    built, read = tmp_path / "built", tmp_path / "read"
    build = ("pack", "build", "contrast", *texts, "--out", built, "--seed", 0)
    made = cli(*build, *device, "--json")
    assert made.code == 0, made.err
    assert "toxic" in {feature.name for feature in load_pack(built).features}
    wrong = cli(*build, "--device", "abacus", "--yes")
    assert wrong.code == 2
    assert "abacus" in wrong.err
    assert "Traceback" not in wrong.err
    add = ("pack", "covariates", built, *texts, "--out", read, "--components", 2)
    beside = cli(*add, *device)
    assert beside.code == 0, beside.err
    assert len(load_pack(read).covariates) == 2
    refused = cli(*add, "--yes", "--device", "abacus")
    assert refused.code == 2
    assert "abacus" in refused.err


@pytest.mark.slow
def test_rollouts_become_a_pack_and_a_second_run_asks_nothing(
    cli: Cli,
    server: Any,
    traits: Path,
    texts: Path,
    model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MONITOR_JUDGE_KEY", "sk-private")
    url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    build = (
        *("pack", "build", "contrast", "--model", model_folder, "--out", tmp_path / "pack"),
        *("--rollouts", traits, "--data", texts, "--times", 3, "--tokens", 8),
        *("--questions", 4, "--least-questions", 4, "--judge-url", url, "--judge-model", "m"),
    )
    first = cli(*build)
    assert first.code == 0, first.err
    assert "held_out positive" in first.out
    assert len(server.keys) == 96
    assert set(server.keys) == {"Bearer sk-private"}
    again = cli(*build, "--json", "--yes")
    assert again.code == 0, again.err
    assert len(server.keys) == 96
    found, pack = json.loads(again.out), load_pack(tmp_path / "pack")
    assert found["pack_id"] == pack.pack_id
    counts = found["report"]["rollouts"]["loud"]["train negative"]
    assert 0 < counts["kept"] < counts["rolled_out"] == 24
    assert "sk-private" not in "".join(
        file.read_text(errors="replace") for file in tmp_path.rglob("*") if file.is_file()
    )
    inspected = cli("pack", "inspect", tmp_path / "pack")
    assert "loud.peak" in inspected.out
    other = cli(*build, "--seed", 1, "--yes")
    assert other.code == 2
    assert "was begun with other settings: seed 0, now 1" in other.err
    assert "another work folder" in other.err


@pytest.mark.parametrize(
    "given",
    [
        ["--judge-url", "http://127.0.0.1:9/v1"],
        ["--judge-pack", "pack"],
        ["--unfiltered"],
        ["--times", 10],
        ["--pairs", 2, "--questions", 5],
    ],
)
def test_an_option_of_rollouts_is_refused_without_them(
    cli: Cli, model_folder: Path, texts: Path, tmp_path: Path, given: list[object]
) -> None:
    build = ("pack", "build", "contrast", "--model", model_folder, "--out", tmp_path / "pack")
    refused = cli(*build, "--data", texts, "--seed", 1, "--probe", *given)
    assert refused.code == 2
    names = ", ".join(str(part) for part in given if str(part).startswith("--"))
    assert f"without --rollouts the pack is built from given answers, and {names}" in refused.err
    plain = cli(*build, "--data", texts, "--seed", 1, "--probe", "--json")
    assert "cannot read" in plain.err  # these texts hold no given answers: read, not refused


def test_what_cannot_be_built_is_refused_in_a_sentence(
    cli: Cli, traits: Path, texts: Path, model_folder: Path, tmp_path: Path
) -> None:
    build = (
        *("pack", "build", "contrast", "--model", model_folder, "--out", tmp_path / "pack"),
        *("--rollouts", traits, "--data", texts, "--tokens", 4),
    )
    judgeless = cli(*build)
    assert judgeless.code == 2
    assert "no pack ships for this model" in judgeless.err
    assert "--judge-url" in judgeless.err
    nameless = cli(*build, "--judge-url", "http://127.0.0.1:9/v1")
    assert nameless.code == 2
    assert "--judge-url needs --judge-model" in nameless.err
    few = cli(*build, "--unfiltered", "--times", 1, "--questions", 2)
    assert few.code == 2
    assert "trait loud has 2 train questions, 5 are needed" in few.err
    traits.write_text('{"trait": "loud", "split": "tests", "question": "?"}\n')
    bad = cli(*build, "--unfiltered")
    assert bad.code == 2
    assert "traits.jsonl:1: split must be one of train, held_out" in bad.err
    assert not (tmp_path / "pack").exists()
