"""How long work says where it stands: a line at a time, to whoever watches."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str], None]


def quiet(_line: str) -> None:
    """For work that nobody watches."""
