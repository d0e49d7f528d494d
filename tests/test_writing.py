from __future__ import annotations

from pathlib import Path

import pytest

from monitor.errors import BadInput
from monitor.writing import replacing, require_room, write_whole


def test_a_file_is_written_into_a_folder_that_is_made(tmp_path: Path) -> None:
    file = tmp_path / "new" / "file.json"
    write_whole(file, "süß\n")
    assert file.read_bytes() == "süß\n".encode()
    write_whole(file, b"\x00")
    assert file.read_bytes() == b"\x00"
    assert list(file.parent.iterdir()) == [file]


def test_what_fails_halfway_leaves_what_was_there(tmp_path: Path) -> None:
    file = tmp_path / "file"
    write_whole(file, "before")

    def fails() -> None:
        with replacing(file) as beside:
            beside.write_text("half")
            raise RuntimeError("power")

    with pytest.raises(RuntimeError, match="power"):
        fails()
    assert file.read_text() == "before"


def test_a_place_that_takes_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for file in (tmp_path / "file" / "below", tmp_path / "folder"):
        with pytest.raises(BadInput, match="cannot write"):
            write_whole(file, "text")


def test_room_is_looked_for_before_the_work(tmp_path: Path) -> None:
    require_room(tmp_path / "new" / "folder", "report.html")
    assert not list((tmp_path / "new" / "folder").iterdir())
    (tmp_path / "new" / "folder" / "report.html").mkdir()
    with pytest.raises(BadInput, match=r"cannot be written: report\.html in it is a folder"):
        require_room(tmp_path / "new" / "folder", "report.html")
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="cannot be written"):
        require_room(tmp_path / "file")
