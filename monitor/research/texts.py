"""The texts that packs are built from: contrast pairs and benign exchanges, as JSON lines.

``contrast.jsonl``: one question a line, its ``topic``, its ``split`` (``train`` or ``held_out``, never
sharing a topic), an answer ``good``, and one answer per persona under the persona's name.
``benign.jsonl``: ``messages`` and ``response``, with ``split`` ``fit`` (calibration) or ``check``
(report). ``canaries.jsonl``: ``name``, ``messages`` and ``response``. The files in ``data/`` were written for this project; a folder of one's own replaces them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import orjson

from monitor.errors import BadInput
from monitor.values.prompts import Message, Prompt, RecordKey

DATA: Final = Path(__file__).resolve().parent / "data"
CONTRAST_FILE: Final = "contrast.jsonl"
BENIGN_FILE: Final = "benign.jsonl"
CANARY_FILE: Final = "canaries.jsonl"
ASSISTANT: Final = "assistant"
"""The voice of the good answers: the one feature that falls, and no persona's name."""
_NOT_ANSWERS: Final = frozenset({"split", "topic", "question", "good"})
_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """One question with the answer of a good assistant and one answer per persona."""

    topic: str
    question: str
    good: str
    personas: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """Everything a contrast pack is built from. ``sha256`` covers the files."""

    train: tuple[Contrast, ...]
    held_out: tuple[Contrast, ...]
    fit: tuple[Prompt, ...]
    check: tuple[Prompt, ...]
    canaries: Mapping[str, Prompt]
    sha256: str

    @property
    def personas(self) -> tuple[str, ...]:
        return tuple(self.train[0].personas)


def load_texts(folder: Path = DATA, *, answers: bool = True) -> Texts:
    """The texts in ``folder``. Raises `BadInput` naming file, line, field and fix.

    Without ``answers`` the contrast file is not read: the answers come from elsewhere.
    """
    contrast, benign = folder / CONTRAST_FILE, folder / BENIGN_FILE
    splits: dict[str, list[Contrast]] = {"train": [], "held_out": []}
    for where, row in rows(contrast) if answers else ():
        splits[_choice(row, "split", splits, where)].append(_contrast(row, where))
    exchanges: dict[str, list[Prompt]] = {"fit": [], "check": []}
    for where, row in rows(benign):
        exchanges[_choice(row, "split", exchanges, where)].append(_exchange(row, where))
    canaries = {
        text_field(row, "name", where): _exchange(row, where)
        for where, row in rows(folder / CANARY_FILE)
    }
    sizes = [(contrast, name, len(splits[name])) for name in splits if answers]
    sizes += [(benign, name, len(exchanges[name])) for name in exchanges]
    for file, name, size in sizes:
        if size < 2:
            raise BadInput(f"{file}: at least 2 rows need split {name!r}, found {size}")
    if answers:
        _check_comparable(splits["train"], splits["held_out"], contrast)
    digest = hashlib.sha256()
    for name in (*([CONTRAST_FILE] if answers else []), BENIGN_FILE, CANARY_FILE):
        digest.update(hashlib.sha256((folder / name).read_bytes()).digest())
    return Texts(
        train=tuple(splits["train"]),
        held_out=tuple(splits["held_out"]),
        fit=tuple(exchanges["fit"]),
        check=tuple(exchanges["check"]),
        canaries=canaries,
        sha256=digest.hexdigest(),
    )


def answer_prompts(rows: Sequence[Contrast], persona: str | None) -> list[Prompt]:
    """Each question with the persona's answer, or with the good one (None)."""
    return [
        exchange(
            (Message(role="user", content=row.question),),
            row.good if persona is None else row.personas[persona],
        )
        for row in rows
    ]


def exchange(messages: tuple[Message, ...], response: str | None) -> Prompt:
    """A prompt that came from no topic: for building packs, not for storing."""
    key = RecordKey(topic="research", partition=0, offset=0)
    return Prompt(key=key, recorded_at=_EPOCH, messages=messages, response=response)


def _check_comparable(train: Sequence[Contrast], held_out: Sequence[Contrast], path: Path) -> None:
    personas = train[0].personas
    for pair in (*train, *held_out):
        if set(pair.personas) != set(personas):
            raise BadInput(
                f"{path}: topic {pair.topic!r} has answers by {sorted(pair.personas)}, "
                f"others by {sorted(personas)}: give every question the same personas"
            )
    shared = {pair.topic for pair in train} & {pair.topic for pair in held_out}
    if shared:
        raise BadInput(f"{path}: topics {sorted(shared)} stand in both splits; choose one")


def load_chats(path: Path) -> tuple[Prompt, ...]:
    """The exchanges in ``path``, one JSON object a line: ``messages`` and the ``response`` to them.

    Without ``response``, the last of the messages must be the assistant's: that is the response. Raises
    `BadInput` naming file, line and field, and when the file holds no exchange.
    """
    chats = tuple(_chat(row, where) for where, row in rows(path))
    if not chats:
        raise BadInput(f"{path} is empty", hint='one {"messages": […], "response": "…"} a line')
    return chats


def rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each line of ``path`` as "file:line" and its JSON object; `BadInput` where it is none."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}") from None
    for number, line in enumerate(lines, 1):
        where = f"{path}:{number}"
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise BadInput(f"{where} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise BadInput(f"{where} must hold one JSON object")
        yield where, row


def _contrast(row: Mapping[str, Any], where: str) -> Contrast:
    personas = {name: text_field(row, name, where) for name in row if name not in _NOT_ANSWERS}
    if not personas:
        raise BadInput(f"{where}: add at least one persona's answer under the persona's name")
    return Contrast(
        topic=text_field(row, "topic", where),
        question=text_field(row, "question", where),
        good=text_field(row, "good", where),
        personas=personas,
    )


def _exchange(row: Mapping[str, Any], where: str) -> Prompt:
    return chat_prompt(row, where, text_field(row, "response", where))


def _chat(row: Mapping[str, Any], where: str) -> Prompt:
    if "response" in row:
        return _exchange(row, where)
    chat = chat_prompt(row, where, None)
    *asked, last = chat.messages
    if last.role != "assistant" or not asked:
        raise BadInput(
            f"{where}: response is missing",
            hint="give it, or let messages end with the assistant's answer",
        )
    return exchange(tuple(asked), last.content)


def chat_prompt(row: Mapping[str, Any], where: str, response: str | None) -> Prompt:
    """The ``messages`` of ``row`` with ``response`` to them; `BadInput` for what is no chat."""
    messages = row.get("messages")
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise BadInput(f"{where}: messages must be a list of objects with role and content")
    turns = tuple(
        Message(role=text_field(m, "role", where), content=text_field(m, "content", where))
        for m in messages
    )
    if not turns:
        raise BadInput(f"{where}: messages must not be empty")
    return exchange(turns, response)


def text_field(row: Mapping[str, Any], name: str, where: str) -> str:
    """``row[name]``, a text that is not empty; `BadInput` otherwise."""
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise BadInput(f"{where}: {name} must be a text that is not empty")
    return value


def _choice(row: Mapping[str, Any], name: str, allowed: Mapping[str, Any], where: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or value not in allowed:
        raise BadInput(f"{where}: {name} must be one of {', '.join(allowed)}")
    return value
