"""The tokens of one replay, which of them each region holds, and what is left of them under a limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from monitor.values.features import Region
from monitor.values.fidelity import Rendering

CUT_RULE = "middle"

Run = tuple[Sequence[int], Sequence[bool]]
"""Ids in order, and whether each may be pooled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """One prompt as the model sees it: n = prompt + reasoning + response ids, in this order, after the cut.

    ``readable`` [n] is False for special tokens and template scaffolding where these are masked.
    ``whole_prompt`` and ``whole_answer`` (reasoning, calls and text) count tokens before the cut.
    """

    ids: tuple[int, ...]
    prompt_tokens: int
    response_tokens: int
    readable: NDArray[np.bool_]
    reasoning_tokens: int = 0
    cut: bool = False
    whole_prompt: int = 0
    whole_answer: int = 0
    rendering: Rendering = "chat"
    stand_ins: tuple[str, ...] = ()

    @property
    def identity(self) -> tuple[tuple[int, ...], int, int, bytes]:
        """Equal for two replays that read the same: the same ids under the same regions."""
        return (self.ids, self.prompt_tokens, self.reasoning_tokens, self.readable.tobytes())

    def positions(self, region: Region, skip_tokens: int) -> NDArray[np.int64]:
        """Positions that ``region`` pools, rising; the first ``skip_tokens`` of the row never.

        ``last_prompt_token`` is the token after which the model's own words begin, scaffolding or not.
        """
        if region == "last_prompt_token":
            last = self.prompt_tokens - 1
            return np.array([last] if last >= skip_tokens else [], dtype=np.int64)
        answer = self.prompt_tokens + self.reasoning_tokens
        start, stop = {
            "prompt": (0, self.prompt_tokens),
            "reasoning": (self.prompt_tokens, answer),
            "response": (answer, len(self.ids)),
            "all": (0, len(self.ids)),
        }[region]
        start = max(start, skip_tokens)
        return np.flatnonzero(self.readable[start:stop]).astype(np.int64) + start

    def runs(self) -> tuple[Run, Run, Run]:
        """Prompt, reasoning and response apart."""
        first, second = self.prompt_tokens, self.prompt_tokens + self.reasoning_tokens
        ids, readable = self.ids, self.readable.tolist()
        return (
            (ids[:first], readable[:first]),
            (ids[first:second], readable[first:second]),
            (ids[second:], readable[second:]),
        )


def joined(prompt: Run, reasoning: Run, response: Run, limit: int) -> Tokens:
    """The three parts as one replay, cut to ``limit`` tokens.

    The answer (reasoning and response) keeps at least half the limit when it needs that much, more when
    the prompt is short. A prompt keeps its first quarter (BOS, system prompt) and its end (the last
    turn, the generation prompt), and loses its middle. So does reasoning, by halves. A response keeps its
    beginning: at least half of the answer's room when it needs that much, more when the reasoning is short.
    """
    asked, thought, said = len(prompt[0]), len(reasoning[0]), len(response[0])
    room = min(thought + said, max(limit // 2, limit - asked))
    begin = min(said, max((room + 1) // 2, room - thought))
    prompt = _without_middle(prompt, limit - room, 4)
    reasoning = _without_middle(reasoning, room - begin, 2)
    return Tokens(
        ids=(*prompt[0], *reasoning[0], *response[0][:begin]),
        prompt_tokens=len(prompt[0]),
        reasoning_tokens=len(reasoning[0]),
        response_tokens=begin,
        readable=np.array([*prompt[1], *reasoning[1], *response[1][:begin]], dtype=np.bool_),
        cut=asked + thought + said > limit,
        whole_prompt=asked,
        whole_answer=thought + said,
    )


def begun(tokens: Tokens, answer: int) -> Tokens:
    """The replay with the first ``answer`` tokens of its answer (reasoning, then response)."""
    reasoning = min(tokens.reasoning_tokens, answer)
    response = min(tokens.response_tokens, answer - reasoning)
    end = tokens.prompt_tokens + reasoning + response
    return replace(
        tokens,
        ids=tokens.ids[:end],
        reasoning_tokens=reasoning,
        response_tokens=response,
        readable=tokens.readable[:end],
    )


def _without_middle(run: Run, room: int, part: int) -> Run:
    """``run`` within ``room``: its first 1/``part`` of that and its end."""
    ids, readable = run
    if len(ids) <= room:
        return run
    first = room // part
    last = len(ids) - (room - first)
    return [*ids[:first], *ids[last:]], [*readable[:first], *readable[last:]]
