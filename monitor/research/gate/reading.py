"""What two models read on the same prompts: scores before and after, of one or two kinds.

Legend: n = prompts, k = features of the pack.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from monitor.errors import ModelError
from monitor.replay.model import LoadedModel
from monitor.research.answers.generate import answered
from monitor.research.progress import Progress
from monitor.research.reading import Reader, opened
from monitor.score.pack import Pack
from monitor.settings import ReplaySettings
from monitor.values.arrays import Counts, Floats
from monitor.values.identity import ModelIdentity
from monitor.values.prompts import Prompt

Kind = Literal["model", "behaviour"]
PIECE: Final = 256
"""Prompts replayed at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Scores [n, k] before and after, NaN where a feature's region is absent."""

    kind: Kind
    before: Floats
    after: Floats


def measured(
    pack: Pack,
    reference: ReplaySettings,
    candidate: ReplaySettings,
    prompts: Sequence[Prompt],
    generate: int | None,
    progress: Progress,
) -> tuple[list[Pairs], tuple[str, ...]]:
    """Scores of ``prompts`` by both models, and remarks on the answers.

    With ``generate``, both answer greedily with up to so many tokens; else the responses given are
    read. The candidate goes first, so that each model is loaded once and never beside the other.
    Raises `ModelError` for readings that are not finite, `BadInput` for prompts that cannot be replayed.
    """
    wide = generate is not None
    with _side(pack, candidate, "candidate", progress, whole=wide) as theirs:
        candidates = theirs.answered(prompts, generate)
        after = theirs.scores(candidates)
        # One model at a time: there may be no room for two.
        del theirs
    with _side(pack, reference, "reference", progress, whole=wide) as ours:
        own = ours.answered(prompts, generate)
        between, before = ours.scores(candidates), ours.scores(own) if wide else None
        del ours
    model = Pairs(kind="model", before=between, after=after)
    if before is None:
        return [model], ()
    empty = [sum(not p.response for p in given) for given in (own, candidates)]
    same = sum(a.response == b.response for a, b in zip(own, candidates, strict=True))
    notes = (
        f"{same} of {len(prompts)} answers of up to {generate} tokens are the same; "
        f"empty answers: reference {empty[0]}, candidate {empty[1]}.",
    )
    return [Pairs(kind="behaviour", before=before, after=between), model], notes


@dataclass(frozen=True, slots=True)
class _Side:
    """One loaded model, what reads it, and how it is called."""

    loaded: LoadedModel
    reader: Reader
    who: str
    progress: Progress

    def answered(self, prompts: Sequence[Prompt], tokens: int | None) -> Sequence[Prompt]:
        """The prompts with this model's greedy answers; as they are without ``tokens``."""
        if tokens is None:
            return prompts
        return answered(
            self.loaded, prompts, tokens, lambda line: self.progress(f"{self.who}: {line}")
        )

    def scores(self, prompts: Sequence[Prompt]) -> Floats:
        return self.reader.scores(f"prompts by the {self.who}", prompts)


@contextmanager
def _side(
    pack: Pack, settings: ReplaySettings, who: str, progress: Progress, *, whole: bool
) -> Iterator[_Side]:
    progress(f"loading the {who}")
    with opened(settings, None if whole else pack.deepest_site) as loaded:
        reader = Reader(loaded, pack.features, settings, progress, piece=PIECE)
        yield _Side(loaded, reader, who, progress)


def clusters_of(prompts: Sequence[Prompt]) -> Counts:
    """A number [n] for what hangs together: turns of one conversation, repeats of one prompt, and chains
    of both. A health check that is sent under a new id each time is still one prompt."""
    n = len(prompts)
    keys: dict[object, int] = {}
    edges = [
        (index, keys.setdefault(key, n + len(keys)))
        for index, prompt in enumerate(prompts)
        for key in (prompt.conversation_id, (prompt.messages, prompt.text))
        if key is not None
    ]
    ends = np.array(edges, dtype=np.int64).reshape(-1, 2).T
    size = n + len(keys)
    graph = coo_matrix((np.ones(len(edges)), ends), shape=(size, size))
    _, found = connected_components(graph, directed=False)
    return np.unique(found[:n], return_inverse=True)[1].astype(np.int64)


def require_comparable(ours: ModelIdentity, theirs: ModelIdentity) -> None:
    """Raises `ModelError` unless both are checkpoints of one model."""
    if differing := ours.differences(theirs, weights=False):
        raise ModelError(
            "the two models cannot be read alike: they differ in "
            + ", ".join("{0} ({2} not {1})".format(one.field, *one.short) for one in differing),
            hint="compare checkpoints of one model: same shape, tokenizer and chat template",
        )
