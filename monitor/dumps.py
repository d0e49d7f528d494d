"""No image of this process's memory is left behind: it holds secrets, and the text of prompts."""

from __future__ import annotations

import ctypes
import resource
import sys
from contextlib import suppress
from typing import Final

_PR_SET_DUMPABLE: Final = 4


def leave_no_dump() -> None:
    """No core dump of this process or its children; on Linux no other process of its user may read its memory.

    The limit is one byte: Linux writes no such file, and hands none to a program (``core_pattern`` with ``|``)
    either, which for a limit of 0 it does.
    """
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (1, 1))
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
