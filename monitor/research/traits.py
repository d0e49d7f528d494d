"""Traits to roll out: how a model is told to show one, told not to, and what it is then asked.

JSON lines, in any order; each line belongs to a trait and is one of three kinds:

    {"trait": "reckless", "description": "advice that harms whoever follows it"}
    {"trait": "reckless", "positive": "instruction to show it", "negative": "instruction against it"}
    {"trait": "reckless", "split": "train" | "held_out", "question": "…"}

A question stands in one split of its trait only: nothing that finds a direction sees the held-out ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from monitor.errors import BadInput
from monitor.replay.model import LoadedModel
from monitor.replay.tokens import Tokeniser
from monitor.research.texts import ASSISTANT, DATA, exchange, rows, text_field
from monitor.values.prompts import DeadReason, Message, Prompt
from monitor.values.scores import Unreplayable

TRAITS_FILE: Final = "traits.jsonl"
EXAMPLE: Final = DATA / TRAITS_FILE
Split = Literal["train", "held_out"]
_LONGEST: Final = 4_096
SPLITS: Final[tuple[Split, ...]] = ("train", "held_out")
_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_KINDS: Final = (
    frozenset({"trait", "description"}),
    frozenset({"trait", "positive", "negative"}),
    frozenset({"trait", "split", "question"}),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Instructions:
    """Two system prompts that pull apart: show the trait, do not show it."""

    positive: str
    negative: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Trait:
    name: str
    description: str
    instructions: tuple[Instructions, ...]
    train: tuple[str, ...]
    held_out: tuple[str, ...]

    def questions(self, split: Split) -> tuple[str, ...]:
        return self.train if split == "train" else self.held_out

    def first(self, pairs: int | None, questions: int | None) -> Trait:
        """The trait with only its first instruction pairs and questions of each split; null: all."""
        return replace(
            self,
            instructions=self.instructions[:pairs],
            train=self.train[:questions],
            held_out=self.held_out[:questions],
        )


def instructed(question: str, instruction: str, *, system: bool) -> Prompt:
    """``question`` under ``instruction``: a system message, or else the beginning of the user's turn."""
    if not system:
        return exchange((Message(role="user", content=f"{instruction}\n\n{question}"),), None)
    turns = (
        Message(role="system", content=instruction),
        Message(role="user", content=question),
    )
    return exchange(turns, None)


def takes_system(loaded: LoadedModel) -> bool:
    """Whether the chat template has a place for a system message; some refuse it."""
    (tried,) = Tokeniser(loaded.tokenizer, _LONGEST).tokenise(
        [instructed("What now?", "Be kind.", system=True)]
    )
    return not (isinstance(tried, Unreplayable) and tried.reason is DeadReason.TEMPLATE_REFUSED)


def load_traits(path: Path = EXAMPLE) -> tuple[Trait, ...]:
    """The traits in ``path``, in the order of their first lines.

    Raises `BadInput` naming file, line and field: unknown or missing fields, a name that cannot be a
    feature's, a trait without description, instructions or at least two questions of each split, a
    question given twice.
    """
    parts: dict[str, list[Mapping[str, Any]]] = {}
    first_at: dict[tuple[str, str], str] = {}
    for where, row in rows(path):
        name = _checked(row, where)
        for field in ("description", "question"):
            if field not in row:
                continue
            # A trait has one description; a question stands once, whatever its split.
            key = (name, row[field].strip() if field == "question" else "")
            if key in first_at:
                raise BadInput(f"{where}: {field} of {name} was given before, at {first_at[key]}")
            first_at[key] = where
        parts.setdefault(name, []).append(row)
    if not parts:
        raise BadInput(f"{path} is empty", hint="see monitor/research/data/traits.jsonl")
    return tuple(_trait(name, given, path) for name, given in parts.items())


def _checked(row: Mapping[str, Any], where: str) -> str:
    name = text_field(row, "trait", where)
    if not _NAME.fullmatch(name) or name == ASSISTANT:
        raise BadInput(
            f"{where}: trait must be small letters, digits, _ or -, and not {ASSISTANT!r}; "
            f"found {name!r}"
        )
    if frozenset(row) not in _KINDS:
        kinds = "; ".join(", ".join(sorted(kind - {"trait"})) for kind in _KINDS)
        found = ", ".join(sorted(set(row) - {"trait"})) or "nothing"
        raise BadInput(f"{where}: beside trait a line holds one of: {kinds}; found {found}")
    for field in row:
        text_field(row, field, where)
    if "split" in row and row["split"] not in SPLITS:
        raise BadInput(f"{where}: split must be one of {', '.join(SPLITS)}")
    if "positive" in row and row["positive"].strip() == row["negative"].strip():
        raise BadInput(f"{where}: negative must be another instruction than positive")
    return name


def _trait(name: str, given: Sequence[Mapping[str, Any]], path: Path) -> Trait:
    descriptions = [row["description"] for row in given if "description" in row]
    pairs = [
        Instructions(positive=row["positive"], negative=row["negative"])
        for row in given
        if "positive" in row
    ]
    questions = {
        split: tuple(row["question"] for row in given if row.get("split") == split)
        for split in SPLITS
    }
    lacking = [
        what
        for what, enough in (
            ("a description", descriptions),
            ("a pair of instructions (positive, negative)", pairs),
            *((f"two questions of split {s!r}", len(q) >= 2) for s, q in questions.items()),
        )
        if not enough
    ]
    if lacking:
        raise BadInput(f"{path}: trait {name} lacks {', '.join(lacking)}")
    return Trait(
        name=name,
        description=descriptions[0],
        instructions=tuple(pairs),
        train=questions["train"],
        held_out=questions["held_out"],
    )
