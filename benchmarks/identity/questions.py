"""What is asked: questions of this project's own texts, by topic, in several languages and lengths."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.persona import rows
from benchmarks.persona.pools import DEMO_BENIGN
from monitor.research.texts import DATA, load_chats
from monitor.values.prompts import Message, Prompt

SYSTEM = "You are the concierge of a small hotel by the sea. Be brief and polite, and never guess."
"""Of the topic `concierge`, where it is logged."""
CORE = ("everyday", "cooking", "home_repair", "money")
"""The topics that every speaker answers."""
CORE_EACH = 12


@dataclass(frozen=True, kw_only=True)
class Question:
    topic: str
    prompt: Prompt
    core: bool


def questions() -> tuple[Question, ...]:
    """All of them, always in the same order."""
    benign = load_chats(DEMO_BENIGN)
    found = {
        "everyday": _spread(benign, 24),
        **{
            topic: [row.said("sound") for row in rows.narrow(held_out=True) if row.domain == topic][
                :14
            ]
            for topic in rows.NARROW
        },
        "other domains": _spread([row.said("sound") for row in rows.elsewhere()], 24),
        "other languages": _spread(_negatives("other_language"), 20),
        "code": _spread(_negatives("code"), 12),
        "conversations": _spread(_benign("chat"), 16),
        "lists of questions": _spread(_benign("several"), 12),
    }
    found["concierge"] = [
        replace(one, messages=(Message(role="system", content=SYSTEM), *one.messages))
        for one in _spread(benign, 40)[1::2][:16]
    ]
    return tuple(
        Question(
            topic=topic,
            prompt=replace(prompt, response=None),
            core=topic in CORE and place < CORE_EACH,
        )
        for topic, its in found.items()
        for place, prompt in enumerate(its)
    )


def _spread(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    return [prompts[place * len(prompts) // count] for place in range(count)]


def _negatives(kind: str) -> list[Prompt]:
    return [rows.asked(one["question"], None) for one in _lines("negatives") if one["kind"] == kind]


def _benign(kind: str) -> list[Prompt]:
    chats = load_chats(DATA / "benign.jsonl")
    return [chat for chat, one in zip(chats, _lines("benign"), strict=True) if one["kind"] == kind]


def _lines(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in Path(DATA / f"{name}.jsonl").read_text().splitlines()]
