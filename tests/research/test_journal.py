from __future__ import annotations

from pathlib import Path

import pytest

from monitor.errors import BadInput
from monitor.research.journal import journal

HEADER = {"seed": 0, "model": "one"}


def test_rows_are_there_the_next_time(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "rows.jsonl"
    with journal(path, HEADER) as first:
        assert first.rows == []
        first.append([{"n": 1}, {"n": 2}])
        first.append([{"n": 3}])
    with journal(path, HEADER) as second:
        assert second.rows == [{"n": 1}, {"n": 2}, {"n": 3}]


def test_a_line_that_a_kill_cut_short_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with journal(path, HEADER) as first:
        first.append([{"n": 1}, {"n": 2}])
    path.write_bytes(path.read_bytes()[:-3])
    with journal(path, HEADER) as second:
        assert second.rows == [{"n": 1}]
        second.append([{"n": 5}])
    with journal(path, HEADER) as third:
        assert third.rows == [{"n": 1}, {"n": 5}]


def test_rows_behind_a_count_are_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with journal(path, HEADER) as first:
        first.append([{"n": number} for number in range(5)])
        first.keep(2)
        first.append([{"n": 9}])
        assert first.rows == [{"n": 0}, {"n": 1}, {"n": 9}]
    with journal(path, HEADER) as second:
        assert second.rows == first.rows


def test_other_settings_are_refused_by_name_and_nothing_changes(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with journal(path, HEADER) as first:
        first.append([{"n": 1}])
    before = path.read_bytes()
    with (
        pytest.raises(BadInput, match=r"rows\.jsonl was begun .* seed 0, now 1") as refused,
        journal(path, {**HEADER, "seed": 1}),
    ):
        pass
    assert "work folder" in refused.value.hint
    assert path.read_bytes() == before


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with (
        journal(path, HEADER),
        pytest.raises(BadInput, match="another run"),
        journal(path, HEADER),
    ):
        pass


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"{\n", "1 is not JSON"), (b"[]\n", "one JSON object"), (b'{"n": 1}\n', "no journal")],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=message), journal(path, HEADER):
        pass
    assert path.read_bytes() == content


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot write"), journal(tmp_path / "file" / "rows", HEADER):
        pass
