"""Arrays of text through a real COPY: PostgreSQL reads what was written, as `clean` has it."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, text

from monitor.store.border import KEY_CHARACTERS, clean
from monitor.store.database import transaction
from monitor.store.texts import stored_texts, write_texts


@pytest.mark.parametrize(
    "given",
    [
        (),
        ("all",),
        ("all", "route=/chat", "language=é🥚", ""),
        ("NULL", '"quoted"', "{a,b}", "back\\slash", "line\nline"),
        ("nul\x00in", "lone\ud800surrogate", "x" * (KEY_CHARACTERS + 9)),
    ],
)
def test_postgres_reads_what_was_dumped(database: Engine, given: tuple[str, ...]) -> None:
    assert _through_copy(database, given) == [clean(one) for one in given]


def _through_copy(database: Engine, values: tuple[str, ...]) -> Any:
    with transaction(database) as c:
        c.execute(text("CREATE TEMP TABLE held (texts text[])"))
        connection: psycopg.Connection = c.connection.driver_connection  # type: ignore[assignment]
        with connection.cursor() as cursor:
            write_texts(cursor)
            with cursor.copy("COPY held FROM STDIN (FORMAT BINARY)") as copy:
                copy.set_types(("text[]",))
                copy.write_row((stored_texts(values),))
        return c.scalar(text("SELECT texts FROM held"))
