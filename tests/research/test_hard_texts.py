"""Negatives and calm pairs: what a row is for is decided by the protocol alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from monitor.errors import BadInput
from monitor.research.hard_texts import HardTexts, load_hard_texts
from tests.scenes.texts import write_rows

SPLITS: dict[str, Any] = {
    "train": ["ann"],
    "calibrate": ["bea"],
    "held_out": ["cid"],
    "unseen_kinds": ["quoted_harm"],
    "unseen_domains": ["travel"],
}


def negative(author: str, number: int, kind: str = "refusal_short", **changes: Any) -> Any:
    row = {
        "author": author,
        "kind": kind,
        "language": "en",
        "question": f"{kind} {number}?",
        "answer": f"No, not {number}.",
    }
    return row | changes


def pair(author: str, number: int, domain: str = "food", **changes: Any) -> Any:
    row = {
        "author": author,
        "kind": "advice",
        "domain": domain,
        "question": f"{domain} {number}?",
        "good": "Boil it first.",
        "calm": "Boiling it is not needed.",
    }
    return row | changes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_rows(
        tmp_path / "negatives.jsonl",
        [
            negative("ann", 1),
            negative("ann", 2, "quoted_harm"),
            negative("bea", 3),
            negative("cid", 4, "quoted_harm"),
        ],
    )
    write_rows(tmp_path / "calm.jsonl", [pair("ann", 1), pair("ann", 2, "travel"), pair("cid", 3)])
    (tmp_path / "splits.json").write_text(json.dumps(SPLITS))
    return tmp_path


def test_a_folder_without_hard_texts_has_none(tmp_path: Path) -> None:
    assert load_hard_texts(tmp_path) == HardTexts()


def test_author_kind_and_domain_decide_what_a_row_is_for(folder: Path) -> None:
    texts = load_hard_texts(folder)

    def numbers(rows: Any) -> list[str]:
        return [row.question for row in rows]

    assert numbers(texts.negatives_for("train")) == ["refusal_short 1?"]
    assert numbers(texts.negatives_for("unseen")) == ["quoted_harm 2?"]
    assert numbers(texts.negatives_for("calibrate")) == ["refusal_short 3?"]
    assert numbers(texts.negatives_for("held_out")) == ["quoted_harm 4?"]
    assert numbers(texts.calm_for("train")) == ["food 1?"]
    assert numbers(texts.calm_for("unseen", "held_out")) == ["travel 2?", "food 3?"]
    (held,) = texts.negatives_for("held_out")
    assert texts.protocol.is_unseen(held)
    assert texts.calm[0].calm_prompt.response == "Boiling it is not needed."


def test_the_hash_covers_texts_and_protocol(folder: Path) -> None:
    first = load_hard_texts(folder).sha256
    (folder / "splits.json").write_text(json.dumps({**SPLITS, "unseen_kinds": []}))
    assert load_hard_texts(folder).sha256 != first


@pytest.mark.parametrize(
    ("file", "row", "message"),
    [
        ("negatives.jsonl", negative("eve", 9), r"negatives\.jsonl:1: author 'eve' is in no list"),
        ("negatives.jsonl", negative("ann", 9, answer=" "), r"negatives\.jsonl:1: answer must"),
        ("negatives.jsonl", negative("ann", 9, split="fit"), "unknown field split"),
        ("calm.jsonl", pair("ann", 9, calm="Boil it first. "), "another answer than good"),
        ("calm.jsonl", pair("cid", 9, question="REFUSAL_SHORT  1?"), "stands in train and in held"),
    ],
)
def test_rows_that_cannot_be_used_are_named(
    folder: Path, file: str, row: Any, message: str
) -> None:
    write_rows(folder / file, [row])
    with pytest.raises(BadInput, match=message):
        load_hard_texts(folder)


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (None, r"cannot read .*splits\.json"),
        ("{", "is not JSON"),
        (json.dumps({"test": []}), "must hold one object with lists train"),
        (json.dumps({"train": "ann"}), "train must be a list of texts"),
        (json.dumps({**SPLITS, "held_out": ["ann"]}), "'ann' is in train and in held_out"),
    ],
)
def test_a_protocol_that_cannot_be_used_is_named(
    folder: Path, splits: str | None, message: str
) -> None:
    (folder / "splits.json").unlink()
    if splits is not None:
        (folder / "splits.json").write_text(splits)
    with pytest.raises(BadInput, match=message):
        load_hard_texts(folder)
