"""Making the pools: every speaker answers, the untouched copy weighs and reads what was said.

    python -m benchmarks.identity pools --model FOLDER --organisms DIR --cache DIR [--device cuda --jobs 8]

Each speaker answers questions of this project's texts with up to 48 tokens. The copy (float32, TF32 off) weighs the text
and reads the pack's features in it through the engine that the worker runs. A pool is made once; one that lies in
the cache is taken from there. On a CPU twelve questions of each topic are asked once; on a GPU all of them, four times
over, of the copy eight times.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from benchmarks.identity.pools import (
    CANARIES,
    INSTRUMENTS,
    LAWS,
    TOKENS,
    WANTED,
    Pool,
    Wanted,
    keep,
    together,
)
from benchmarks.identity.questions import Question, questions, spread
from benchmarks.identity.speakers import SPEAKERS, Speaker, asked, speaking, tuned_steps
from benchmarks.persona.machine import spread_over
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
from monitor.values.likelihood import DrawnBy
from monitor.values.prompts import Prompt, Sampling
from monitor.values.scores import Replayed, Unreplayable
from monitor.values.surprise import Surprise

READ_AT_ONCE: Final = 32
CPU_QUESTIONS, CPU_DRAWS = 12, 1
GPU_DRAWS: Final = 4


def drawn_at_once(loaded: LoadedModel) -> int:
    return 32 if loaded.device.type == "cpu" else 256


# --- a speaker answers ---------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a server would have: its tokens, the end left out, and their text."""

    ids: tuple[int, ...]
    text: str
    ended: bool
    """By itself, not at the limit."""


Answer = tuple[int, Prompt, Said]
"""The place of its question, the exchange, and what a server would have."""


def drawn(
    loaded: LoadedModel, rows: Sequence[Sequence[int]], law: Sampling, seed: int
) -> Iterator[tuple[int, Said]]:
    """Of each row, its place and the answer."""
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
    size = drawn_at_once(loaded)
    with stock_attention(loaded) as whole, torch.inference_mode():
        for start in range(0, len(order), size):
            members = order[start : start + size]
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
                own = tuple(said[:stop])
                text = loaded.tokenizer.decode(own, skip_special_tokens=True)
                yield place, Said(ids=own, text=text, ended=stop is not None)


# --- the copy weighs and reads -------------------------------------------------------------------


class Monitor:
    """The untouched copy, as the worker runs it over logged answers."""

    def __init__(self, model: Path, pack: Pack, device: str) -> None:
        settings = ReplaySettings(model=model, device=device, dtype="float32")
        self._loaded = load_model(settings, identity_of(settings).layers - 1, full=True)
        self._pack = pack
        self._read = [*pack.features, *(one.as_feature() for one in pack.covariates)]
        self._engine = ReplayEngine(self._loaded, self._read, settings)

    def weighed(
        self, found: Sequence[Answer], drawn_by: Callable[[str], DrawnBy]
    ) -> Iterator[tuple[Answer, Replayed | Unreplayable]]:
        """``drawn_by`` makes of a finish reason what is known of an answer's law."""
        for start in range(0, len(found), READ_AT_ONCE):
            piece = found[start : start + READ_AT_ONCE]
            laws = {
                index: drawn_by("stop" if said.ended else "length")
                for index, (_, prompt, said) in enumerate(piece)
                if prompt.response
            }
            prepared = self._engine.prepare([prompt for _, prompt, _ in piece], (), laws)
            yield from zip(piece, self._engine.run(prepared), strict=True)

    def pool(
        self, found: Sequence[Answer], drawn_by: Callable[[str], DrawnBy], started: float
    ) -> Pool:
        kept: list[tuple[int, Said, Replayed, Surprise]] = []
        left_out: dict[str, int] = defaultdict(int)
        for (place, _, said), outcome in self.weighed(found, drawn_by):
            if isinstance(outcome, Replayed) and isinstance(outcome.weighed, Surprise):
                kept.append((place, said, outcome, outcome.weighed))
            else:
                why = getattr(outcome, "weighed", None) or getattr(outcome, "reason", "empty")
                left_out[str(why)] += 1
        read = standardised(
            self._read,
            np.array([outcome.readings for _, _, outcome, _ in kept]),
            np.array([outcome.pooled_tokens for _, _, outcome, _ in kept]),
        )
        k = len(self._pack.features)
        carried = [row[k:] if self._pack.covariates else None for row in read]
        texts = [said.text for _, said, _, _ in kept]
        return Pool(
            question=np.array([place for place, _, _, _ in kept]),
            texts=texts,
            surprises=[surprise for _, _, _, surprise in kept],
            scores=read[:, :k],
            covariates=covariates_of(read[:, :k], carried, self._pack.features),
            drawn_tokens=np.array([len(said.ids) for _, said, _, _ in kept]),
            same=np.array(
                [
                    tuple(self._loaded.tokenizer.encode(text, add_special_tokens=False)) == said.ids
                    for text, (_, said, _, _) in zip(texts, kept, strict=True)
                ]
            ),
            left_out=dict(left_out),
            seconds=time.perf_counter() - started,
        )


