"""Arrays in text: PostgreSQL reads what was written."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import Engine, text

from monitor.store.database import transaction
from monitor.store.literals import array_literal

MOMENT = datetime(2026, 7, 1, 12, 30, 5, 250_000, tzinfo=UTC)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (
            "text",
            ["all", "", 'a"b', "a\\b", "a,b", "{x}", " x ", "NULL", "null", "ü\n\t", "\ufffd"],
        ),
        ("bigint", [0, -1, 2**62]),
        ("bigint", [None, 3]),
        ("float8", [0.1, -1e-300, 1e300, 1 / 3, float("inf"), -0.0]),
        ("timestamptz", [MOMENT, MOMENT.replace(year=1970)]),
        ("int", []),
    ],
)
def test_postgres_reads_what_was_written(database: Engine, kind: str, values: list[Any]) -> None:
    with transaction(database) as c:
        query = text(f"SELECT CAST(:given AS {kind}[])")
        assert c.scalar(query, {"given": array_literal(values)}) == values
