"""The pools that everything here is simulated from: real answers of real speakers, weighed and read by the copy.

    python -m benchmarks.identity pools --model FOLDER --organisms DIR --cache DIR [--seed 0]

Each speaker answers questions of this project's texts with up to 48 tokens. What is kept is the *text*, as a log has
it; the untouched copy (float32, one thread) weighs it and reads the pack's features in it through the engine that
the worker runs. A pool is made once; one that lies in the cache is taken from there.

Legend: n = answers, c = tilts, k = features of the pack.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from benchmarks.identity.questions import Question, questions
from benchmarks.identity.speakers import SPEAKERS, Speaker, asked, speaking, tuned_steps
from benchmarks.persona.results import pack_of
from monitor.canaries import largest_deviation
from monitor.replay.answer import left_padded, padding, stock_attention
from monitor.replay.engine import ReplayEngine
from monitor.replay.model import LoadedModel, identity_of, load_model
from monitor.replay.surprise import end_tokens
from monitor.score.pack import Pack
from monitor.score.scorer import standardised
from monitor.settings import ReplaySettings
from monitor.values.adjustment import covariates_of
from monitor.values.arrays import Counts, Doubles, Floats
from monitor.values.prompts import Prompt, Sampling
from monitor.values.scores import Replayed
from monitor.values.surprise import Surprise, Tally, tally_of

TOKENS: Final = 48
BATCH: Final = 32
LAWS: Final[Mapping[str, Sampling]] = {
    "1": Sampling(temperature=1.0),
    "0.7": Sampling(temperature=0.7, top_p=0.9),
    "0": Sampling(temperature=0.0),
}
"""Temperature 1; temperature 0.7 with top_p 0.9; greedy."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One pool: which questions are asked."""

    speaker: str
    law: str
    core: int = 0
    """So many core questions, once each, spread over their topics."""
    others: bool = False
    """All other questions as well."""

    @property
    def name(self) -> str:
        return f"{self.speaker.replace(' ', '-')}-{self.law}"


SWAPS: Final = ("int8", "int4", "steps-1", "steps-8", "reckless")
GREEDY: Final = ("bfloat16", "int4", "steps-8")
ALL: Final = 48
"""Core questions."""
WANTED: Final = (
    Wanted(speaker="reckless", law="1", core=ALL),
    Wanted(speaker="copy", law="1", core=ALL, others=True),
    Wanted(speaker="int4", law="1", core=24),
    Wanted(speaker="steps-8", law="1", core=24),
    Wanted(speaker="template", law="1", core=12),
    Wanted(speaker="system prompt", law="1", core=12),
    Wanted(speaker="copy", law="0.7", core=ALL),
    Wanted(speaker="int8", law="1", core=24),
    Wanted(speaker="steps-1", law="1", core=24),
    Wanted(speaker="bfloat16", law="1", core=24),
    *(Wanted(speaker=name, law="0", core=16) for name in GREEDY),
    Wanted(speaker="steered", law="1", core=12),
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
    left_out: Mapping[str, int]
    """Answers that were not weighed, by reason."""
    cpu_seconds: float

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
        """[n, c]"""
        return np.array([one.log_bets for one in self.surprises])

    @cached_property
    def tallies(self) -> list[Tally]:
        return [tally_of(one) for one in self.surprises]


def drawn(
    loaded: LoadedModel, rows: Sequence[Sequence[int]], law: Sampling, seed: int
) -> Iterator[tuple[int, str, bool]]:
    """Of each row, its place, the answer's text and whether it ended by itself."""
    ends = end_tokens(loaded)
    chosen: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if law.temperature:
        chosen = {
            "do_sample": True,
            "temperature": law.temperature,
            "top_p": law.top_p or 1.0,
            "top_k": 0,
        }
    order = sorted(range(len(rows)), key=lambda place: len(rows[place]))
    torch.manual_seed(seed)
    with stock_attention(loaded) as whole, torch.inference_mode():
        for start in range(0, len(order), BATCH):
            members = order[start : start + BATCH]
            ids, mask = left_padded([rows[place] for place in members], loaded)
            model: Any = whole
            output = model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=TOKENS,
                num_beams=1,
                repetition_penalty=1.0,
                pad_token_id=padding(loaded),
                **chosen,
            )
            for place, said in zip(members, output[:, ids.shape[1] :].tolist(), strict=True):
                stop = next((at for at, one in enumerate(said) if one in ends), None)
                text = loaded.tokenizer.decode(said[:stop], skip_special_tokens=True)
                yield place, text, stop is not None


