"""The prompts of a packed row below each other, for parts of a model that cannot be told where one ends.

Legend: p = tokens of the kept prefixes, t = tokens of the row, b = prompts of a batch, l = tokens of its longest, n = its own tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from monitor.replay.variable import sent

FILLED: Final = 0.2
"""Largest share of a batch's places that may be filled up."""
CPU_PLACES: Final = 256
"""Places of a batch on a CPU, whose caches lose more on larger ones than the fewer calls gain. On a GPU the row is the bound."""
CHUNK: Final = 64
"""Tokens that many such parts take at once, be a prompt shorter or not: filled up chunks are bounded as filled up places are."""


@dataclass(frozen=True, slots=True)
class Batch:
    """``taken`` [b, l] are places among the kept tokens and the row's; ``own`` [n] are those places of the
    flattened batch that hold the row's tokens ``into`` [n]."""

    taken: torch.Tensor
    own: torch.Tensor
    into: torch.Tensor


@dataclass(frozen=True, slots=True)
class Batches:
    """Every segment once, behind the ``prefixes`` that it continues: kept tokens stand in that order before the row."""

    prefixes: tuple[int, ...]
    batches: tuple[Batch, ...]


def batches_of(
    segments: Sequence[tuple[int, tuple[int, ...]]],
    prefix_tokens: Mapping[int, int],
    device: torch.device,
) -> Batches:
    """``segments`` are a row's, in order: how many tokens each has, and which prefixes come before it.

    Those of like length stand together. No batch has more places than the row, or than its only prompt needs.
    """
    most = sum(tokens for tokens, _ in segments)
    if device.type == "cpu":
        most = min(most, CPU_PLACES)
    prefixes = tuple(sorted(prefix_tokens))
    begins, before = dict[int, int](), 0
    for prefix in prefixes:
        begins[prefix] = before
        before += prefix_tokens[prefix]
    found: list[_Read] = []
    start = 0
    for tokens, chain in segments:
        parts = [torch.arange(begins[one], begins[one] + prefix_tokens[one]) for one in chain]
        parts.append(torch.arange(before + start, before + start + tokens))
        found.append(_Read(torch.cat(parts), start, tokens))
        start += tokens
    found.sort(key=len, reverse=True)
    made: list[Batch] = []
    members: list[_Read] = []
    for one in found:
        more = [*members, one]
        if members and (len(more) * len(more[0]) > most or _is_too_full(list(map(len, more)))):
            made.append(_batch(members, device))
            more = [one]
        members = more
    made.append(_batch(members, device))
    return Batches(prefixes, tuple(made))


@dataclass(frozen=True, slots=True)
class _Read:
    """All tokens that a segment's reading takes, by their ``places``; its own, from ``start`` of the row on, are the last ``tokens``."""

    places: torch.Tensor
    start: int
    tokens: int

    def __len__(self) -> int:
        return len(self.places)


def _is_too_full(lengths: Sequence[int]) -> bool:
    """Whether filling up to the first, which is the longest, wastes too many places, or chunks."""
    chunks = [-(-length // CHUNK) for length in lengths]
    return any(
        len(sizes) * sizes[0] - sum(sizes) > FILLED * len(sizes) * sizes[0]
        for sizes in (lengths, chunks)
    )


def _batch(members: Sequence[_Read], device: torch.device) -> Batch:
    """``members`` with the longest first. Behind a shorter one's end its last token stands again."""
    longest = len(members[0])
    taken = [torch.cat([m.places, m.places[-1:].expand(longest - len(m))]) for m in members]
    ends = [line * longest + len(member) for line, member in enumerate(members)]
    own = [torch.arange(end - m.tokens, end) for end, m in zip(ends, members, strict=True)]
    into = [torch.arange(m.start, m.start + m.tokens) for m in members]
    return Batch(
        *(sent(one, device) for one in (torch.stack(taken), torch.cat(own), torch.cat(into)))
    )
