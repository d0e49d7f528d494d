"""docs/records.md: every example in it is read as the format that its heading names."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest

from monitor.ingest.dialects.telling import DIALECTS
from monitor.ingest.formats import parse
from monitor.settings import IngestSettings
from monitor.values.prompts import Prompt, RawRecord

Build = Callable[..., RawRecord]
PAGE = (Path(__file__).parents[2] / "docs" / "records.md").read_text(encoding="utf-8")
EXAMPLES = {
    named.group(1): section.partition("```json\n")[2].partition("```")[0]
    for section in PAGE.split("\n### ")
    if (named := re.match(r".*\(`(\w+)`\)", section)) and "```json" in section
}
QUESTION, ANSWER = "How do I boil an egg?", "Ten minutes in boiling water."


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_of(record: Build, name: str) -> None:
    (parsed,) = parse(record(EXAMPLES[name].encode()), IngestSettings())
    assert isinstance(parsed, Prompt), parsed
    assert parsed.source_format == name
    asked = parsed.messages[-1].content if parsed.messages else parsed.text
    assert (asked, parsed.response) == (QUESTION, ANSWER)


@pytest.mark.parametrize("name", sorted(EXAMPLES.keys() & DIALECTS.keys()))
def test_the_example_is_read_where_its_format_is_set(record: Build, name: str) -> None:
    settings = IngestSettings.model_validate({"format": name})
    (parsed,) = parse(record(EXAMPLES[name].encode()), settings)
    assert isinstance(parsed, Prompt), parsed
    assert parsed.response == ANSWER


def test_every_format_has_a_row_and_an_example() -> None:
    formats = set(get_args(IngestSettings.model_fields["format"].annotation))
    assert formats == DIALECTS.keys() | {"auto", "cloudevents"}
    assert {*DIALECTS, "openinference", "vercel"} - {"batch"} == EXAMPLES.keys()
    for name in formats - {"auto"}:
        assert f"| `{name}` |" in PAGE
