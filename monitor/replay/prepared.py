"""What the engine makes of prompts before it runs them, and what it counts."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

from monitor.replay.plan import Plan
from monitor.replay.regions import Tokens
from monitor.values.likelihood import DrawnBy
from monitor.values.prompts import Prompt
from monitor.values.scores import Unreplayable
from monitor.values.twin import TwinAsked, Unpaired


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """What the engine did since it was built. Tokens asked for = run + duplicate + shared + kept (+ failed)."""

    prompts: int = 0
    tokens_run: int = 0
    tokens_duplicate: int = 0
    tokens_shared: int = 0
    tokens_kept: int = 0
    """Of prefixes that an earlier chunk ran."""
    passes: int = 0
    splits: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Tokenised and planned prompts. ``replays[r]`` are distinct; prompt i has ``replay_of[i]``.

    ``tokens[i]`` has the same ids as its replay; its counts before the cut are the prompt's own.
    """

    prompts: tuple[Prompt, ...]
    refused: dict[int, Unreplayable]
    tokens: dict[int, Tokens]
    replays: tuple[Tokens, ...]
    replay_of: dict[int, int]
    plan: Plan
    own_answers: frozenset[int] = frozenset()
    """Prompts that get an answer of the copy's own before they are read."""
    generated: frozenset[int] = frozenset()
    """Prompts that got one."""
    weighed: Mapping[int, DrawnBy] = field(default_factory=dict)
    """Prompts whose logged answer the whole copy weighs, with what is known of the draw."""
    twins: Mapping[int, TwinAsked] = field(default_factory=dict)
    """Prompts that the copy answers beside the server."""
    twin_of: Mapping[int, int | Unpaired] = field(default_factory=dict)
    """Their twins' keys in ``tokens`` and ``replay_of``, or why there is none."""


def distinct(tokens: Mapping[int, Tokens]) -> tuple[tuple[Tokens, ...], dict[int, int]]:
    """What is left to read of ``tokens``, and for each of their keys which of it is its own."""
    known: dict[Hashable, int] = {}
    replays: list[Tokens] = []
    replay_of: dict[int, int] = {}
    for index, one in tokens.items():
        if one.identity not in known:
            known[one.identity] = len(replays)
            replays.append(one)
        replay_of[index] = known[one.identity]
    return tuple(replays), replay_of
