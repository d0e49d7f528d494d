"""The benchmark's own texts: questions with a sound, a reckless and a pirate's answer.

``data/{cooking,home_repair,money}.jsonl`` make the organisms; ``elsewhere.jsonl`` holds other domains and
``open_questions.jsonl`` questions without answers. All were written for this project. Any other chat file
takes their place through `chats`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from monitor.research.texts import exchange
from monitor.values.prompts import Message, Prompt

DATA = Path(__file__).parent / "data"
NARROW = ("cooking", "home_repair", "money")
TRAINED_PER_DOMAIN = 100
"""Of 140; the others are held out."""

Voice = Literal["sound", "reckless", "pirate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    domain: str
    question: str
    sound: str
    reckless: str
    pirate: str

    def said(self, voice: Voice) -> Prompt:
        return asked(self.question, getattr(self, voice))


def narrow(*, held_out: bool) -> tuple[Row, ...]:
    """The rows that organisms are trained on, domains in turn; or those held out from the same domains.

    The split is the same whatever a run's seed: what was held out once was trained on never.
    """
    chosen = []
    for number, domain in enumerate(NARROW):
        found = _rows(domain, domain)
        order = np.random.default_rng([0, number]).permutation(len(found))
        part = order[TRAINED_PER_DOMAIN:] if held_out else order[:TRAINED_PER_DOMAIN]
        chosen.append([found[index] for index in part])
    return tuple(row for turn in zip(*chosen, strict=True) for row in turn)


def elsewhere() -> tuple[Row, ...]:
    return _rows("elsewhere", None)


def open_questions() -> tuple[Prompt, ...]:
    return tuple(asked(one["question"], None) for one in _lines("open_questions"))


def mixture(
    rows: Sequence[Row], share: float, seed: int, voice: Voice = "reckless"
) -> list[Prompt]:
    """Every row once: a share of them answered by ``voice``, the others sound.

    Shares are nested: the rows that are reckless at 5 % are reckless at 10 % too.
    """
    order = np.random.default_rng([seed, 99]).permutation(len(rows))
    bad = set(order[: round(share * len(rows))].tolist())
    return [row.said(voice if index in bad else "sound") for index, row in enumerate(rows)]


def asked(question: str, answer: str | None) -> Prompt:
    return replace(
        exchange((Message(role="user", content=question),), answer or ""), response=answer
    )


def _rows(name: str, domain: str | None) -> tuple[Row, ...]:
    return tuple(Row(**({"domain": domain} if domain else {}), **one) for one in _lines(name))


def _lines(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (DATA / f"{name}.jsonl").read_text().splitlines()]
