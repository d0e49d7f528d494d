"""What is shown without secrets: one rule for errors, logs, findings, tables and the configuration.

A secret is known by its value (what the settings in force hold, `know_only` and `know`) or by its shape:
user information and telling parameters in URLs, signing keys, authorization headers, webhooks' paths.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable
from typing import Final

HIDDEN: Final = "***"
SHORTEST: Final = 8
"""Characters; a shorter value is not hunted for, as it would be found in ordinary words."""

_NAMES = "pass|secret|token|key|sig|auth|cred|jaas|sasl|login|pwd"
TELLING: Final = re.compile(_NAMES, re.IGNORECASE)
"""Names of options and parameters whose text may be a secret."""

_SHAPES: Final = (
    (re.compile(r"(?<=:/)(/?)([^/\s:@'\"]*):[^/\s'\"]+@"), rf"\1\2:{HIDDEN}@"),
    (re.compile(r"(?<=://)[^/\s:@'\"]{8,}@"), f"{HIDDEN}@"),
    (re.compile(rf"(?i)([?&;][^=&\s]*(?:{_NAMES})[^=&\s]*=)[^&\s'\"#]+"), rf"\1{HIDDEN}"),
    (re.compile(r"whsec_[A-Za-z0-9+/=_-]+"), f"whsec_{HIDDEN}"),
    (re.compile(r"(?i)\b(bearer|basic) [A-Za-z0-9._~+/=-]{8,}"), rf"\1 {HIDDEN}"),
    (re.compile(r"(https://hooks\.slack\.com/)\S+"), rf"\1{HIDDEN}"),
)


class _Known:
    """The values of this process's secrets, and the pattern that finds them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: frozenset[str] = frozenset()
        self.pattern: re.Pattern[str] | None = None

    def set(self, values: Iterable[str], *, keep: bool) -> None:
        with self._lock:
            found = {value.strip() for value in values}
            longer = frozenset(value for value in found if len(value) >= SHORTEST)
            wanted = self._values | longer if keep else longer
            if wanted == self._values:
                return
            self._values = wanted
            longest_first = sorted(wanted, key=len, reverse=True)
            one = "|".join(re.escape(value) for value in longest_first)
            self.pattern = re.compile(rf"(?<!\w)(?:{one})(?!\w)") if one else None


_KNOWN: Final = _Known()


def know_only(values: Iterable[str]) -> None:
    """These are the secrets of the settings in force; those known before are forgotten."""
    _KNOWN.set(values, keep=False)


def know(*values: str) -> None:
    """These too: a file of a secret was read, or read anew."""
    _KNOWN.set(values, keep=True)


def without_secrets(text: str) -> str:
    """``text`` as it may be shown."""
    pattern = _KNOWN.pattern
    if pattern is not None:
        text = pattern.sub(HIDDEN, text)
    for shape, instead in _SHAPES:
        text = shape.sub(instead, text)
    return text
