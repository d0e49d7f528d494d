"""What the names of files and folders say about a checkpoint, or a person where they do not."""

from __future__ import annotations

import re
from pathlib import Path

from monitor.errors import BadInput


def number_in_path(path: Path, pattern: re.Pattern[str]) -> int | None:
    """The number that ``pattern`` captures in the last name of ``path`` where it is found; or None.

    Links are not followed: a hub's cache links names to files that are called by their hash.
    """
    for part in reversed(path.absolute().parts):
        if found := pattern.search(part):
            return int(found[1])
    return None


def said(found: int | None, stated: int | None, name: str, path: Path) -> int:
    """What the files say, else what a person does. Raises `BadInput` where neither says it."""
    chosen = found if found is not None else stated
    if chosen is None:
        raise BadInput(f"{path}: neither files nor names say {name}", hint=f"give it with --{name}")
    return chosen
