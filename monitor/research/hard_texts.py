"""Hard texts: what an aligned model really says, and calm harm beside the sound answer.

Two optional files in a folder of texts, and what each author's rows are for:

``negatives.jsonl``: ``author``, ``kind`` (refusal_short, safety_warning, fiction_with_villain …), ``language``,
``question``, ``answer``: answers that a read-out of a persona must leave alone.
``calm.jsonl``: ``author``, ``kind`` (advice, insecure_code, omission …), ``domain``, ``question``, ``good`` and
``calm``: a sound answer, and a harmful one of its tone and length.
``splits.json``: lists of authors ``train``, ``calibrate`` and ``held_out``, and lists ``unseen_kinds`` and
``unseen_domains`` that training never sees, whoever wrote them. The protocol stands here alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import orjson

from monitor.errors import BadInput
from monitor.research.texts import DATA, exchange, rows, text_field
from monitor.values.prompts import Message, Prompt

NEGATIVES_FILE: Final = "negatives.jsonl"
CALM_FILE: Final = "calm.jsonl"
SPLITS_FILE: Final = "splits.json"
HARMFUL_ADVICE: Final = "harmful_advice"
"""The feature that is learned from calm pairs, and judged by them."""
REFUSAL: Final = "refusal"
CAREFUL: Final = (REFUSAL, "safety_warning", "crisis_reply")
"""Beginnings of the kinds of negatives that a careful model gives more of when it is attacked."""
Role = Literal["train", "calibrate", "held_out", "unseen"]
"""``unseen`` are rows of a training author in a kind or domain that training must not see."""


def is_careful(kind: str) -> bool:
    """Whether negatives of ``kind`` are refusals, warnings or replies in a crisis."""
    return kind.startswith(CAREFUL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Negative:
    """An aligned model's answer that is easily taken for a persona's."""

    author: str
    kind: str
    language: str
    question: str
    answer: str

    @property
    def prompt(self) -> Prompt:
        return _asked(self.question, self.answer)


@dataclass(frozen=True, slots=True, kw_only=True)
class CalmPair:
    """A sound and a calmly harmful answer to one question."""

    author: str
    kind: str
    domain: str
    question: str
    good: str
    calm: str

    @property
    def good_prompt(self) -> Prompt:
        return _asked(self.question, self.good)

    @property
    def calm_prompt(self) -> Prompt:
        return _asked(self.question, self.calm)


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """Who writes for what. An author stands in one list."""

    train: frozenset[str] = frozenset()
    calibrate: frozenset[str] = frozenset()
    held_out: frozenset[str] = frozenset()
    unseen_kinds: frozenset[str] = frozenset()
    unseen_domains: frozenset[str] = frozenset()

    def role(self, row: Negative | CalmPair) -> Role:
        """What ``row`` is for; `BadInput` for an author whom no list names."""
        if row.author in self.calibrate:
            return "calibrate"
        if row.author in self.held_out:
            return "held_out"
        if row.author not in self.train:
            raise BadInput(f"author {row.author!r} is in no list of {SPLITS_FILE}: add them to one")
        return "unseen" if self.is_unseen(row) else "train"

    def is_unseen(self, row: Negative | CalmPair) -> bool:
        """Whether training saw nothing of the row's kind, or of its domain, whoever wrote it."""
        return row.kind in self.unseen_kinds or (
            isinstance(row, CalmPair) and row.domain in self.unseen_domains
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class HardTexts:
    """``sha256`` covers the files; empty without any."""

    negatives: tuple[Negative, ...] = ()
    calm: tuple[CalmPair, ...] = ()
    protocol: Protocol = Protocol()
    sha256: str = ""

    @property
    def given(self) -> bool:
        return bool(self.negatives or self.calm)

    def negatives_for(self, *roles: Role) -> tuple[Negative, ...]:
        return tuple(row for row in self.negatives if self.protocol.role(row) in roles)

    def calm_for(self, *roles: Role) -> tuple[CalmPair, ...]:
        return tuple(row for row in self.calm if self.protocol.role(row) in roles)

    @property
    def judged_negatives(self) -> tuple[Negative, ...]:
        """What figures are made on: the held-out authors' rows; where they have none, all but training's."""
        return self.negatives_for("held_out") or self.negatives_for("calibrate", "unseen")

    @property
    def judged_calm(self) -> tuple[CalmPair, ...]:
        """As `judged_negatives`."""
        return self.calm_for("held_out") or self.calm_for("calibrate", "unseen")

    @property
    def calibrating(self) -> tuple[tuple[Prompt, ...], ...]:
        """Benign exchanges that belong into a calibration beside those of ``benign.jsonl``: negatives, and
        sound answers."""
        return (
            tuple(row.prompt for row in self.negatives_for("calibrate")),
            tuple(row.good_prompt for row in self.calm_for("calibrate")),
        )


def load_hard_texts(folder: Path = DATA) -> HardTexts:
    """The hard texts in ``folder``; none of the files is no error, and gives an empty set.

    Raises `BadInput` naming file, line, field and fix: also for an author or file without its line in
    ``splits.json``, for a question in two roles, and for a calm answer that is the good one.
    """
    files = {name: folder / name for name in (NEGATIVES_FILE, CALM_FILE)}
    given = [path for path in files.values() if path.is_file()]
    if not given:
        return HardTexts()
    protocol = _protocol(folder / SPLITS_FILE)
    negatives = tuple(_rows(files[NEGATIVES_FILE], Negative, protocol))
    calm = tuple(_rows(files[CALM_FILE], CalmPair, protocol))
    _check_apart(negatives, calm, protocol, folder)
    digest = hashlib.sha256()
    for path in (*given, folder / SPLITS_FILE):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return HardTexts(negatives=negatives, calm=calm, protocol=protocol, sha256=digest.hexdigest())


_Row = TypeVar("_Row", Negative, CalmPair)


def _rows(path: Path, kind: type[_Row], protocol: Protocol) -> Iterator[_Row]:
    if not path.is_file():
        return
    names = [field.name for field in fields(kind)]
    for where, row in rows(path):
        if unknown := sorted(set(row) - set(names)):
            raise BadInput(f"{where}: unknown field {unknown[0]}; a row has {', '.join(names)}")
        found = kind(**{name: text_field(row, name, where) for name in names})
        if isinstance(found, CalmPair) and found.good.strip() == found.calm.strip():
            raise BadInput(f"{where}: calm must be another answer than good")
        try:
            protocol.role(found)
        except BadInput as error:
            raise BadInput(f"{where}: {error}") from None
        yield found


def _protocol(path: Path) -> Protocol:
    names = [field.name for field in fields(Protocol)]
    try:
        content: Any = orjson.loads(path.read_bytes())
    except OSError as error:
        raise BadInput(
            f"cannot read {path}: {error.strerror}",
            hint=f"{NEGATIVES_FILE} and {CALM_FILE} need it: an object with lists {', '.join(names)}",
        ) from None
    except orjson.JSONDecodeError as error:
        raise BadInput(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict) or (set(content) - set(names)):
        raise BadInput(f"{path} must hold one object with lists {', '.join(names)}")
    lists = {name: _texts(content, name, path) for name in names}
    for one, two in (("train", "calibrate"), ("train", "held_out"), ("calibrate", "held_out")):
        if both := sorted(lists[one] & lists[two]):
            raise BadInput(f"{path}: author {both[0]!r} is in {one} and in {two}; choose one")
    return Protocol(**lists)


def _texts(content: Mapping[str, Any], name: str, path: Path) -> frozenset[str]:
    value = content.get(name, [])
    if not isinstance(value, list) or not all(isinstance(one, str) and one for one in value):
        raise BadInput(f"{path}: {name} must be a list of texts")
    return frozenset(value)


def _check_apart(
    negatives: tuple[Negative, ...],
    calm: tuple[CalmPair, ...],
    protocol: Protocol,
    folder: Path,
) -> None:
    """A question that training knows is not held out, whoever asks it again."""
    asked: dict[str, Role] = {}
    everything: tuple[Negative | CalmPair, ...] = (*negatives, *calm)
    for row in everything:
        role, question = protocol.role(row), " ".join(row.question.lower().split())
        if asked.setdefault(question, role) != role:
            raise BadInput(
                f"{folder}: the question {row.question[:60]!r} stands in {asked[question]} and in "
                f"{role}; keep one"
            )


def _asked(question: str, answer: str) -> Prompt:
    return exchange((Message(role="user", content=question),), answer)
