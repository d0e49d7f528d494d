"""What becomes of a record: pure, and the same for the topic and for a file."""

from __future__ import annotations

import hmac
import re
from collections import Counter
from collections.abc import Collection, Iterable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import chain

from monitor.ingest.sampling import sample
from monitor.settings import IngestSettings, ReplaySettings
from monitor.values.arrays import Floats
from monitor.values.fidelity import fidelity
from monitor.values.losses import SCORED, outcome_of
from monitor.values.prompts import (
    GENERATED,
    MEDIA,
    DeadLetter,
    Parsed,
    Prompt,
    Skip,
    SkipReason,
    identity,
)
from monitor.values.scores import IngestCount, Replayed, ScoredPrompt, Unreplayable

_INDEX = re.compile(r"\[\d+\]")


def read(parsed: Parsed, ingest: IngestSettings) -> Parsed:
    """A parsed record after the sampling."""
    return sample(parsed, ingest.sampling_rate) if isinstance(parsed, Prompt) else parsed


def without_own(parsed: Parsed, own: Collection[str]) -> Parsed:
    """Skipped where a user's only message is one of ``own``, the monitor's questions to the served endpoint."""
    if not own or not isinstance(parsed, Prompt):
        return parsed
    asked = [message for message in parsed.messages if message.role != "system"]
    if len(asked) != 1 or asked[0].role != "user" or asked[0].content not in own:
        return parsed
    return Skip(key=parsed.key, recorded_at=parsed.recorded_at, reason=SkipReason.SERVER_CANARY)


def nothing_to_read(outcome: Unreplayable) -> Skip:
    prompt = outcome.prompt
    return Skip(key=prompt.key, recorded_at=prompt.recorded_at, reason=SkipReason.NOTHING_TO_READ)


def letter_of(outcome: Unreplayable) -> DeadLetter:
    return DeadLetter(
        key=outcome.prompt.key,
        recorded_at=outcome.prompt.recorded_at,
        reason=outcome.reason,
        detail=outcome.detail,
    )


def scored_prompt(
    outcome: Replayed,
    scores: Floats,
    segments: tuple[str, ...],
    hash_key: bytes,
    replay: ReplaySettings,
) -> ScoredPrompt:
    """The row that is kept of a prompt: scores, counts and keyed hashes, never its text.

    Of ``replay`` the tolerances count by which the token counts may differ from the server's.
    """
    prompt = outcome.prompt
    conversation, left_out = prompt.conversation_id, prompt.left_out
    if prompt.media_left_out:
        segments = (MEDIA,)
    return ScoredPrompt(
        key=prompt.key,
        recorded_at=prompt.recorded_at,
        prompt_id=prompt.prompt_id,
        content_hash=keyed_hash(hash_key, *identity(prompt)),
        conversation_hash=keyed_hash(hash_key, conversation) if conversation else None,
        segments=(*segments, GENERATED) if outcome.generated else segments,
        model=prompt.model,
        model_revision=prompt.model_revision,
        prompt_tokens=outcome.prompt_tokens,
        response_tokens=outcome.response_tokens,
        cut=outcome.cut,
        generated=outcome.generated,
        inclusion_probability=prompt.inclusion_probability,
        readings=outcome.readings,
        scores=scores,
        served=prompt.served,
        fidelity=fidelity(
            prompt,
            outcome.counts,
            prompt_tolerance=replay.prompt_count_tolerance,
            answer_tolerance=replay.answer_count_tolerance,
        ),
        left_out=tuple(dict.fromkeys(map(without_indices, left_out))) if left_out else (),
        covariates=outcome.covariates,
    )


def without_indices(path: str) -> str:
    """``spans[3].start_time`` as ``spans[].start_time``: the field, wherever in the record it stands."""
    return _INDEX.sub("[]", path)


def keyed_hash(key: bytes, *parts: str) -> bytes:
    """HMAC-SHA256 over the parts, each preceded by its length so that borders count."""
    framed: list[bytes] = []
    for part in parts:
        encoded = part.encode("utf-8", "surrogatepass")
        framed += len(encoded).to_bytes(8, "big"), encoded
    machine = _keyed(key).copy()
    machine.update(b"".join(framed))
    return machine.digest()


@lru_cache(maxsize=4)
def _keyed(key: bytes) -> hmac.HMAC:
    """Ready to be copied: to set a key up takes as long as to hash a record."""
    return hmac.new(key, digestmod="sha256")


def count_outcomes(
    scored: Iterable[ScoredPrompt],
    dead: Iterable[DeadLetter],
    skipped: Iterable[Skip],
    bucket: timedelta,
) -> tuple[IngestCount, ...]:
    """What became of the chunk's prompts, by interval, source and outcome."""
    seconds = bucket.total_seconds()
    tally = Counter(
        [
            (one.recorded_at.timestamp() // seconds, one.key.topic, one.key.partition, SCORED)
            for one in scored
        ]
    )
    tally.update(
        (
            lost.recorded_at.timestamp() // seconds,
            lost.key.topic,
            lost.key.partition,
            outcome_of(lost),
        )
        for lost in chain[DeadLetter | Skip](dead, skipped)
    )
    found = [
        IngestCount(
            bucket_start=datetime.fromtimestamp(interval * seconds, UTC),
            source=f"{topic}/{partition}",
            outcome=outcome,
            n=n,
        )
        for (interval, topic, partition, outcome), n in tally.items()
    ]
    return tuple(sorted(found, key=lambda one: (one.bucket_start, one.source, one.outcome)))
