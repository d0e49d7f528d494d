from __future__ import annotations

import gzip
import os
import subprocess
import sys
import tracemalloc
from datetime import UTC, datetime
from pathlib import Path

import pytest

from monitor.errors import BadInput
from monitor.ingest.fields import EARLIEST
from monitor.ingest.files import read_file
from monitor.ingest.formats import parse
from monitor.settings import IngestSettings
from monitor.values.prompts import DeadLetter, DeadReason, Prompt

MODIFIED = datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC)


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    os.utime(path, (MODIFIED.timestamp(), MODIFIED.timestamp()))
    return path


@pytest.mark.parametrize("name", ["prompts.jsonl", "prompts.jsonl.gz"])
def test_one_record_per_line(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / name, b'{"prompt": "a"}\n\n \r\n{"prompt": "b"}\r\n{"prompt": "c"}')
    records = list(read_file(path))
    assert [(r.topic, r.partition, r.offset, r.timestamp) for r in records] == [
        (name, 0, 0, MODIFIED),
        (name, 0, 3, MODIFIED),
        (name, 0, 4, MODIFIED),
    ]
    prompts = [parse(r, IngestSettings())[0] for r in records]
    assert [p.text for p in prompts if isinstance(p, Prompt)] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("length", "ending", "oversize"),
    [
        *((1024, b"\n", False), (1024, b"\r\n", False), (1024, b"", False)),
        *((1025, b"\n", True), (1025, b"\r\n", True), (1025, b"", True)),
        *((1026, b"\n", True), (1027, b"\n", True), (5_000_000, b"\r\n", True)),
    ],
)
def test_long_lines_are_oversize_and_the_next_is_read(
    tmp_path: Path, length: int, ending: bytes, oversize: bool
) -> None:
    settings = IngestSettings(max_record_bytes=1024)
    line = b'{"prompt": "' + b"x" * (length - 14) + b'"}'
    path = written(tmp_path / "f", line + ending + (b'{"prompt": "y"}\n' if ending else b""))
    outcomes = [(r.offset, parse(r, settings)[0]) for r in read_file(path, max_record_bytes=1024)]
    offset, first = outcomes[0]
    assert offset == 0
    if oversize:
        assert isinstance(first, DeadLetter)
        assert first.reason is DeadReason.OVERSIZE
    else:
        assert isinstance(first, Prompt)
    if ending:
        ((offset, second),) = outcomes[1:]
        assert offset == 1
        assert isinstance(second, Prompt)


@pytest.mark.parametrize("limit", range(1024, 1032))
@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b""])
def test_the_end_of_a_line_does_not_count_whatever_the_limit(
    tmp_path: Path, limit: int, ending: bytes
) -> None:
    path = written(tmp_path / "f", b"x" * limit + ending)
    assert [r.value for r in read_file(path, max_record_bytes=limit)] == [b"x" * limit]
    path = written(tmp_path / "f", b"x" * (limit + 1) + ending)
    assert [len(r.value or b"") for r in read_file(path, max_record_bytes=limit)] == [limit + 1]


@pytest.mark.parametrize("name", ["long.jsonl", "long.jsonl.gz"])
def test_long_lines_are_never_held_whole(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / name, b"x" * 50_000_000 + b'\n{"prompt": "y"}\n')
    tracemalloc.start()
    sizes = [len(r.value or b"") for r in read_file(path, max_record_bytes=10_000)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sizes == [10_001, 15]
    assert peak < 8_000_000


def test_standard_input() -> None:
    program = (
        "from pathlib import Path; from monitor.ingest.files import read_file\n"
        "for r in read_file(Path('-')): print(r.topic, r.offset, r.value.decode())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=b'{"prompt": "a"}\n{"prompt": "b"}\n',
        capture_output=True,
        check=True,
    )
    assert done.stdout.decode().splitlines() == [
        'stdin 0 {"prompt": "a"}',
        'stdin 1 {"prompt": "b"}',
    ]


def test_archive_dates_are_no_times_of_records(tmp_path: Path) -> None:
    path = written(tmp_path / "f", b'{"prompt": "a"}')
    os.utime(path, (1, 1))
    (record,) = read_file(path)
    assert record.timestamp == EARLIEST
    assert isinstance(parse(record, IngestSettings())[0], Prompt)


def test_names_that_are_not_utf8_are_made_text(tmp_path: Path) -> None:
    path = written(tmp_path / os.fsdecode(b"caf\xe9.jsonl"), b'{"prompt": "a"}')
    (record,) = read_file(path)
    assert record.topic == "caf\ufffd.jsonl"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    cut = tmp_path / "cut.gz"
    cut.write_bytes(gzip.compress(os.urandom(100_000))[:5_000])
    other = tmp_path / "other.gz"
    other.write_bytes(b'{"prompt": "a"}')
    for path, said in [
        (tmp_path / "absent", "No such file"),
        (tmp_path, "Is a directory"),
        (cut, "not a whole gzip file"),
        (other, "not a whole gzip file"),
    ]:
        with pytest.raises(BadInput, match=said):
            list(read_file(path))
