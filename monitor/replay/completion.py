"""The served answer as the model wrote it behind the prompt: reasoning, text and calls, in the template's form.

What a log holds of an answer was taken apart by the server's parsers. It is put together again by the
template: an answered conversation, less the same conversation with its generation prompt. The end of the
turn is left out, for features read what was said.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from monitor.replay.provenance import Span
from monitor.replay.reasoning import (
    CHANNEL,
    CHANNELS,
    KNOWN,
    THINK,
    Tags,
    bare_channels,
    opened_by,
    split,
)
from monitor.replay.rendering import ChatTemplate, Rendered
from monitor.replay.request import Request, valid
from monitor.values.fidelity import was_cut_short
from monitor.values.prompts import Prompt, ToolCall

Kind = Literal["markup", "reasoning", "content", "calls"]
_ENDS_REASONING: Final = re.compile(
    r"\s*(?:" + "|".join(re.escape(tags.closing) for tags in KNOWN) + r"|<\|end\|>)\s*"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """Text behind the prompt. Characters before ``begins`` are the model's reasoning, with its markup.

    ``contents`` are the spans that count as said, ``spelled`` those in which special tokens are letters.
    ``stand_ins`` names the parts that the template has no form for.
    """

    text: str = ""
    contents: tuple[Span, ...] = ()
    spelled: tuple[Span, ...] = ()
    begins: int = 0
    stand_ins: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Form:
    """The template's own text around the parts of an answer."""

    lead: str = ""
    between: str = ""
    """Behind the reasoning."""
    calls: str = ""
    spelled: tuple[Span, ...] = ()
    """Spans of ``calls``."""
    shows_reasoning: bool = False


def completed(
    prompt: Prompt,
    rendered: Rendered,
    template: ChatTemplate,
    vocabulary: frozenset[str],
    *,
    with_reasoning: bool,
) -> Completion:
    """The answer of ``prompt`` behind ``rendered``; ``vocabulary`` holds the model's added tokens.

    ``with_reasoning``: reasoning that was logged apart stands where the model wrote it; otherwise it is
    left out.
    """
    said = valid(prompt.response or "")
    thought = valid(prompt.reasoning or "") if with_reasoning else ""
    opened = opened_by(rendered.text)
    if not thought and not prompt.tool_calls:
        found = split(said, opened, vocabulary)
        if found is not None:
            spans = tuple(span for span in (found.reasoning, found.answer) if span[0] < span[1])
            return Completion(text=said, contents=spans, spelled=spans, begins=found.answer[0])
        if not said:
            return Completion()
        # What a completion's text says is all that the model wrote; a chat's parser may have taken the
        # reasoning away, unless the answer ended in it.
        unfinished = rendered.request is None or was_cut_short(prompt)
        if opened and unfinished and prompt.reasoning is None:
            whole = ((0, len(said)),)
            return Completion(text=said, contents=whole, spelled=whole, begins=len(said))
        if CHANNEL in vocabulary:
            thought, said = bare_channels(said) or ("", said)
    return _assembled(prompt, thought, said, rendered.request, template, opened, vocabulary)


def _assembled(
    prompt: Prompt,
    thought: str,
    said: str,
    request: Request | None,
    template: ChatTemplate,
    opened: Tags | None,
    vocabulary: frozenset[str],
) -> Completion:
    form, stand_ins = _form(template, request, thought, said, prompt.tool_calls)
    lead, between = form.lead, form.between
    if thought and not form.shows_reasoning:
        tags = opened or _tags(template, vocabulary)
        if tags is None:
            tags = THINK
            stand_ins = ("reasoning", *stand_ins)
        lead = "" if opened else tags.head
        between = tags.tail if said or prompt.tool_calls else ""
        between += form.lead if form.lead.strip() else ""
    elif not thought and opened and opened.closing not in lead:
        lead = opened.tail
    elif not lead.strip():
        # White space in front of an answer is the model's own, and part of the text that was logged.
        lead = ""
    calls = form.calls
    if "tool_calls" in stand_ins:
        calls = "\n" * bool(said) + "\n".join(_as_json(call) for call in prompt.tool_calls)
    segments: list[tuple[Kind, str]] = [
        ("markup", lead),
        ("reasoning", thought),
        ("markup", between if thought else ""),
        ("content", said),
        ("calls", calls),
    ]
    spelled = ((0, len(calls)),) if "tool_calls" in stand_ins else form.spelled
    return _joined(segments, spelled, stand_ins, reasoned=bool(thought))


