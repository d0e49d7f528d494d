"""Which prompts are replayed, and which slices of traffic they count in."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from monitor.values.prompts import EVERYTHING, Prompt, Skip, SkipReason

OTHER: Final = "(other)"
"""The value that stands for every segment beyond the limit."""

_SAMPLING: Final = b"monitor.sampling"
_ANSWERS: Final = b"monitor.answers"
_IDENTITY: Final = b"monitor.identity"
_TWIN: Final = b"monitor.twin"
_SEED: Final = b"monitor.seed"
"""Keep our choices independent of each other, and of a sampler upstream that hashes the same id."""


def sample(prompt: Prompt, rate: float) -> Prompt | Skip:
    """Keeps the prompt with probability ``rate`` in (0, 1], the same for a whole conversation.

    Deterministic: conversations (else prompt ids, else positions in the log) are hashed to [0, 1) and
    kept below ``rate``, so what is kept at a lower rate is kept at every higher one. A prompt that is
    kept carries its inclusion probability times ``rate``.
    """
    if rate >= 1.0:
        return prompt
    if _fraction(_unit(prompt), _SAMPLING) >= rate:
        return Skip(key=prompt.key, recorded_at=prompt.recorded_at, reason=SkipReason.SAMPLED_OUT)
    return replace(prompt, inclusion_probability=prompt.inclusion_probability * rate)


def answer_wanted(prompt: Prompt, share: float) -> bool:
    """Whether the prompt is of the ``share`` in [0, 1] that the copy answers itself.

    Chosen as `sample` chooses, by a hash of its own: whole conversations, the same in every worker and
    on redelivery, and what a low share answers a higher one answers too.
    """
    return _fraction(_unit(prompt), _ANSWERS) < share


def weighing_wanted(prompt: Prompt, share: float) -> bool:
    """Whether the prompt is of the ``share`` whose logged answers the whole copy weighs; as `answer_wanted`."""
    return share > 0.0 and _fraction(_unit(prompt), _IDENTITY) < share


def twin_wanted(prompt: Prompt, share: float) -> bool:
    """Whether the prompt is of the ``share`` that the copy answers beside the server; as `answer_wanted`."""
    return share > 0.0 and _fraction(_unit(prompt), _TWIN) < share


def twin_seed(prompt: Prompt) -> int:
    """Of the twin's draws, below 2⁶³: another one for every record, the same on redelivery."""
    return _hashed(_position(prompt), _SEED) >> 1


def _unit(prompt: Prompt) -> str:
    return prompt.conversation_id or prompt.prompt_id or _position(prompt)


def _position(prompt: Prompt) -> str:
    key = prompt.key
    return f"{key.topic}/{key.partition}/{key.offset}/{key.index}"


def _fraction(unit: str, purpose: bytes) -> float:
    return (_hashed(unit, purpose) >> 11) / 2**53


def _hashed(unit: str, purpose: bytes) -> int:
    """64 bits."""
    digest = hashlib.blake2b(unit.encode("utf-8"), digest_size=8, person=purpose).digest()
    return int.from_bytes(digest)


def labelled(prompt: Prompt, keys: Sequence[str]) -> tuple[str, ...]:
    """``("route=/chat", …)``: a segment for each of ``keys`` that the prompt carries, in their order."""
    found = prompt.segment
    return tuple([f"{key}={value}" for key in keys if (value := found.get(key)) is not None])


def segments_of(
    prompt: Prompt, keys: Sequence[str], told_apart: Callable[[str], bool]
) -> tuple[str, ...]:
    """``("all", "route=/chat", …)``: those of `labelled` too.

    One that is not ``told_apart`` counts as ``route=(other)``, so that a key with unbounded values cannot
    fill the store.
    """
    return (
        EVERYTHING,
        *[
            segment if told_apart(segment) else f"{segment.partition('=')[0]}={OTHER}"
            for segment in labelled(prompt, keys)
        ],
    )
