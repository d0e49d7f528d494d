"""Texts that simulated traffic is drawn from, and what packs read in them.

The simulation draws *texts*, the same ones whatever pack watches; a pack's readings of them are a matrix.

Legend: n = texts, k = features, c = covariates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.persona.machine import in_float32
from benchmarks.persona.measure import answered
from monitor.replay.model import LoadedModel, load_model
from monitor.research.reading import Reader
from monitor.research.texts import load_chats, load_texts
from monitor.score.pack import Pack
from monitor.values.adjustment import covariates_of
from monitor.values.arrays import Counts, Floats
from monitor.values.prompts import Prompt

DEMO_BENIGN = Path(__file__).parents[2] / "monitor" / "demo" / "data" / "benign.jsonl"


@dataclass(frozen=True, kw_only=True)
class Readings:
    """``scores`` [n, k] in the pack's order and as the worker stores them, ``covariates`` [n, c]."""

    pack: Pack
    scores: Floats
    covariates: Floats


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Texts by group, as indices into all of them; ``questions`` [n] says which share their prompt."""

    groups: Mapping[str, Counts]
    questions: Sequence[bytes]
    read: Mapping[str, Readings]
    """By pack."""


def benign_exchanges() -> list[Prompt]:
    """The packs' and the demo's benign exchanges."""
    texts = load_texts()
    return [*texts.fit, *texts.check, *load_chats(DEMO_BENIGN)]


def said_by(base: LoadedModel, organism: Path) -> list[Prompt]:
    """The answers that were kept when the organism was measured; empty ones are left out."""
    return [p for p in answered(base, organism / "answers.jsonl") if p.response]


def pooled(
    model: Path, device: str, groups: Mapping[str, Sequence[Prompt]], packs: Mapping[str, Pack]
) -> Pool:
    """Every text read by the untouched model for all packs in one pass.

    A text that some feature of some pack finds no token in is in no group.
    """
    prompts = [prompt for group in groups.values() for prompt in group]
    columns = {
        name: [*pack.features, *(covariate.as_feature() for covariate in pack.covariates)]
        for name, pack in packs.items()
    }
    features = [feature for own in columns.values() for feature in own]
    settings = in_float32(model, device)
    loaded = load_model(settings, max(pack.deepest_site for pack in packs.values()))
    scores = Reader(loaded, features, settings).scores("texts", prompts)
    read, begin = {}, 0
    for name, pack in packs.items():
        own, k = scores[:, begin : begin + len(columns[name])], len(pack.features)
        begin += len(columns[name])
        carried = [row[k:] if pack.covariates else None for row in own]
        read[name] = Readings(
            pack=pack,
            scores=own[:, :k],
            covariates=covariates_of(own[:, :k], carried, pack.features),
        )
    present = np.asarray(~np.isnan(scores).any(axis=1), dtype=np.bool_)
    members, start = {}, 0
    for name, group in groups.items():
        indices = np.arange(start, start + len(group))
        members[name], start = indices[present[indices]], start + len(group)
    questions = [prompt.messages[-1].content.encode() for prompt in prompts]
    return Pool(groups=members, questions=questions, read=read)


def drawn(
    pool: Pool,
    shares: Mapping[str, float],
    minutes: int,
    per_minute: int,
    generator: np.random.Generator,
) -> Counts:
    """Texts [minutes, per_minute], with replacement: a group by its share, then one of it."""
    names = list(shares)
    which = generator.choice(len(names), size=(minutes, per_minute), p=[shares[n] for n in names])
    found = np.zeros(which.shape, dtype=np.int64)
    for number, name in enumerate(names):
        members, here = pool.groups[name], which == number
        found[here] = members[generator.integers(len(members), size=int(here.sum()))]
    return found
