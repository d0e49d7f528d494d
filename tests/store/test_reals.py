"""Arrays of float32 through a real COPY: PostgreSQL reads what was written."""

from __future__ import annotations

from typing import Any

import numpy as np
import psycopg
import pytest
from sqlalchemy import Engine, text

from monitor.store.database import transaction
from monitor.store.reals import RealsDumper, dumped, write_reals
from monitor.values.arrays import Floats


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ([], []),
        ([0.0], [0.0]),
        ([1.5, -2.25, 3e38, 1e-40], [1.5, -2.25, 3e38, 1e-40]),
        ([float("nan")], [None]),
        ([1.0, float("nan"), float("nan"), -4.0], [1.0, None, None, -4.0]),
        ([float("inf"), -float("inf")], [float("inf"), -float("inf")]),
    ],
)
def test_postgres_reads_what_was_dumped(
    database: Engine, given: list[float], kept: list[float | None]
) -> None:
    stored = _through_copy(database, np.array(given, dtype=np.float32))

    exact = [None if one is None else float(np.float32(one)) for one in kept]
    assert stored == exact


def test_an_array_that_is_no_single_piece_of_memory_is_dumped(database: Engine) -> None:
    columns = np.arange(12, dtype=np.float32).reshape(3, 4)

    assert _through_copy(database, columns[:, 1]) == [1.0, 5.0, 9.0]


@pytest.mark.parametrize("length", [0, 1, 5])
def test_a_chunk_s_rows_are_dumped_as_each_by_itself_is(length: int) -> None:
    rows = list(np.random.default_rng(1).normal(size=(7, length)).astype(np.float32))
    for row in (2, 6):
        rows[row][:1] = np.nan

    assert dumped(rows) == [RealsDumper(np.ndarray).dump(row) for row in rows]
    assert dumped([]) == []


def test_what_is_dumped_beforehand_reaches_the_table(database: Engine) -> None:
    (row, absent) = dumped([np.array(one, dtype=np.float32) for one in ([1.5, 2], [np.nan, -4])])

    assert _through_copy(database, row) == [1.5, 2.0]
    assert _through_copy(database, absent) == [None, -4.0]


def _through_copy(database: Engine, values: Floats | bytes) -> Any:
    with transaction(database) as c:
        c.execute(text("CREATE TEMP TABLE held (reals float4[])"))
        connection: psycopg.Connection = c.connection.driver_connection  # type: ignore[assignment]
        with connection.cursor() as cursor:
            write_reals(cursor)
            with cursor.copy("COPY held FROM STDIN (FORMAT BINARY)") as copy:
                copy.set_types(("float4[]",))
                copy.write_row((values,))
        found = c.scalar(text("SELECT CAST(reals AS float8[]) FROM held"))
        c.execute(text("DROP TABLE held"))
        return found