def _tags(template: ChatTemplate, vocabulary: frozenset[str]) -> Tags | None:
    """The tags that this model knows."""
    if CHANNEL in vocabulary:
        return CHANNELS
    return next((t for t in KNOWN if t.opening in vocabulary or t.opening in template.text), None)


def _form(
    template: ChatTemplate,
    request: Request | None,
    thought: str,
    said: str,
    calls: Sequence[ToolCall],
) -> tuple[_Form, tuple[str, ...]]:
    """The form of an answer, and which of its parts the template does not show."""
    missing = ("tool_calls",) if calls else ()
    if request is None:
        return _Form(), missing
    # Some templates leave out the text of an answer that calls a tool, or the calls, or refuse both.
    for content, called in ((bool(said), calls), (False, calls), (bool(said), ())):
        found = _shown(template, request, bool(thought), content, called)
        if found is not None:
            return found, () if called else missing
    return _Form(), missing


def _shown(
    template: ChatTemplate,
    request: Request,
    reasoning: bool,
    content: bool,
    calls: Sequence[ToolCall],
) -> _Form | None:
    """The template's form for these parts; None where it does not show content or calls."""
    tail = template.tail(request, reasoning=reasoning, content=content, calls=calls)
    if tail is None:
        return None
    pieces, order = tail.fence.pieces(tail.text)
    known = [1] * content
    if order not in (known, [0, *known]):
        return None
    shows_reasoning = 0 in order
    lead, rest = pieces[0], pieces[1:]
    between = ""
    if shows_reasoning and content:
        between, rest = rest[0], rest[1:]
    ending = rest[0] if rest else ""
    if shows_reasoning and not content and calls:
        closing = _ENDS_REASONING.match(ending)
        between = closing[0] if closing else ""
        ending = ending[len(between) :]
    if not calls:
        return _Form(lead=lead, between=between, shows_reasoning=shows_reasoning)
    if not order:
        lead, ending = "", lead
    text, spelled = tail.spellings.unfenced(_without_end(ending, template, request))
    if any(call.name not in text for call in calls):
        return None
    return _Form(
        lead=lead, between=between, calls=text, spelled=spelled, shows_reasoning=shows_reasoning
    )


def _without_end(text: str, template: ChatTemplate, request: Request) -> str:
    """``text`` without the end of the turn: that of a plain answer, or one special token."""
    ending = template.ending(request)
    if ending and text.endswith(ending):
        return text.removesuffix(ending)
    bare = text.rstrip()
    last = max((found.span() for found in template.spellings.finditer(bare)), default=(0, 0))
    return bare[: last[0]].rstrip("\n") if last[1] == len(bare) else bare


def _joined(
    segments: Iterable[tuple[Kind, str]],
    spelled: tuple[Span, ...],
    stand_ins: tuple[str, ...],
    *,
    reasoned: bool,
) -> Completion:
    """Segments one behind the other; white space that both sides of a markup's border have stands once."""
    text = ""
    before: Kind = "markup"
    begins: int | None = None
    contents: list[Span] = []
    letters: list[Span] = []
    for kind, segment in segments:
        if not segment:
            continue
        start = len(text)
        text += segment[_overlap(text, segment) if "markup" in (kind, before) else 0 :]
        before = kind
        if kind != "markup":
            contents.append((start, len(text)))
        if kind in ("reasoning", "content"):
            letters.append((start, len(text)))
        if kind == "calls":
            letters += [(start + a, start + b) for a, b in spelled]
        if kind in ("content", "calls") and begins is None:
            begins = start
    return Completion(
        text=text,
        contents=tuple(contents),
        spelled=tuple(letters),
        begins=(len(text) if begins is None else begins) if reasoned else 0,
        stand_ins=stand_ins,
    )


def _overlap(text: str, segment: str) -> int:
    """Length of the longest white space that ends ``text`` and begins ``segment``."""
    blank = len(segment) - len(segment.lstrip())
    return next((n for n in range(blank, 0, -1) if text.endswith(segment[:n])), 0)


def _as_json(call: ToolCall) -> str:
    """``{"name": "get_weather", "arguments": {"city": "Oslo"}}``, the arguments as they were logged."""
    name = json.dumps(valid(call.name), ensure_ascii=False)
    return f'{{"name": {name}, "arguments": {valid(call.arguments) or "{}"}}}'
