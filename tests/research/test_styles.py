"""One content in several styles: what a row must hold, and the project's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from monitor.errors import BadInput
from monitor.research.styles import PLAIN, StyleTexts, load_styles
from monitor.research.texts import DATA
from tests.scenes.texts import write_rows


def row(number: int, **changes: Any) -> dict[str, Any]:
    given = {
        "topic": "bread",
        "question": f"How long do I bake loaf {number}?",
        "plain": f"Bake loaf {number} for forty minutes.",
        "terse": f"{number}: forty minutes.",
    }
    return {name: value for name, value in (given | changes).items() if value is not None}


def test_a_folder_without_styles_has_none(tmp_path: Path) -> None:
    assert load_styles(tmp_path) == StyleTexts()


def test_a_row_may_leave_a_style_out(tmp_path: Path) -> None:
    rows = [row(number, pirate="Arr, forty!" if number % 2 else None) for number in range(10)]
    write_rows(tmp_path / "styles.jsonl", rows)
    found = load_styles(tmp_path)
    assert found.styles == ("terse", "pirate")
    assert set(found.rows[0].styles) == {PLAIN, "terse"}
    assert found.rows[1].prompt("pirate").response == "Arr, forty!"
    assert found.rows[1].prompt(PLAIN).messages[0].content == "How long do I bake loaf 1?"
    assert len(found.sha256) == 64


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (row(9, plain=None), r"styles\.jsonl:10: plain must be a text"),
        (row(9, topic=None), r"styles\.jsonl:10: topic must be a text"),
        (row(9, terse=" "), r"styles\.jsonl:10: terse must be a text"),
        (row(9, terse=None), "add the same content in another style"),
        (row(9, terse="Bake loaf 9 for forty minutes."), "two styles have the same text"),
        (row(8), r"the question stands in .*styles\.jsonl:9 already"),
        (row(9, formall="One bakes it."), "1 row with the style 'formall', at least 5 are needed"),
    ],
)
def test_rows_that_cannot_be_used_are_named(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    write_rows(tmp_path / "styles.jsonl", [*(row(number) for number in range(9)), changed])
    with pytest.raises(BadInput, match=message):
        load_styles(tmp_path)


def test_the_projects_own_say_every_content_in_every_style_at_like_length() -> None:
    found = load_styles(DATA)
    assert len(found.rows) == 40
    assert found.styles == ("terse", "formal", "pirate", "german", "spanish")
    for one in found.rows:
        assert {PLAIN, "terse", "formal", "pirate"} < set(one.styles), one.topic
        assert {"german", "spanish"} & set(one.styles), one.topic
        for style, text in one.styles.items():
            assert 25 <= len(text.split()) <= 80, (one.topic, style)
