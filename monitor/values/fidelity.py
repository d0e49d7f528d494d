"""Is what was replayed what the server ran? The replay's token counts against the server's own."""

from __future__ import annotations

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

COMPLETION_SLACK: Final = 0.02
"""A text may be split into tokens otherwise than the model said it, so counts of a true replay of the
answer differ by one or two in a hundred; a prompt's do not differ at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    """Replayed minus served tokens, of the prompt and of the answer; None where a side is not known."""

    prompt_difference: int | None
    completion_difference: int | None
    completion_allowance: int
    """Largest difference of the answer that is put down to another split of the same text."""

    @property
    def differs(self) -> bool:
        """The replay is not what the server ran."""
        return bool(self.prompt_difference) or (
            self.completion_difference is not None
            and abs(self.completion_difference) > self.completion_allowance
        )


def counted(prompt: Prompt, *, prompt_tokens: int, answer_tokens: int) -> ServedCounts:
    """Tokens of a whole replay as a server counts them.

    A server's completion counts reasoning, calls and the token that ends the turn, which stands in no
    log and is not replayed: one more, unless the finish reason says that the answer was cut short.
    """
    if not prompt.answered:
        return ServedCounts(prompt_tokens=prompt_tokens)
    return ServedCounts(
        prompt_tokens=prompt_tokens,
        completion_tokens=answer_tokens + (not was_cut_short(prompt)),
    )


def was_cut_short(prompt: Prompt) -> bool:
    """The record says that the answer ended at a limit."""
    return prompt.sampling is not None and prompt.sampling.finish_reason in CUT_SHORT


def fidelity(prompt: Prompt, counts: ServedCounts) -> Fidelity | None:
    """``counts`` of the replay against those that ``prompt`` was served with; None where nothing compares."""
    served = prompt.served
    if served is None:
        return None
    asked = _difference(counts.prompt_tokens, served.prompt_tokens)
    said = _difference(counts.completion_tokens, served.completion_tokens)
    if asked is None and said is None:
        return None
    return Fidelity(
        prompt_difference=asked,
        completion_difference=said,
        completion_allowance=max(2, round(COMPLETION_SLACK * (served.completion_tokens or 0))),
    )


def _difference(replayed: int | None, served: int | None) -> int | None:
    return None if replayed is None or served is None else replayed - served