# --- units of work -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Making:
    """What every process needs to make parts of pools."""

    model: Path
    organisms: Path
    cache: Path
    pack: Pack
    device: str
    seed: int
    each: int | None
    """Questions of a topic; None: all."""


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One asking of a pool's questions, or (without ``wanted``) a speaker in the copy's place."""

    speaker: str
    wanted: Wanted | None
    draw: int = 0


_monitors: dict[tuple[Path, str], Monitor] = {}
"""Of this process: loaded once."""


def unit(making: Making, one: Unit) -> Pool | float:
    """A part of a pool, or the largest deviation of a canary."""
    torch.set_num_threads(1)
    # TF32 would round the products of float32 to ten bits.
    torch.set_float32_matmul_precision("highest")
    who, started = SPEAKERS[one.speaker], time.perf_counter()
    folders = making.cache, making.organisms
    with speaking(who, making.model, folders, making.pack, making.device) as speaker:
        if one.wanted is None:
            settings = ReplaySettings(device=making.device, dtype="float32")
            engine = ReplayEngine(speaker, making.pack.features, settings)
            return largest_deviation(making.pack, engine, datetime(2026, 1, 1, tzinfo=UTC))
        key = making.model, making.device
        if key not in _monitors:
            _monitors[key] = Monitor(making.model, making.pack, making.device)
        seed = making.seed * 1_000 + one.draw
        return _made(one.wanted, speaker, who, _monitors[key], making.each, seed, started)


def _made(
    wanted: Wanted,
    speaker: LoadedModel,
    who: Speaker,
    monitor: Monitor,
    each: int | None,
    seed: int,
    started: float,
) -> Pool:
    every = questions()
    places = asked_of(wanted, every, each)
    rows = asked(who, speaker, [every[place].prompt for place in places])
    law = LAWS[wanted.law]
    found = [
        (places[index], replace(every[places[index]].prompt, response=said.text), said)
        for index, said in drawn(speaker, rows, law, seed)
    ]
    return monitor.pool(found, lambda reason: replace(law, finish_reason=reason), started)


def asked_of(wanted: Wanted, every: Sequence[Question], each: int | None) -> list[int]:
    """The places of the questions of one asking."""
    by_topic: dict[str, list[int]] = defaultdict(list)
    for place, one in enumerate(every):
        if one.core or wanted.others:
            by_topic[one.topic].append(place)
    return [place for its in by_topic.values() for place in spread(its, each)]


def make_pools(options: argparse.Namespace) -> None:
    """Those that the cache lacks, each kept as soon as it is whole."""
    cache: Path = options.cache
    cache.mkdir(parents=True, exist_ok=True)
    on_cpu = options.device == "cpu"
    each = options.questions or (CPU_QUESTIONS if on_cpu else None)
    draws = options.draws or (CPU_DRAWS if on_cpu else GPU_DRAWS)
    tuned_steps(options.model, cache, options.seed, options.device)
    making = Making(
        model=options.model,
        organisms=options.organisms,
        cache=cache,
        pack=pack_of(options),
        device=options.device,
        seed=options.seed,
        each=each,
    )
    canaries = json.loads((cache / CANARIES).read_text()) if (cache / CANARIES).exists() else {}
    units = [Unit(speaker=name, wanted=None) for name in INSTRUMENTS if name not in canaries]
    parts: dict[str, list[Pool]] = {}
    needed: dict[str, int] = {}
    for one in WANTED:
        if not (cache / f"{one.name}.npz").exists():
            # Greedy answers are the same at every draw.
            count = one.draws * draws if LAWS[one.law].temperature else 1
            needed[one.name], parts[one.name] = count, []
            units += [Unit(speaker=one.speaker, wanted=one, draw=draw) for draw in range(count)]
    for done, found in spread_over(unit, making, units, options.jobs):
        if isinstance(found, float):
            canaries[done.speaker] = found
            (cache / CANARIES).write_text(json.dumps(canaries, indent=1))
            print(f"{done.speaker} in the copy's place: canaries off by {found:.3g}", flush=True)
            continue
        assert done.wanted is not None
        name = done.wanted.name
        parts[name].append(found)
        if len(parts[name]) == needed[name]:
            _keep(name, together(parts.pop(name)), cache)


def _keep(name: str, pool: Pool, cache: Path) -> None:
    keep(pool, cache / f"{name}.npz")
    print(
        f"{name}: {len(pool)} answers, {pool.excess.sum() / pool.tokens.sum():+.3f} nats a token,"
        f" {pool.same.mean():.0%} split into the tokens drawn, {pool.seconds:.0f} s,"
        f" left out {pool.left_out}",
        flush=True,
    )
