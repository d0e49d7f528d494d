"""The same content in other styles: what may move a style's feature, and no persona's.

``styles.jsonl``, a content a line: ``topic``, ``question``, the answer ``plain``, and further fields that are
named after a style (``terse``, ``formal``, ``pirate``, a language …) and say the same in it. A row may
leave a style out; plain it must have.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from monitor.errors import BadInput
from monitor.research.texts import DATA, exchange, rows, text_field
from monitor.values.prompts import Message, Prompt

STYLES_FILE: Final = "styles.jsonl"
PLAIN: Final = "plain"
LEAST: Final = 5
"""Contents that a style needs: fewer are a slip of the pen in its name, or say nothing of it."""
_NOT_STYLES: Final = ("topic", "question")


@dataclass(frozen=True, slots=True, kw_only=True)
class Styled:
    """One content, said in ``styles``: `PLAIN` and others, by their names."""

    topic: str
    question: str
    styles: Mapping[str, str]

    def prompt(self, style: str) -> Prompt:
        return exchange((Message(role="user", content=self.question),), self.styles[style])


@dataclass(frozen=True, slots=True, kw_only=True)
class StyleTexts:
    """``sha256`` covers the file; empty without one."""

    rows: tuple[Styled, ...] = ()
    sha256: str = ""

    @property
    def styles(self) -> tuple[str, ...]:
        """All but `PLAIN`, in the order in which they come."""
        return tuple(dict.fromkeys(s for row in self.rows for s in row.styles if s != PLAIN))


def load_styles(folder: Path = DATA) -> StyleTexts:
    """The styles in ``folder``; no file is no error. Raises `BadInput` naming file, line, field and fix."""
    path = folder / STYLES_FILE
    if not path.is_file():
        return StyleTexts()
    found: list[Styled] = []
    asked: dict[str, str] = {}
    for where, row in rows(path):
        one = Styled(
            topic=text_field(row, "topic", where),
            question=text_field(row, "question", where),
            styles={
                name: text_field(row, name, where)
                for name in (PLAIN, *row)
                if name not in _NOT_STYLES
            },
        )
        if len(one.styles) < 2:
            raise BadInput(
                f"{where}: add the same content in another style, under the style's name"
            )
        if len(set(one.styles.values())) < len(one.styles):
            raise BadInput(f"{where}: two styles have the same text; say it in each style")
        if first := asked.get(one.question):
            raise BadInput(f"{where}: the question stands in {first} already; keep one")
        asked[one.question] = where
        found.append(one)
    counts = Counter(style for row in found for style in row.styles)
    for style, count in counts.items():
        if count < LEAST:
            raise BadInput(
                f"{path}: {count} row{'s' * (count > 1)} with the style {style!r}, at least {LEAST} are needed",
                hint="is its name spelled as in the other rows?",
            )
    return StyleTexts(rows=tuple(found), sha256=hashlib.sha256(path.read_bytes()).hexdigest())
