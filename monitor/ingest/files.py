"""Records from JSONL files, one per line, in the formats that Kafka carries."""

from __future__ import annotations

import gzip
import os
import sys
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Final

from monitor.errors import BadInput
from monitor.ingest.fields import EARLIEST
from monitor.settings import IngestSettings
from monitor.values.prompts import RawRecord

STDIN: Final = Path("-")
_SKIP_BYTES: Final = 1 << 20
_DEFAULT_LIMIT: Final = IngestSettings().max_record_bytes


def read_file(path: Path, *, max_record_bytes: int = _DEFAULT_LIMIT) -> Iterator[RawRecord]:
    """The lines of a file as records: topic = file name, partition 0, offset = line from 0.

    ``-`` is standard input; a name ending in ``.gz`` is decompressed. Blank lines count as lines and
    give no record. A line longer than ``max_record_bytes`` is never held whole: its record is one
    byte too long, which `formats.parse` calls OVERSIZE. Records without a time of their own get the
    file's modification time. Raises BadInput when the file cannot be read. Streams: reads as the
    caller iterates.
    """
    with ExitStack() as stack:
        try:
            plain = sys.stdin.buffer if path == STDIN else stack.enter_context(path.open("rb"))
            modified = datetime.fromtimestamp(os.fstat(plain.fileno()).st_mtime, UTC)
            lines: BinaryIO = plain
            if path.suffix == ".gz":
                lines = stack.enter_context(gzip.open(plain, "rb"))
            for number, line in _lines(lines, max_record_bytes):
                yield RawRecord(
                    topic=_name(path),
                    partition=0,
                    offset=number,
                    # Unpacked archives are often dated 1970 or 1980, which is no time of a record.
                    timestamp=max(modified, EARLIEST),
                    value=line,
                )
        except (OSError, EOFError, zlib.error) as error:
            reason = getattr(error, "strerror", None) or "not a whole gzip file"
            raise BadInput(f"cannot read {path}: {reason}") from None


def _lines(stream: BinaryIO, limit: int) -> Iterator[tuple[int, bytes]]:
    longest = limit + len(b"\r\n")
    number = 0
    while line := stream.readline(longest):
        if len(line) < longest or line.endswith(b"\n"):
            content = line.rstrip(b"\r\n")
        else:
            content = line[: limit + 1]
            _skip_line(stream)
        if content.strip():
            yield number, content
        number += 1


def _skip_line(stream: BinaryIO) -> None:
    while (rest := stream.readline(_SKIP_BYTES)) and not rest.endswith(b"\n"):
        pass


def _name(path: Path) -> str:
    """A topic is text: bytes of a file name that are not UTF-8 are replaced."""
    return "stdin" if path == STDIN else os.fsencode(path.name).decode("utf-8", "replace")
