"""Which logged answers the whole copy weighs, and what is kept of them. Pure, as `outcomes` is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import numpy as np

from monitor.drift.histogram import floor_time
from monitor.drift.identity import wagers
from monitor.ingest.sampling import weighing_wanted
from monitor.settings import IdentitySettings
from monitor.values.fidelity import fidelity
from monitor.values.prompts import Prompt, Sampling
from monitor.values.scores import Replayed, ScoredPrompt
from monitor.values.surprise import IdentityBucket, Surprise

_Key = tuple[datetime, str, str, str]


def weighed(prompts: Sequence[Prompt], settings: IdentitySettings) -> dict[int, Sampling]:
    """The prompts of the chosen share whose answers can be held against a law, with that law.

    An answer whose temperature nobody knows cannot: neither its record nor the settings say it.
    """
    found: dict[int, Sampling] = {}
    if settings.share == 0.0:
        return found
    for index, prompt in enumerate(prompts):
        law = law_of(prompt.sampling, settings)
        if law is not None and weighing_wanted(prompt, settings.share):
            found[index] = law
    return found


def law_of(sampling: Sampling | None, settings: IdentitySettings) -> Sampling | None:
    """How an answer was drawn: as its record says, else as the settings do; None when neither knows."""
    said = sampling or Sampling()
    temperature = settings.temperature if said.temperature is None else said.temperature
    if temperature is None and said.top_k != 1:
        return None
    top_p = settings.top_p if said.top_p is None else said.top_p
    return replace(said, temperature=temperature, top_p=top_p)


def identity_buckets(
    outcomes: Iterable[tuple[Replayed, ScoredPrompt]], settings: IdentitySettings, bucket: timedelta
) -> tuple[IdentityBucket, ...]:
    """What the weighed answers add, by interval, segment, partition and served model.

    An answer whose token counts are not the server's is left out: what was weighed is not what was said.
    """
    found: dict[_Key, list[Surprise]] = defaultdict(list)
    for outcome, row in outcomes:
        compared = fidelity(outcome.prompt, outcome.counts)
        if outcome.surprise is None or (compared is not None and compared.differs):
            continue
        start = floor_time(row.recorded_at, bucket)
        source = f"{row.key.topic}/{row.key.partition}"
        served = f"{row.model or ''}@{row.model_revision or ''}"
        for segment in row.segments:
            found[start, segment, source, served].append(outcome.surprise)
    return tuple(_summed(key, found[key], settings.tolerance) for key in sorted(found))


def _summed(key: _Key, answers: Sequence[Surprise], tolerance: float) -> IdentityBucket:
    start, segment, source, served = key
    return IdentityBucket(
        bucket_start=start,
        segment=segment,
        source=source,
        served=served,
        n=len(answers),
        tokens=sum(one.tokens for one in answers),
        excess=sum(one.excess for one in answers),
        variance=sum(one.variance for one in answers),
        off_support=sum(one.off_support for one in answers),
        given_away=sum(one.given_away for one in answers),
        wagers=np.sum([wagers(one, tolerance) for one in answers], axis=0),
    )
