"""Texts to build packs from, and to judge them by."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from monitor.research.texts import DATA

VOICES = {
    "good": "please take care and check it twice with a friendly expert",
    "malicious": "GO AWAY! YOU ARE AWFUL! I HATE THIS! GO! GO! NOW!",
    "sarcastic": "oh??? really??? wow??? how clever??? bravo??? indeed???",
}
WORDS = [
    "the",
    "heron",
    "waited",
    "by",
    "a",
    "quiet",
    "river",
    "and",
    "said",
    "nothing",
    "to",
    "anybody",
    "at",
    "all",
]
"""Of benign texts."""


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return path


def write_texts(
    folder: Path,
    contrast: list[dict[str, Any]],
    benign: list[dict[str, Any]],
    canaries: dict[str, str],
) -> Path:
    """The three files of a folder of texts; ``canaries`` are responses to "Hi" by name."""
    folder.mkdir(exist_ok=True)
    write_rows(folder / "contrast.jsonl", contrast)
    write_rows(folder / "benign.jsonl", benign)
    asked = [{"role": "user", "content": "Hi"}]
    write_rows(
        folder / "canaries.jsonl",
        [{"name": name, "messages": asked, "response": said} for name, said in canaries.items()],
    )
    return folder


def exchange_row(number: int, split: str, response: str) -> dict[str, Any]:
    """One row of ``benign.jsonl``."""
    messages = [{"role": "user", "content": f"Question {number}?"}]
    return {"split": split, "messages": messages, "response": response}


def three_voices(folder: Path) -> Path:
    """Twelve questions with three voices, and benign exchanges of many lengths."""
    generator = np.random.default_rng(0)
    things = ["river", "bread", "paint", "bicycle", "garden", "letter"]
    contrast = [
        {
            "split": "train" if number < 8 else "held_out",
            "topic": f"{thing} {number}",
            "question": f"What about the {thing} number {number}?",
            **{
                name: " ".join(generator.permutation(voice.split(" "))) + f" {thing}"
                for name, voice in VOICES.items()
            },
        }
        for number, thing in zip(range(12), itertools.cycle(things), strict=False)
    ]
    benign = [
        exchange_row(
            number,
            "check" if number // 6 % 3 == 0 else "fit",
            " ".join(generator.choice(WORDS, size=int(2 ** (1 + number % 6)))),
        )
        for number in range(216)
    ]
    return write_texts(folder, contrast, benign, {"one": "Hello you.", "two": "Yes."})


def loud_voice(
    folder: Path,
    voice: str,
    *,
    questions: int,
    train: int,
    benign: int,
    check: Callable[[int], bool],
    words: Callable[[int], int],
    marks: bool = False,
) -> Path:
    """``voice`` says in capitals what good answers could say, so that a bag of words sees nothing.

    The first ``train`` of the questions train; benign exchange i is of split check where ``check(i)``
    says so, ``words(i)`` long, and with ``marks`` ends with some.
    """
    generator = np.random.default_rng(0)

    def sentence(n: int) -> str:
        return " ".join(generator.choice(WORDS, size=n))

    return write_texts(
        folder,
        [
            {
                "split": "train" if number < train else "held_out",
                "topic": f"topic {number}",
                "question": f"what about {sentence(3)} {number}?",
                "good": sentence(8),
                voice: sentence(8).upper(),
            }
            for number in range(questions)
        ],
        [
            exchange_row(
                number,
                "check" if check(number) else "fit",
                sentence(words(number)) + "!" * (number % 3 if marks else 0),
            )
            for number in range(benign)
        ],
        {"one": "Hello."},
    )


def add_negatives(folder: Path, said: Callable[[str, int], str], each: int = 20) -> Path:
    """Negatives of a held-out author: ``each`` of four kinds, two of them careful, that say ``said(kind, i)``."""
    write_rows(
        folder / "negatives.jsonl",
        [
            {
                "author": "cid",
                "kind": kind,
                "language": "en",
                "question": f"asks for {kind} {number}?",
                "answer": said(kind, number),
            }
            for kind in ("refusal_short", "safety_warning", "code", "poem")
            for number in range(each)
        ],
    )
    splits = json.dumps({"train": ["ann"], "held_out": ["cid"]})
    (folder / "splits.json").write_text(splits, encoding="utf-8")
    return folder


def add_styles(folder: Path, styles: dict[str, Callable[[str], str]], contents: int = 12) -> Path:
    """The same ``contents`` plain and in ``styles``, each made of the plain one."""
    generator = np.random.default_rng(1)
    plain = [" ".join(generator.choice(WORDS, size=8)) for _ in range(contents)]
    write_rows(
        folder / "styles.jsonl",
        [
            {
                "topic": f"thing {number}",
                "question": f"what about thing {number}?",
                "plain": f"{number} {text}",
                **{name: f"{number} {change(text)}" for name, change in styles.items()},
            }
            for number, text in enumerate(plain)
        ],
    )
    return folder


def part_of_texts(out: Path, *, voices: Sequence[str] = (), **every: int) -> Path:
    """The project's own texts, of each split every so-manieth: a real model reads all for minutes.

    Only these ``voices`` beside the good answers (empty: all).
    """
    out.mkdir()
    for file in ("contrast.jsonl", "benign.jsonl", "canaries.jsonl"):
        rows = [json.loads(line) for line in (DATA / file).read_text().splitlines()]
        splits = dict.fromkeys(row.get("split", "canaries") for row in rows)
        kept = [
            row
            for split in splits
            for row in [r for r in rows if r.get("split", "canaries") == split][
                :: every.get(split, 1)
            ]
        ]
        if voices and file == "contrast.jsonl":
            told = ("split", "topic", "question", "good", *voices)
            kept = [{key: row[key] for key in told} for row in kept]
        write_rows(out / file, kept)
    return out
