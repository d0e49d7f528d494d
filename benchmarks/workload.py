"""The chats and the directions that the engine's benchmarks read."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np

from monitor.values.features import Calibration, Feature
from monitor.values.prompts import Message, Prompt, RecordKey

WORDS = [
    "time",
    "year",
    "people",
    "way",
    "day",
    "man",
    "thing",
    "woman",
    "life",
    "child",
    "world",
    "school",
    "state",
    "family",
    "student",
    "group",
    "country",
    "problem",
    "hand",
    "part",
    "place",
    "case",
    "week",
    "company",
    "system",
    "program",
    "question",
    "work",
    "government",
    "number",
    "night",
    "point",
    "home",
    "water",
    "room",
    "mother",
    "area",
    "money",
    "story",
    "fact",
    "month",
    "lot",
    "right",
    "study",
    "book",
    "eye",
    "job",
    "word",
    "business",
    "issue",
    "side",
    "kind",
    "head",
    "house",
    "service",
    "friend",
    "father",
    "power",
    "hour",
    "game",
    "line",
    "end",
    "member",
    "law",
    "car",
    "city",
    "community",
    "name",
    "president",
    "team",
    "minute",
    "idea",
    "kid",
    "body",
    "information",
    "back",
    "parent",
    "face",
    "others",
    "level",
    "office",
    "door",
    "health",
    "person",
    "art",
    "war",
    "history",
    "party",
    "result",
    "change",
    "morning",
    "reason",
    "research",
    "girl",
    "guy",
    "moment",
    "air",
    "teacher",
    "force",
    "education",
]
MEDIAN_TOKENS, P95_TOKENS = 120, 600


def lengths(n: int, generator: np.random.Generator) -> np.ndarray:
    """Of ``n`` chats, in tokens: log-normal."""
    spread = np.log(P95_TOKENS / MEDIAN_TOKENS) / 1.645
    drawn = np.exp(generator.normal(np.log(MEDIAN_TOKENS), spread, n))
    return np.clip(drawn, 8, 1_800).astype(int)


def workload(n: int, system_words: int, generator: np.random.Generator) -> list[Prompt]:
    """``n`` chats whose lengths are log-normal; half of each is the answer."""
    sizes = lengths(n, generator)
    system = " ".join(generator.choice(WORDS, system_words))

    def text(words: int) -> str:
        return " ".join(generator.choice(WORDS, max(words, 1)))

    return [
        Prompt(
            key=RecordKey(topic="benchmark", partition=0, offset=index),
            recorded_at=datetime(2026, 1, 1, tzinfo=UTC),
            messages=(
                *([Message(role="system", content=system)] if system_words else []),
                Message(role="user", content=text(size // 2)),
            ),
            response=text(size - size // 2),
        )
        for index, size in enumerate(sizes)
    ]


def directions(k: int, width: int, site: int, generator: np.random.Generator) -> list[Feature]:
    weights = generator.normal(size=(k, width)).astype(np.float32)
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    flat = Calibration(tokens=(1.0,), means=(0.0,), deviations=(1.0,))
    return [
        Feature(
            name=f"direction-{index}",
            kind="direction",
            site=site,
            region="all",
            pooling="mean",
            weight=weight,
            calibration=flat,
        )
        for index, weight in enumerate(weights)
    ]
