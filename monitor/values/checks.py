"""What the values refuse: nonsense, naive times, mappings that may change."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final, TypeVar

Value = TypeVar("Value")


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def require_aware(moment: datetime, name: str) -> None:
    if moment.tzinfo is None:
        raise ValueError(f"{name} must carry a time zone")


_EMPTY: Final[Mapping[str, Any]] = MappingProxyType({})


def frozen(mapping: Mapping[str, Value]) -> Mapping[str, Value]:
    """A copy that cannot be changed."""
    return MappingProxyType(dict(mapping)) if mapping else _EMPTY


def utc(moment: datetime) -> datetime:
    """The same moment in UTC; a naive one is refused."""
    require_aware(moment, "a time")
    return moment.astimezone(UTC)
