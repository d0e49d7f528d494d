"""Files that are whole or not there: what is half written never takes a name that somebody reads."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from monitor.errors import BadInput


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A path beside ``file`` to write to; it takes the file's place when the context ends well.

    The folder is made if need be. Raises `BadInput` when that cannot be written; what was there
    before then stays.
    """
    beside = file.with_name(file.name + ".part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        os.replace(beside, file)
    except OSError as error:
        raise BadInput(f"cannot write {file}: {error.strerror or error}") from None


def write_whole(file: Path, content: str | bytes) -> None:
    """Put ``content`` (text as UTF-8) in the place of ``file``; see `replacing`."""
    with replacing(file) as beside:
        beside.write_bytes(content.encode() if isinstance(content, str) else content)


def require_room(folder: Path, *names: str) -> None:
    """Whether files called ``names`` can be written into ``folder`` hours from now is tried now.

    Written to, not asked: to the superuser every place says that it can be written. The folder is
    made, and may stay behind empty. Raises `BadInput` when it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        reason = next(
            (f"{name} in it is a folder" for name in names if (folder / name).is_dir()), ""
        )
    except OSError as error:
        reason = error.strerror or str(error)
    if reason:
        raise BadInput(
            f"--out {folder} cannot be written: {reason}",
            hint="give a folder, or the name of a new one, that this user may write to",
        )
