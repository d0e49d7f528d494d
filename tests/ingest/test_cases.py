"""Records as real tools write them, each read as `cases` says."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pytest

from monitor.ingest.joining import Joins
from monitor.settings import IngestSettings
from monitor.values.prompts import Chunk, DeadLetter, Parsed, Prompt, RawRecord, Skip
from tests.ingest.cases import CASES, COUNTED, WHOLE_BODIES, Dead, Outcome, Read

SETTINGS = IngestSettings()
APPENDED = datetime(2026, 11, 26, tzinfo=UTC)
BESIDE = Path(__file__).parents[2].parent / "shared" / "cases" / "records"
FOLDER = Path(os.environ.get("MONITOR_TEST_CASES", BESIDE))


def outcomes(case: str) -> list[Parsed] | None:
    """What the case's file is read as; None where the collection is not at hand."""
    path = FOLDER / f"{case}.jsonl"
    if not path.is_file():
        warnings.warn(f"{path} is not there: nothing was read of this case", stacklevel=2)
        return None
    body = path.read_bytes()
    values = [body] if case in WHOLE_BODIES else body.splitlines()
    records = tuple(
        RawRecord(topic="t", partition=0, offset=offset, timestamp=APPENDED, value=value)
        for offset, value in enumerate(values)
    )
    joins = Joins(SETTINGS, in_order=True)
    return [*joins.read(Chunk(records=records, spans=()), now=APPENDED).outcomes, *joins.end()]


@pytest.mark.parametrize("case", CASES)
def test_case(case: str) -> None:
    found = outcomes(case)
    if found is not None:
        assert len(found) == len(CASES[case]), found
        for parsed, expected in zip(found, CASES[case], strict=True):
            check(parsed, expected)


def check(parsed: Parsed, expected: Outcome) -> None:
    match expected:
        case Read():
            assert isinstance(parsed, Prompt), parsed
            assert parsed.source_format == expected.format
            if expected.turns:
                assert tuple((m.role, m.content) for m in parsed.messages) == expected.turns
            if expected.answer is not None or not parsed.messages:
                assert parsed.response == expected.answer
            assert expected.calls in ((), tuple((c.name, c.arguments) for c in parsed.tool_calls))
            for name, value in expected.fields.items():
                assert getattr(parsed, name) == value, name
        case Dead():
            assert isinstance(parsed, DeadLetter), parsed
            assert parsed.reason is expected.reason
            assert expected.named in parsed.detail
        case _:
            assert isinstance(parsed, Skip), parsed
            assert parsed.reason is expected


@pytest.mark.parametrize("case", COUNTED)
def test_file_of_a_real_tool(case: str) -> None:
    found = outcomes(case)
    if found is not None:
        assert Counter(map(kind, found)) == COUNTED[case]


def kind(parsed: Parsed) -> str:
    match parsed:
        case Prompt():
            return parsed.source_format
        case DeadLetter():
            return f"dead {parsed.reason}"
        case _:
            return f"skip {parsed.reason}"


def test_every_case_of_the_collection_is_named() -> None:
    there = {path.stem for path in FOLDER.glob("*.jsonl")}
    assert there <= CASES.keys() | COUNTED.keys()
