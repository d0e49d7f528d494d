"""Which characters of a rendered prompt came from the request, and which the template wrote itself.

Two questions, answered by rendering the request twice more where they arise. Whose text is it: contents
are replaced by marks, and what stands between the marks is the template's. Who wrote a special token:
spellings of special tokens in the request are fenced, and what comes out fenced is plain text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Span = tuple[int, int]
Write = Callable[[str], str]

MOST_SEARCHED = 1_000
"""Contents that are searched one by one in a prompt whose template rewrites them."""

_PRIVATE = range(0xE000, 0xF8FE, 2)


@dataclass(frozen=True, slots=True)
class Fence:
    """Two characters that occur nowhere else in what is rendered."""

    left: str
    right: str

    @classmethod
    def absent_from(cls, text: str) -> Fence:
        """The first pair of private characters that ``text`` does not hold.

        One that holds all of them gets the first pair: its marks are then not found, which only makes
        regions less exact.
        """
        for code in _PRIVATE:
            if chr(code) not in text and chr(code + 1) not in text:
                return cls(chr(code), chr(code + 1))
        return cls(chr(_PRIVATE.start), chr(_PRIVATE.start + 1))

    def mark(self, index: int) -> str:
        return f"{self.left}{index}{self.right}"

    def pieces(self, marked: str) -> tuple[list[str], list[int]]:
        """The template's text around the marks (one piece more than marks), and the marks in order."""
        parts = re.split(f"{self.left}(\\d+){self.right}", marked)
        return parts[::2], [int(index) for index in parts[1::2]]

    def around(self, spellings: re.Pattern[str]) -> Write:
        """A writer that fences every spelling in a text."""
        return lambda text: spellings.sub(f"{self.left}\\g<0>{self.right}", text)

    def unfenced(self, text: str) -> tuple[str, tuple[Span, ...]]:
        """``text`` without fences, and the spans that stood between two of them."""
        plain: list[str] = []
        spans: list[Span] = []
        at, opened = 0, -1
        for part in re.split(f"([{self.left}{self.right}])", text):
            if part == self.left:
                opened = at
            elif part == self.right:
                if opened >= 0:
                    spans.append((opened, at))
                opened = -1
            else:
                plain.append(part)
                at += len(part)
        return "".join(plain), tuple(spans)


def rewritten(value: Any, write: Write) -> Any:
    """JSON ``value`` with every text in it, keys too, written by ``write``."""
    if isinstance(value, str):
        return write(value)
    if isinstance(value, Mapping):
        return {rewritten(key, write): rewritten(entry, write) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [rewritten(entry, write) for entry in value]
    return value


def values_rewritten(value: Any, write: Write) -> Any:
    """JSON ``value`` with every text in it but keys written by ``write``."""
    if isinstance(value, str):
        return write(value)
    if isinstance(value, Mapping):
        return {key: values_rewritten(entry, write) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [values_rewritten(entry, write) for entry in value]
    return value


def located(
    text: str, pieces: Sequence[str], order: Sequence[int], contents: Sequence[str]
) -> tuple[Span, ...]:
    """Where in ``text`` each content stands: ``contents[order[i]]`` between pieces i and i + 1.

    Most templates insert a content as it is, stripped, or as JSON. One that rewrites a content (drops a
    reasoning block, say) is followed from piece to piece of its own text. Where even that does not come
    out even, contents are searched one behind the other, and those not found have no span.
    """
    spans: list[Span] = []
    at = len(pieces[0])
    fits = text.startswith(pieces[0])
    for place, index in enumerate(order, start=1):
        last = place == len(order)
        stop = _end_of(text, at, contents[index], pieces[place], last=last) if fits else None
        if stop is None:
            fits = False
            break
        spans.append((at, stop))
        at = stop + len(pieces[place])
    return tuple(spans) if fits and at == len(text) else _searched(text, order, contents)


def _end_of(text: str, at: int, content: str, piece: str, *, last: bool) -> int | None:
    for candidate in _forms(content):
        stop = at + len(candidate)
        if text.startswith(candidate, at) and text.startswith(piece, stop):
            if last and stop + len(piece) != len(text):
                continue
            return stop
    found = text.rfind(piece, at) if last else text.find(piece, at)
    return found if found >= 0 else None


def _searched(text: str, order: Sequence[int], contents: Sequence[str]) -> tuple[Span, ...]:
    spans: list[Span] = []
    at = 0
    for index in order[:MOST_SEARCHED]:
        for candidate in filter(None, _forms(contents[index])):
            found = text.find(candidate, at)
            if found >= 0:
                at = found + len(candidate)
                spans.append((found, at))
                break
    return tuple(spans)


def _forms(content: str) -> Iterator[str]:
    yield content
    yield content.strip()
    yield content.rstrip()
    yield content.lstrip()
    yield json.dumps(content, ensure_ascii=False)[1:-1]