class Monitor:
    """The untouched copy, as the worker runs it over logged answers."""

    def __init__(self, model: Path, pack: Pack) -> None:
        settings = ReplaySettings(model=model, device="cpu", dtype="float32")
        loaded = load_model(settings, identity_of(settings).layers - 1, full=True)
        self._pack = pack
        self._read = [*pack.features, *(one.as_feature() for one in pack.covariates)]
        self._engine = ReplayEngine(loaded, self._read, settings)

    def pool(self, found: Sequence[tuple[int, Prompt]], law: Sampling, started: float) -> Pool:
        kept: list[tuple[int, Replayed, Surprise]] = []
        left_out: dict[str, int] = {}
        for start in range(0, len(found), BATCH):
            piece = found[start : start + BATCH]
            laws = {
                index: replace(law, finish_reason=prompt.sampling.finish_reason)
                for index, (_, prompt) in enumerate(piece)
                if prompt.response and prompt.sampling
            }
            prepared = self._engine.prepare([prompt for _, prompt in piece], (), laws)
            for (place, _), outcome in zip(piece, self._engine.run(prepared), strict=True):
                if isinstance(outcome, Replayed) and isinstance(outcome.weighed, Surprise):
                    kept.append((place, outcome, outcome.weighed))
                else:
                    why = getattr(outcome, "weighed", None) or getattr(outcome, "reason", "empty")
                    left_out[str(why)] = left_out.get(str(why), 0) + 1
        read = standardised(
            self._read,
            np.array([outcome.readings for _, outcome, _ in kept]),
            np.array([outcome.pooled_tokens for _, outcome, _ in kept]),
        )
        k = len(self._pack.features)
        carried = [row[k:] if self._pack.covariates else None for row in read]
        return Pool(
            question=np.array([place for place, _, _ in kept]),
            texts=[outcome.prompt.response or "" for _, outcome, _ in kept],
            surprises=[surprise for _, _, surprise in kept],
            scores=read[:, :k],
            covariates=covariates_of(read[:, :k], carried, self._pack.features),
            left_out=left_out,
            cpu_seconds=time.process_time() - started,
        )


def made(
    wanted: Wanted,
    speaker: LoadedModel,
    who: Speaker,
    monitor: Monitor,
    every: Sequence[Question],
    seed: int,
) -> Pool:
    started = time.process_time()
    core = [place for place, one in enumerate(every) if one.core]
    places = [core[index * len(core) // wanted.core] for index in range(wanted.core)]
    places += [place for place, one in enumerate(every) if wanted.others and not one.core]
    rows = asked(who, speaker, [every[place].prompt for place in places])
    law = LAWS[wanted.law]
    found = [
        (
            places[index],
            replace(
                every[places[index]].prompt,
                response=text,
                sampling=replace(law, finish_reason="stop" if ended else "length"),
            ),
        )
        for index, text, ended in drawn(speaker, rows, law, seed)
    ]
    return monitor.pool(found, law, started)


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
        "cpu_seconds": pool.cpu_seconds,
    }
    content: dict[str, Any] = {
        "question": pool.question,
        "scores": pool.scores,
        "covariates": pool.covariates,
        "log_bets": pool.log_bets,
        "said": np.array(json.dumps(said)),
        **{name: np.array([getattr(one, name) for one in pool.surprises]) for name in _FIELDS},
    }
    np.savez_compressed(file, **content)


def kept(file: Path) -> Pool:
    with np.load(file) as found:
        said = json.loads(str(found["said"]))
        columns = {name: found[name].tolist() for name in _FIELDS}
        return Pool(
            question=found["question"],
            texts=said["texts"],
            surprises=[
                Surprise(
                    law=law,
                    log_bets=found["log_bets"][row],
                    **{name: column[row] for name, column in columns.items()},
                )
                for row, law in enumerate(said["laws"])
            ],
            scores=found["scores"],
            covariates=found["covariates"],
            left_out=said["left_out"],
            cpu_seconds=said["cpu_seconds"],
        )


def load_canaries(cache: Path) -> dict[str, float]:
    """Largest deviation of a canary by who stood in the copy's place."""
    found: dict[str, float] = json.loads((cache / CANARIES).read_text())
    return found


def load_pools(cache: Path) -> dict[str, Pool]:
    """By name, ``speaker-law``. Raises `SystemExit` where one is missing."""
    missing = [one.name for one in WANTED if not (cache / f"{one.name}.npz").exists()]
    if missing:
        raise SystemExit(
            f"{cache} lacks pools: {', '.join(missing)}; run `benchmarks.identity pools` first"
        )
    return {one.name: kept(cache / f"{one.name}.npz") for one in WANTED}


def canaries_of(loaded: LoadedModel, pack: Pack) -> float:
    engine = ReplayEngine(loaded, pack.features, ReplaySettings(dtype="float32"))
    return largest_deviation(pack, engine, datetime(2026, 1, 1, tzinfo=UTC))


def make_pools(options: argparse.Namespace) -> None:
    """Those that the cache lacks, a speaker at a time."""
    cache: Path = options.cache
    cache.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    tuned_steps(options.model, cache, options.seed)
    every, pack, monitor = questions(), pack_of(options), None
    canaries = load_canaries(cache) if (cache / CANARIES).exists() else {}
    for name in dict.fromkeys(one.speaker for one in WANTED):
        who = SPEAKERS[name]
        mine = [one for one in WANTED if one.speaker == name]
        missing = [one for one in mine if not (cache / f"{one.name}.npz").exists()]
        unread = name in INSTRUMENTS and name not in canaries
        if not missing and not unread:
            continue
        monitor = monitor or Monitor(options.model, pack)
        with speaking(who, options.model, (cache, options.organisms), pack) as speaker:
            if unread:
                canaries[name] = canaries_of(speaker, pack)
                (cache / CANARIES).write_text(json.dumps(canaries, indent=1))
                print(
                    f"{name} in the copy's place: canaries off by {canaries[name]:.3g}", flush=True
                )
            for one in missing:
                pool = made(one, speaker, who, monitor, every, options.seed)
                keep(pool, cache / f"{one.name}.npz")
                z = pool.excess.sum() / pool.tokens.sum()
                print(
                    f"{one.name}: {len(pool)} answers, {z:+.3f} nats a token,"
                    f" {pool.cpu_seconds:.0f} CPU s, left out {pool.left_out}",
                    flush=True,
                )
