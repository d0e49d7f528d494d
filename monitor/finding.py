"""What `monitor doctor` says of one part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from monitor.errors import MonitorError


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What was looked at, whether it is well, what was seen, and how to mend it.

    Raises `ValueError` when something is not well and nothing is said to mend it.
    """

    subject: str
    well: bool
    seen: str
    mend: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)
    """The counts behind ``seen``, for programs."""

    def __post_init__(self) -> None:
        if not self.well and not self.mend.strip():
            raise ValueError(
                f"{self.subject}: {self.seen}: a finding that is not well needs a mend"
            )


def look(subject: str, action: Callable[[], str], mend: str = "") -> Iterator[Finding]:
    """``mend`` is for an error that names none itself."""
    try:
        yield Finding(subject=subject, well=True, seen=action())
    except MonitorError as error:
        yield Finding(subject=subject, well=False, seen=str(error), mend=error.hint or mend)
