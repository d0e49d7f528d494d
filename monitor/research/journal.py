"""Long work that survives a kill: rows appended to a JSON-lines file under a header that says what they are."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from monitor.errors import BadInput

HINT = "give another work folder, or delete this one to begin anew"


class Journal:
    """The rows of a file, and a way to add to them. Make one with `journal`."""

    def __init__(self, stream: BinaryIO | None, rows: list[dict[str, Any]]) -> None:
        self.rows = rows
        self._stream = stream

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write ``rows`` through to the disk; a kill leaves all, some of the first, or none."""
        if self._stream is not None:
            self._stream.write(b"".join(orjson.dumps(row) + b"\n" for row in rows))
            self._stream.flush()
            os.fsync(self._stream.fileno())
        self.rows += map(dict, rows)

    def keep(self, count: int) -> None:
        """Forget all rows behind the first ``count``."""
        if self._stream is not None:
            self._stream.seek(0)
            for _ in range(count + 1):
                self._stream.readline()
            self._stream.truncate()
        del self.rows[count:]


@contextmanager
def journal(path: Path | None, header: Mapping[str, Any]) -> Iterator[Journal]:
    """The journal at ``path``, begun with ``header`` or continued; this process alone may write to it.

    Without a path nothing is kept.

    A last line that a kill cut short is dropped. Raises `BadInput`, changing nothing, when the
    file's header is another one (naming what differs), a line is no JSON object, or another process
    has the file open.
    """
    if path is None:
        yield Journal(None, [])
        return
    wanted: dict[str, Any] = orjson.loads(orjson.dumps({"header": header}))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("a+b")
    except OSError as error:
        raise BadInput(f"cannot write {path}: {error.strerror}") from None
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BadInput(f"{path} is being written by another run", hint=HINT) from None
        found = _rows(path, stream)
        if found and found[0] != wanted:
            raise BadInput(f"{path} {_differing(found[0], wanted)}", hint=HINT)
        opened = Journal(stream, found[1:])
        if not found:
            opened.append([wanted])
            opened.rows.clear()
        yield opened


def _rows(path: Path, stream: BinaryIO) -> list[dict[str, Any]]:
    stream.seek(0)
    content = stream.read()
    whole = content.rfind(b"\n") + 1
    rows = []
    for number, line in enumerate(content[:whole].splitlines(), 1):
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise BadInput(f"{path}:{number} is not JSON: {error}", hint=HINT) from None
        if not isinstance(row, dict):
            raise BadInput(f"{path}:{number} must hold one JSON object", hint=HINT)
        rows.append(row)
    stream.truncate(whole)
    return rows


def _differing(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    ours, theirs = wanted["header"], found.get("header")
    if not isinstance(theirs, dict):
        return "is no journal: its first line has no header"
    names = sorted(n for n in {*ours, *theirs} if ours.get(n) != theirs.get(n))
    pairs = ", ".join(f"{n} {theirs.get(n)!r}, now {ours.get(n)!r}" for n in names)
    return f"was begun with other settings: {pairs}"
