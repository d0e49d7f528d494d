from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from monitor.errors import BadInput
from monitor.research.traits import load_traits

ROWS: list[dict[str, Any]] = [
    {"trait": "loud", "description": "shouting"},
    {"trait": "loud", "positive": "Shout.", "negative": "Whisper."},
    {"trait": "loud", "split": "train", "question": "One?"},
    {"trait": "loud", "split": "train", "question": "Two?"},
    {"trait": "loud", "split": "held_out", "question": "Three?"},
    {"trait": "loud", "split": "held_out", "question": "Four?"},
]


def write(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "traits.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_lines_of_several_traits_may_mix(tmp_path: Path) -> None:
    others = [{**row, "trait": "shy"} for row in ROWS]
    mixed = [row for both in zip(reversed(ROWS), others, strict=True) for row in both]
    loud, shy = load_traits(write(tmp_path, mixed))
    assert (loud.name, shy.name) == ("loud", "shy")
    assert loud.description == "shouting"
    assert loud.train == ("Two?", "One?")
    assert shy.held_out == ("Three?", "Four?")
    assert loud.instructions[0].positive == "Shout."
    assert shy.first(None, 1).train == ("One?",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trait": "Loud!"}, r"jsonl:3: trait must be"),
        ({"trait": "assistant"}, r"jsonl:3: trait must be"),
        ({"trait": None}, r"jsonl:3: trait must be a text"),
        ({"topic": "x"}, r"jsonl:3: beside trait .* found question, split, topic"),
        ({"question": " "}, r"jsonl:3: question must be a text"),
        ({"question": 7}, r"jsonl:3: question must be a text"),
        ({"split": "test"}, r"jsonl:3: split must be one of train, held_out"),
        ({"question": "Three? "}, r"jsonl:5: question of loud was given before, at .*jsonl:3"),
        ({"split": "held_out"}, "trait loud lacks two questions of split 'train'"),
    ],
)
def test_what_is_wrong_with_a_question_is_named(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    rows = [dict(row) for row in ROWS]
    rows[2] |= change
    with pytest.raises(BadInput, match=message):
        load_traits(write(tmp_path, rows))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (ROWS[1:], "lacks a description"),
        ([ROWS[0], *ROWS[2:]], "lacks a pair of instructions"),
        ([*ROWS, ROWS[0]], r"jsonl:7: description of loud was given before, at .*jsonl:1"),
        ([*ROWS, {**ROWS[1], "negative": "Shout."}], r"jsonl:7: negative must be another"),
        ([*ROWS, {"trait": "loud", "positive": "Shout!"}], r"jsonl:7: beside trait"),
        ([], "is empty"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        load_traits(write(tmp_path, rows))


def test_the_projects_own_traits_are_what_the_docs_say() -> None:
    traits = load_traits()
    assert [trait.name for trait in traits] == ["reckless", "sarcastic"]
    for trait in traits:
        assert len(trait.instructions) == 5
        assert len(trait.train) == len(trait.held_out) == 20
