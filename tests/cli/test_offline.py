"""`monitor score`: the production path on a file, with a real tiny model."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from monitor.cli import show
from monitor.replay.engine import ReplayEngine
from monitor.replay.model import load_model
from monitor.score.pack import load_pack, save_pack
from monitor.settings import ReplaySettings
from tests.cli.conftest import Cli, Ended
from tests.scenes.packs import drawn, feature, pack_of

NATIVE = {
    "id": "n-1",
    "messages": [{"role": "user", "content": "hello there"}],
    "response": "good day to you",
}
OPENAI = {
    "request": {"model": "m", "messages": [{"role": "user", "content": "why?"}]},
    "response": {
        "id": "cmpl-2",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "because"}}],
    },
}
UNANSWERED = {"id": "n-3", "prompt": "once upon a time"}
LINES = [json.dumps(NATIVE), json.dumps(OPENAI), '{"id": "cut', "", json.dumps(UNANSWERED)]


def rows_of(ended: Ended) -> list[dict[str, Any]]:
    return [json.loads(line) for line in ended.out.splitlines()]


@pytest.fixture
def scoring(configured: Callable[..., Path], model_folder: Path, pack_folder: Path) -> Path:
    """A configuration of the tiny model and its pack, two records at a time."""
    return configured(
        replay={"model": str(model_folder), "device": "cpu"},
        pack={"path": str(pack_folder)},
        ingest={"chunk_records": 2},
    )


@pytest.fixture
def records(tmp_path: Path) -> Path:
    file = tmp_path / "records.jsonl"
    file.write_text("\n".join(LINES) + "\n", encoding="utf-8")
    return file


def test_every_record_is_a_line_with_scores_and_lineage_or_a_reason(
    cli: Cli, scoring: Path, records: Path, model_folder: Path, pack_folder: Path
) -> None:
    ended = cli("score", records, config=scoring)
    assert ended.code == 1
    assert "1 records could not be scored" in ended.err
    rows = rows_of(ended)
    assert [row["line"] for row in rows] == [1, 2, 3, 5]
    assert [row["outcome"] for row in rows] == ["scored", "scored", "dead_letter", "scored"]

    broken = rows.pop(2)
    assert broken["reason"] == "not_json"
    assert broken["detail"]

    assert [row["id"] for row in rows] == ["n-1", "cmpl-2", "n-3"]
    pack = load_pack(pack_folder)
    settings = ReplaySettings(model=model_folder, device="cpu")
    lineage = ReplayEngine(load_model(settings, 1), pack.features, settings).lineage(pack.pack_id)
    for row in rows:
        assert row["prompt_tokens"] > 0
        assert row["pack_id"] == pack.pack_id
        assert row["model_hash"] == lineage.model_hash
        assert row["dtype"] == "float32"
        assert row["engine"] == lineage.engine
        assert set(row["scores"]) == {"curt", "toxic"}
        for name, reading in row["readings"].items():
            score = row["scores"][name]
            # The calibration of these features: mean 0.5, deviation 2.
            assert (score is None) is (reading is None)
            if reading is not None:
                assert score == pytest.approx((reading - 0.5) / 2, abs=2e-6)
    # One token a byte; without a response a response's feature has no score, and is not 0.
    assert [row["response_tokens"] for row in rows] == [len("good day to you"), len("because"), 0]
    assert [row["scores"]["toxic"] is None for row in rows] == [False, False, True]
    assert all(row["scores"]["curt"] is not None for row in rows)


def test_a_file_without_faults_ends_well(cli: Cli, scoring: Path, tmp_path: Path) -> None:
    file = tmp_path / "good.jsonl"
    file.write_text(json.dumps(NATIVE), encoding="utf-8")
    ended = cli("score", file, config=scoring)
    assert ended.code == 0
    assert ended.err == ""
    assert len(rows_of(ended)) == 1


def test_chunks_do_not_change_scores(
    cli: Cli, scoring: Path, records: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_twos = rows_of(cli("score", records, config=scoring))
    monkeypatch.setenv("MONITOR_INGEST__CHUNK_RECORDS", "100")
    at_once = rows_of(cli("score", records, config=scoring))
    for one, other in zip(in_twos, at_once, strict=True):
        assert one.get("scores") == pytest.approx(other.get("scores"), abs=1e-5)


def test_standard_input_is_read_from_a_pipe(
    cli: Cli, scoring: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, writing = os.pipe()
    os.write(writing, (json.dumps(NATIVE) + "\n" + json.dumps(OPENAI) + "\n").encode())
    os.close(writing)
    with os.fdopen(reading) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        ended = cli("score", "-", config=scoring)
    assert ended.code == 0
    assert [row["id"] for row in rows_of(ended)] == ["n-1", "cmpl-2"]


def test_a_table_has_a_row_for_each_record(cli: Cli, scoring: Path, records: Path) -> None:
    ended = cli("score", records, "--table", config=scoring)
    assert ended.code == 1
    for word in ("n-1", "cmpl-2", "n-3", "not_json", "curt", "toxic"):
        assert word in ended.out


def test_a_table_of_many_features_is_readable_at_eighty_columns(
    cli: Cli,
    configured: Callable[..., Path],
    model_folder: Path,
    records: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(show.out, "width", 80)
    names = [f"misaligned.persona-{number}" for number in range(11)]
    features = [feature(name, drawn(seed), region="all") for seed, name in enumerate(names)]
    save_pack(pack_of(model_folder, features), tmp_path / "wide")
    scoring = configured(
        replay={"model": str(model_folder), "device": "cpu"}, pack={"path": str(tmp_path / "wide")}
    )
    scored = rows_of(cli("score", records, config=scoring))[0]["scores"]
    lines = cli("score", records, "--table", config=scoring).out.splitlines()
    assert max(map(len, lines)) <= 80
    (first,) = (line for line in lines if "n-1" in line)
    assert names[0] in first
    for name in names:
        told = [line for line in lines if f" {name} " in line]
        assert len(told) == 2, "a line for each record that was scored"
        assert f"{scored[name]:.3g}" in told[0]


def test_a_prompt_without_a_token_to_read_is_skipped_as_a_worker_skips_it(
    cli: Cli, scoring: Path, tmp_path: Path
) -> None:
    file = tmp_path / "short.jsonl"
    # The only token is the first, which is never pooled.
    file.write_text(json.dumps({"id": "short", "prompt": "a"}), encoding="utf-8")
    ended = cli("score", file, config=scoring)
    (row,) = rows_of(ended)
    assert (row["outcome"], row["reason"]) == ("skipped", "nothing_to_read")
    assert ended.code == 0


def test_a_prompt_alone_under_a_pack_of_answers_is_skipped_in_its_place_and_names_the_setting(
    cli: Cli,
    configured: Callable[..., Path],
    records: Path,
    model_folder: Path,
    answers_pack_folder: Path,
) -> None:
    def told(**replay: Any) -> list[dict[str, Any]]:
        config = configured(
            replay={"model": str(model_folder), "device": "cpu", "generate_tokens": 3} | replay,
            pack={"path": str(answers_pack_folder)},
        )
        return rows_of(cli("score", records, config=config))

    rows = told()
    assert [row["outcome"] for row in rows] == ["scored", "scored", "dead_letter", "skipped"]
    assert rows[3]["line"] == 5
    assert rows[3]["reason"] == "no_answer"
    assert "replay.answer_share" in rows[3]["detail"]
    answered = told(answer_share=1.0)
    assert [row.get("generated") for row in answered] == [False, False, None, True]
    assert 1 <= answered[3]["response_tokens"] <= 3


def test_arguments_win_over_file_and_environment(
    cli: Cli,
    configured: Callable[..., Path],
    records: Path,
    model_folder: Path,
    pack_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MONITOR_REPLAY__MODEL", "/no/model")
    monkeypatch.setenv("MONITOR_REPLAY__DEVICE", "cpu")
    config = configured(pack={"path": "/no/pack"})
    ended = cli("score", records, "--model", model_folder, "--pack", pack_folder, config=config)
    assert ended.code == 1
    assert sum(row["outcome"] == "scored" for row in rows_of(ended)) == 3


def test_a_pack_of_another_model_is_refused_in_sentences(
    cli: Cli, scoring: Path, records: Path, other_model_folder: Path
) -> None:
    refused = cli("score", records, "--model", other_model_folder, config=scoring)
    assert refused.code == 2
    assert refused.out == ""
    assert "the pack tiny does not fit the model" in refused.err
    assert "the model's weights differ from those the pack was made for" in refused.err
    assert "monitor pack build contrast" in refused.err


def test_other_weights_are_read_when_they_are_asked_for(
    cli: Cli,
    configured: Callable[..., Path],
    records: Path,
    other_model_folder: Path,
    pack_folder: Path,
) -> None:
    config = configured(
        replay={"model": str(other_model_folder), "device": "cpu"},
        pack={"path": str(pack_folder), "other_weights": True},
    )
    assert (
        sum(row["outcome"] == "scored" for row in rows_of(cli("score", records, config=config)))
        == 3
    )


def test_a_model_without_a_shipped_pack_is_refused(
    cli: Cli, configured: Callable[..., Path], records: Path, model_folder: Path
) -> None:
    refused = cli("score", records, "--model", model_folder, config=configured())
    assert refused.code == 2
    assert "no pack is shipped for the model" in refused.err
    assert "pack.path" in refused.err


def test_a_missing_file_is_refused(cli: Cli, scoring: Path, tmp_path: Path) -> None:
    refused = cli("score", tmp_path / "none.jsonl", config=scoring)
    assert refused.code == 2
    assert "none.jsonl: No such file or directory" in refused.err


def test_an_adapter_is_read_like_any_other_weights(
    cli: Cli,
    configured: Callable[..., Path],
    records: Path,
    model_folder: Path,
    pack_folder: Path,
    tmp_path: Path,
) -> None:
    import peft
    from transformers import AutoModelForCausalLM

    adapted = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(model_folder),
        peft.LoraConfig(target_modules=["down_proj"], init_lora_weights=False),
    )
    adapted.save_pretrained(tmp_path / "adapter")
    replay = {"model": str(model_folder), "device": "cpu"}
    with_adapter = replay | {"adapter": str(tmp_path / "adapter")}
    refused = cli(
        "score", records, config=configured(replay=with_adapter, pack={"path": str(pack_folder)})
    )
    assert refused.code == 2
    assert "the model's weights differ" in refused.err
    pack = {"path": str(pack_folder), "other_weights": True}
    ours, theirs = (
        [
            row
            for row in rows_of(cli("score", records, config=configured(replay=given, pack=pack)))
            if row["outcome"] == "scored"
        ]
        for given in (with_adapter, replay)
    )
    assert len(ours) == len(theirs) == 3
    assert ours[0]["model_hash"] != theirs[0]["model_hash"]
    assert ours[0]["scores"]["toxic"] != pytest.approx(theirs[0]["scores"]["toxic"], abs=1e-3)
