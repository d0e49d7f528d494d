"""Files that others made, read within bounds: what a path leads to may be anything.

Links are followed, for a mounted ConfigMap consists of them. What they lead to must be a plain file: a device gives
bytes for ever, and a pipe that nobody writes to is waited for for ever.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Final

LARGEST_JSON: Final = 64 * 1024 * 1024


def read_given(file: Path, most: int) -> bytes:
    """The bytes of ``file``. Raises `OSError`, also for what is no plain file or has more than ``most``."""
    handle = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(handle, "rb") as stream:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is no plain file", str(file))
        content = stream.read(most + 1) if found.st_size <= most else b""
        if found.st_size > most or len(content) > most:
            raise OSError(errno.EFBIG, f"it is larger than {most:,} bytes", str(file))
        return content
