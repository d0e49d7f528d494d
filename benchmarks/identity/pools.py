"""The pools that everything here is simulated from: real answers of real speakers, weighed and read by the copy.

What is kept of an answer is its *text*, as a log has it, and what the untouched copy says of that (`drawing`).

Legend: n = answers, c = tilts, k = features of the pack.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from monitor.values.arrays import Counts, Doubles, Floats
from monitor.values.prompts import Sampling
from monitor.values.surprise import Surprise, Tally, tally_of

TOKENS: Final = 48
"""Longest answer."""
LAWS: Final[Mapping[str, Sampling]] = {
    "1": Sampling(temperature=1.0),
    "0.7": Sampling(temperature=0.7, top_p=0.9),
    "0": Sampling(temperature=0.0),
}
"""Temperature 1; temperature 0.7 with top_p 0.9; greedy."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One pool. Core questions are asked, ``others`` as well; each ``draws`` times what the options say."""

    speaker: str
    law: str
    others: bool = False
    draws: int = 1

    @property
    def name(self) -> str:
        return f"{self.speaker.replace(' ', '-')}-{self.law}"


SWAPS: Final = ("int8", "fp8", "int4", "steps-1", "steps-8", "steps-64", "reckless")
GREEDY: Final = ("bfloat16", "int8", "int4", "steps-1", "steps-8", "reckless")
UNTOLD: Final = "copy-untold"
"""The copy's answers of law 0.7, weighed as where no record says how they were drawn and a baseline estimated it."""
WANTED: Final = (
    Wanted(speaker="copy", law="1", others=True, draws=2),
    Wanted(speaker="copy", law="0.7", others=True, draws=2),
    *(Wanted(speaker=name, law="1") for name in SWAPS),
    Wanted(speaker="bfloat16", law="1"),
    Wanted(speaker="template", law="1"),
    Wanted(speaker="system prompt", law="1"),
    Wanted(speaker="steered", law="1"),
    *(Wanted(speaker=name, law="0") for name in GREEDY),
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Pool:
    """One speaker's answers, all of them weighed. ``question`` [n] are places in `questions`."""

    question: Counts
    texts: Sequence[str]
    surprises: Sequence[Surprise]
    scores: Floats
    """[n, k], as the worker stores them."""
    covariates: Floats
    """What the pack expects scores from, given the prompt; no columns where it does not."""
    drawn_tokens: Counts
    """How many tokens [n] the speaker drew, as a server counts them, the end left out."""
    same: NDArray[np.bool_]
    """The text is split into the very tokens [n] that were drawn."""
    left_out: Mapping[str, int]
    """Answers that were not weighed, by reason."""
    seconds: float

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def tokens(self) -> Counts:
        return np.array([one.tokens for one in self.surprises])

    @cached_property
    def excess(self) -> Doubles:
        return np.array([one.excess for one in self.surprises])

    @cached_property
    def variance(self) -> Doubles:
        return np.array([one.variance for one in self.surprises])

    @cached_property
    def log_bets(self) -> Doubles:
        """[n, c], at the price of odd tokens that an answer pays whose tokens nobody counted."""
        return np.array([one.log_bets for one in self.surprises])

    @cached_property
    def tallies(self) -> list[Tally]:
        return [tally_of(one) for one in self.surprises]

    @property
    def counted(self) -> Pool:
        """Those that are weighed where the log holds the server's token counts."""
        return self.of(np.flatnonzero(self.drawn_tokens == self.tokens))

    def of(self, rows: Counts) -> Pool:
        return Pool(
            question=self.question[rows],
            texts=[self.texts[row] for row in rows],
            surprises=[self.surprises[row] for row in rows],
            scores=self.scores[rows],
            covariates=self.covariates[rows],
            drawn_tokens=self.drawn_tokens[rows],
            same=self.same[rows],
            left_out=self.left_out,
            seconds=self.seconds,
        )


def together(parts: Sequence[Pool]) -> Pool:
    """One pool of several of the same speaker's."""
    left_out: dict[str, int] = {}
    for part in parts:
        for reason, count in part.left_out.items():
            left_out[reason] = left_out.get(reason, 0) + count
    return Pool(
        question=np.concatenate([part.question for part in parts]),
        texts=[text for part in parts for text in part.texts],
        surprises=[one for part in parts for one in part.surprises],
        scores=np.concatenate([part.scores for part in parts]),
        covariates=np.concatenate([part.covariates for part in parts]),
        drawn_tokens=np.concatenate([part.drawn_tokens for part in parts]),
        same=np.concatenate([part.same for part in parts]),
        left_out=left_out,
        seconds=sum(part.seconds for part in parts),
    )


# --- the cache -----------------------------------------------------------------------------------

CANARIES: Final = "canaries.json"
INSTRUMENTS: Final = ("copy", "int8", "int4", "steps-8")
"""Who stands in the place of the copy itself, to see whether the canaries tell."""
_FIELDS: Final = ("tokens", "excess", "variance", "peak", "off_support", "given_away")


def keep(pool: Pool, file: Path) -> None:
    said = {
        "texts": pool.texts,
        "laws": [one.law for one in pool.surprises],
        "left_out": dict(pool.left_out),
        "seconds": pool.seconds,
    }
    content: dict[str, Any] = {
        "question": pool.question,
        "scores": pool.scores,
        "covariates": pool.covariates,
        "drawn_tokens": pool.drawn_tokens,
        "same": pool.same,
        "log_bets": pool.log_bets,
        "counted_bets": np.array(
            [
                one.log_bets if one.counted_bets is None else one.counted_bets
                for one in pool.surprises
            ]
        ),
        "said": np.array(json.dumps(said)),
        **{name: np.array([getattr(one, name) for one in pool.surprises]) for name in _FIELDS},
    }
    np.savez_compressed(file, **content)


def kept(file: Path) -> Pool:
    with np.load(file) as found:
        said = json.loads(str(found["said"]))
        columns = {name: found[name].tolist() for name in _FIELDS}
        bets, counted = found["log_bets"], found["counted_bets"]
        return Pool(
            question=found["question"],
            texts=said["texts"],
            surprises=[
                Surprise(
                    law=law,
                    log_bets=bets[row],
                    counted_bets=counted[row] if law == "sampled" else None,
                    **{name: column[row] for name, column in columns.items()},
                )
                for row, law in enumerate(said["laws"])
            ],
            scores=found["scores"],
            covariates=found["covariates"],
            drawn_tokens=found["drawn_tokens"],
            same=found["same"],
            left_out=said["left_out"],
            seconds=said["seconds"],
        )


def load_canaries(cache: Path) -> dict[str, float]:
    """Largest deviation of a canary by who stood in the copy's place."""
    found: dict[str, float] = json.loads((cache / CANARIES).read_text())
    return found


def load_pools(cache: Path, names: Sequence[str]) -> dict[str, Pool]:
    """By name, ``speaker-law``. Raises `SystemExit` where one is missing."""
    missing = [name for name in names if not (cache / f"{name}.npz").exists()]
    if missing:
        raise SystemExit(
            f"{cache} lacks pools: {', '.join(missing)}; run `benchmarks.identity pools` first"
        )
    return {name: kept(cache / f"{name}.npz") for name in names}
