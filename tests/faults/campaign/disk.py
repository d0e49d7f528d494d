"""A disk that can be filled: a small file system in memory, for the database's tables alone."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SIZE = "400m"
PAGE = 4_096


class Disk:
    """At ``path``, of `SIZE` where this process may mount; ``real`` says whether it is."""

    def __init__(self, path: Path, *, real: bool) -> None:
        self.path = path
        self.real = real
        self._filler = path / "filler"

    def fill(self) -> None:
        """Leave no room; others take and free some meanwhile."""
        size, piece = 0, shutil.disk_usage(self.path).free
        with self._filler.open("wb") as filler:
            while piece >= PAGE:
                try:
                    os.posix_fallocate(filler.fileno(), size, piece)
                    size += piece
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    piece //= 2

    def empty(self) -> None:
        self._filler.unlink(missing_ok=True)


@contextmanager
def small_disk(path: Path) -> Iterator[Disk]:
    path.mkdir(parents=True, exist_ok=True)
    if path.is_mount():
        _run("umount", "--lazy", str(path))  # left by one that was killed
    mounted = _run("mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(path))
    try:
        yield Disk(path, real=mounted)
    finally:
        if mounted:
            _run("umount", "--lazy", str(path))


def _run(*command: str) -> bool:
    try:
        return subprocess.run(command, check=False, capture_output=True).returncode == 0
    except OSError:
        return False
