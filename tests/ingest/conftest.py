"""Records as Kafka would hand them over."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest

from monitor.values.prompts import RawRecord

APPENDED = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture(scope="session")
def record() -> Callable[..., RawRecord]:
    """``record(value, headers={…})``: bytes and None as they are, anything else as JSON."""

    def build(value: Any, headers: dict[str, bytes] | None = None, **fields: Any) -> RawRecord:
        raw = value if value is None or isinstance(value, bytes) else orjson.dumps(value)
        standing = {"topic": "prompts", "partition": 2, "offset": 40, "timestamp": APPENDED}
        return RawRecord(**(standing | fields), value=raw, headers=tuple((headers or {}).items()))

    return build
