"""What PostgreSQL cannot hold is changed here, by one rule, so that no record can fail for ever.

NUL characters and lone surrogates become U+FFFD; text longer than its column's limit is cut and ends
in "…" (index rows have a limit). Numbers that are not finite become null in JSON.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

KEY_CHARACTERS: Final = 256
"""Limit of text that stands in an index: ids, segments, topics."""
TEXT_CHARACTERS: Final = 4_096
"""Limit of free text: details, summaries."""
_REPLACED: Final = {0: "\N{REPLACEMENT CHARACTER}"} | dict.fromkeys(range(55296, 57344), "�")


def clean(text: str, limit: int = KEY_CHARACTERS) -> str:
    """The text as it is stored."""
    if not text.isascii() or "\0" in text:
        text = text.translate(_REPLACED)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def clean_or_none(text: str | None, limit: int = KEY_CHARACTERS) -> str | None:
    return None if text is None else clean(text, limit)


def clean_json(value: Any) -> Any:
    """The value as it is stored in ``jsonb``; mappings and sequences are copied."""
    if isinstance(value, str):
        return clean(value, TEXT_CHARACTERS)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {clean(str(key)): clean_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean_json(item) for item in value]
    return value
