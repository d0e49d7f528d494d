"""Where a model's reasoning ends and its answer begins, by the markup that it writes around reasoning.

Layouts as the model families document them: a pair of tags in front of the answer, or gpt-oss's channels.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

Span = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tags:
    """The pair around reasoning, and the whitespace that goes with it as the models write it."""

    opening: str
    closing: str
    inside: str = "\n"
    behind: str = "\n\n"

    @property
    def head(self) -> str:
        return self.opening + self.inside

    @property
    def tail(self) -> str:
        return self.inside + self.closing + self.behind


THINK: Final = Tags(opening="<think>", closing="</think>")
KNOWN: Final = (
    THINK,
    Tags(opening="[THINK]", closing="[/THINK]", inside="", behind=""),
    Tags(opening="<seed:think>", closing="</seed:think>", behind=""),
    Tags(opening="◁think▷", closing="◁/think▷", inside="", behind=""),
    Tags(opening="<|channel>thought", closing="<channel|>", behind=""),
)
CHANNEL: Final = "<|channel|>"
"""gpt-oss's special token in front of each part of an answer."""
CHANNELS: Final = Tags(
    opening="<|channel|>analysis<|message|>",
    closing="<|end|>",
    inside="",
    behind="<|start|>assistant<|channel|>final<|message|>",
)

_MARKUP_AT_END: Final = re.compile(
    "(?:(?:"
    + "|".join(re.escape(tag) for pair in KNOWN for tag in (pair.opening, pair.closing))
    + r")\s*)+\Z"
)
_CHANNELS: Final = re.compile(
    r"\s*<\|channel\|>analysis<\|message\|>(?P<reasoning>.*?)<\|end\|>(?:<\|start\|>assistant)?"
    r"<\|channel\|>final<\|message\|>(?P<answer>.*?)(?:<\|return\|>|<\|end\|>)?\s*",
    re.DOTALL,
)
_BARE_CHANNELS: Final = re.compile(
    r"analysis(?P<reasoning>.*?)assistantfinal(?P<answer>.*)", re.DOTALL
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Spans of an answer's text, in characters; what lies outside of both is markup."""

    reasoning: Span
    answer: Span


def opened_by(prompt_text: str) -> Tags | None:
    """The tags that stand open at the end of a prompt: the model goes on with its reasoning."""
    end = prompt_text.rstrip()
    return next((tags for tags in KNOWN if end.endswith(tags.opening)), None)


def without_markup(text: str) -> str:
    """``text`` without the tags of reasoning, open or closed, at its end."""
    return _MARKUP_AT_END.sub("", text)


def split(text: str, opened: Tags | None, vocabulary: frozenset[str]) -> Split | None:
    """Reasoning and answer of ``text``, the model's words behind the prompt; None where it shows no markup.

    ``opened`` are tags that the prompt left open. A closing tag without an opening one counts where the
    prompt opened it, or where it is one token of the model (in ``vocabulary``). Reasoning that is not
    closed goes to the end: the answer is empty.
    """
    if CHANNEL in vocabulary and (found := _CHANNELS.fullmatch(text)):
        return Split(reasoning=found.span("reasoning"), answer=found.span("answer"))
    first = len(text) - len(text.lstrip())
    for tags in KNOWN:
        if text.startswith(tags.opening, first):
            return _closed(text, first + len(tags.opening), tags) or Split(
                reasoning=(first + len(tags.opening), len(text)), answer=(len(text), len(text))
            )
    for tags in (opened,) if opened else KNOWN:
        if opened or tags.closing in vocabulary:
            closed = _closed(text, 0, tags)
            if closed:
                return closed
    return None


def bare_channels(text: str) -> tuple[str, str] | None:
    """(reasoning, answer) of a gpt-oss answer whose special tokens were left out when it was logged."""
    found = _BARE_CHANNELS.fullmatch(text)
    return (found["reasoning"], found["answer"]) if found else None


def _closed(text: str, start: int, tags: Tags) -> Split | None:
    stop = text.find(tags.closing, start)
    if stop < 0:
        return None
    answer = stop + len(tags.closing)
    answer += len(text[answer:]) - len(text[answer:].lstrip())
    return Split(reasoning=(start, stop), answer=(answer, len(text)))
