"""Is what was replayed what the server ran? The replay's token counts against the server's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from monitor.values.prompts import Prompt, ServedCounts

Rendering = Literal["chat", "text", "rendered_text", "parsed_text", "token_ids"]
"""How a prompt became tokens: a chat through the template; a raw text whose special tokens are letters;
a raw text whose special tokens are tokens, because the record says so, or because the text is exactly
what the model's template makes of some chat; or token ids as they were logged."""

CUT_SHORT: Final = frozenset(
    {"length", "max_tokens", "MAX_TOKENS", "max_output_tokens", "incomplete", "content_filter"}
)
"""Finish reasons of an answer that stopped without an end-of-turn token."""

Verdict = Literal["same", "prompt", "answer"]
"""Of one prompt: the counts agree, the prompt's differ (whatever the answer's do), or the answer's alone."""

PROMPT_TOLERANCE: Final = 0
"""Tokens by which a prompt's counts may differ: a true replay of it has the very tokens of the server."""
ANSWER_TOLERANCE: Final = 0.02
"""A text may be split into tokens otherwise than the model said it, so counts of a true replay of the
answer differ by one or two in a hundred."""
ANSWER_LEAST: Final = 2
"""Tokens by which any answer's counts may differ, however short it is."""
CONSTANT_SHARE: Final = 0.9
"""Share of the differing prompts from which on one difference is called constant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    """Replayed minus served tokens, of the prompt and of the answer; None where a side is not known.

    The allowances are the largest differences that are tolerated.
    """

    prompt_difference: int | None
    answer_difference: int | None
    prompt_allowance: int = PROMPT_TOLERANCE
    answer_allowance: int = ANSWER_LEAST

    @property
    def verdict(self) -> Verdict:
        if abs(self.prompt_difference or 0) > self.prompt_allowance:
            return "prompt"
        return "answer" if abs(self.answer_difference or 0) > self.answer_allowance else "same"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mismatch:
    """One kind of difference in a window: of its ``n`` prompts, ``usual_n`` differ by ``usual`` tokens."""

    verdict: Literal["prompt", "answer"]
    n: int
    usual: int
    """The most frequent difference, replayed minus served."""
    usual_n: int

    @property
    def constant(self) -> bool:
        """Nearly all differ by the same number of tokens."""
        return self.usual_n >= CONSTANT_SHARE * self.n


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """The prompts of a window whose records carry the server's counts; the commonest mismatch first."""

    n: int
    mismatches: Sequence[Mismatch] = ()

    @property
    def differing(self) -> int:
        return sum(mismatch.n for mismatch in self.mismatches)

    @property
    def share(self) -> float:
        """Of the prompts that were compared, those that differ; 0 of none."""
        return self.differing / self.n if self.n else 0.0


def counted(prompt: Prompt, *, prompt_tokens: int, answer_tokens: int | None) -> ServedCounts:
    """Tokens of a whole replay as a server counts them; None: not the whole answer was replayed.

    A server's completion counts reasoning, calls and the token that ends the turn, which stands in no
    log and is not replayed: one more, unless the finish reason says that the answer was cut short.
    """
    if not prompt.answered or answer_tokens is None:
        return ServedCounts(prompt_tokens=prompt_tokens)
    return ServedCounts(
        prompt_tokens=prompt_tokens,
        completion_tokens=answer_tokens + (not was_cut_short(prompt)),
    )


def was_cut_short(prompt: Prompt) -> bool:
    """The record says that the answer ended at a limit."""
    return prompt.sampling is not None and prompt.sampling.finish_reason in CUT_SHORT


def fidelity(
    prompt: Prompt,
    counts: ServedCounts,
    *,
    prompt_tolerance: int = PROMPT_TOLERANCE,
    answer_tolerance: float = ANSWER_TOLERANCE,
) -> Fidelity | None:
    """``counts`` of the replay against those that ``prompt`` was served with; None where nothing compares.

    ``prompt_tolerance`` is in tokens, ``answer_tolerance`` a share of the served ones (at least
    `ANSWER_LEAST` tokens). An exchange with images or audio does not compare: a server counts tokens for
    them, and they are not replayed.
    """
    served = prompt.served
    if served is None or prompt.media_left_out:
        return None
    asked = _difference(counts.prompt_tokens, served.prompt_tokens)
    said = _difference(counts.completion_tokens, served.completion_tokens)
    if asked is None and said is None:
        return None
    allowed = round(answer_tolerance * (served.completion_tokens or 0))
    return Fidelity(
        prompt_difference=asked,
        answer_difference=said,
        prompt_allowance=prompt_tolerance,
        answer_allowance=max(ANSWER_LEAST, allowed),
    )


def _difference(replayed: int | None, served: int | None) -> int | None:
    return None if replayed is None or served is None else replayed - served
