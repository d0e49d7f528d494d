"""A chat request through the model's template, as a server passes it: text, and whose words it holds.

Messages, calls, tools and documents reach the template as structures, options as variables. The same
request gives the same text as `apply_chat_template`, which vLLM calls with it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from monitor.replay.bounded import Overrun, Raised, render
from monitor.replay.checkpoint import template_of
from monitor.replay.provenance import Fence, Span, located, rewritten, values_rewritten
from monitor.replay.reasoning import without_markup
from monitor.replay.request import (
    Request,
    as_given,
    as_json,
    call_forms,
    fenced_request,
    forms,
    marked_request,
    thought,
    valid,
)
from monitor.values.prompts import Prompt, ToolCall, plain

PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}:\n{{ message['content'] }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:\n{% endif %}"
)
"""What stands in for the chat template of a model that has none."""

ROLE = re.compile(r"[A-Za-z0-9_-]{1,32}")
SHAPES_KEPT: Final = 8_000_000
"""Characters of templates' own text that are remembered, tools and options included."""
_NOT_THE_TEMPLATES: Final = frozenset(
    {
        *(
            "conversation",
            "messages",
            "tools",
            "chat_template",
            "tokenize",
            "padding",
            "truncation",
        ),
        *("max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask"),
        *("tokenizer_kwargs", "sanitize_control_tokens", "add_special_tokens"),
        *("add_generation_prompt", "continue_final_message"),
    }
)
"""Options that steer the rendering; they are no variables of a template."""
_RAISED = re.compile(r"raise_exception\((.*?)\)\s*[-+]?[%}]\}", re.DOTALL)
_LITERAL = re.compile(r"""'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)\"""", re.DOTALL)


class TemplateRefused(Exception):
    """The template does not take this request. Never leaves `monitor.replay.tokens`; holds no content."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """Text to tokenise. ``contents`` are the spans that the request brought; ``spelled`` are special
    tokens that it spelled in letters, which stay letters; None: all in ``contents``."""

    text: str
    contents: tuple[Span, ...]
    spelled: tuple[Span, ...] | None = None
    bos: bool = False
    request: Request | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tail:
    """What the template writes behind the generation prompt for an answer whose parts are marks, to the
    end of the turn.

    ``spellings`` fences special tokens that the answer's calls spell.
    """

    text: str
    fence: Fence
    spellings: Fence


class ChatTemplate:
    """The chat template of one model; ``options`` are the server's defaults for its variables."""

    def __init__(
        self,
        tokenizer: Any,
        options: Mapping[str, Any],
        specials: Iterable[str],
        *,
        exclude_forbidden_tools: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._exclude_forbidden_tools = exclude_forbidden_tools
        self._options = plain(options)
        self.text = template_of(tokenizer)
        longest_first = sorted(specials, key=len, reverse=True)
        self.spellings = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._shapes: dict[bytes, str] = {}
        self._kept = 0
        self._in_parts = bool(self.text) and self._shows_parts_alone()

    def rendered(self, prompt: Prompt) -> Rendered:
        """The prompt of a chat, with its generation prompt. Raises `TemplateRefused`."""
        request, text = self._accepted(self._request(prompt))
        contents: list[str] = []
        fence = Fence.absent_from(as_json(request))
        marked = marked_request(request, lambda content: _kept(content, contents, fence))
        try:
            pieces, order = fence.pieces(self._shape(marked))
            spans = located(text, pieces, order, contents)
        except TemplateRefused:
            spans = ()
        return Rendered(
            text=text,
            contents=spans,
            spelled=self._spelled(request, text),
            bos=not self.text or bool(prompt.template_options.get("add_special_tokens")),
            request=request,
        )

    def tail(
        self, request: Request, *, reasoning: bool, content: bool, calls: Sequence[ToolCall]
    ) -> Tail | None:
        """What stands behind the prompt when the answer has these parts; None where the template does
        not write an answered turn behind its own generation prompt.

        Mark 0 is the reasoning, mark 1 the content.
        """
        if not (request.generation_prompt or request.continues):
            return None
        for given in call_forms(calls):
            known = as_json(request) + json.dumps(given, ensure_ascii=False)
            fence = Fence.absent_from(known)
            spellings = Fence.absent_from(known + fence.left + fence.right)
            whole: list[str] = []
            # Marks of the answer come first, so that those of the request never clash with them.
            marked = marked_request(request, lambda text: _kept(text, whole, fence, 2))  # noqa: B023
            answer: dict[str, Any] = {"content": fence.mark(1) if content else ""}
            if reasoning:
                answer |= thought(fence.mark(0))
            if given:
                answer["tool_calls"] = rewritten(given, spellings.around(self.spellings))
            try:
                before = self._shape(marked)
                behind = self._shape(marked.answered(answer), keep=not given)
            except TemplateRefused:
                continue
            return _behind(before, behind, fence, spellings)
        return None

    def ending(self, request: Request) -> str:
        """What the template sets behind the content of an answer; empty where it cannot be told."""
        tail = self.tail(request, reasoning=False, content=True, calls=())
        return tail.text.rpartition(tail.fence.mark(1))[2] if tail else ""

    def _request(self, prompt: Prompt) -> Request:
        if any(not ROLE.fullmatch(message.role) for message in prompt.messages):
            raise TemplateRefused("a role may hold letters, digits, _ and - only")
        if "chat_template" in prompt.template_options:
            raise TemplateRefused(
                "the request brought a chat template of its own, and templates from records are not run"
            )
        options = self._options | values_rewritten(prompt.template_options, valid)
        continues = prompt.continues or bool(options.get("continue_final_message"))
        documents = options.pop("documents", None)
        excluded = prompt.tools_forbidden and self._exclude_forbidden_tools
        return Request(
            messages=[as_given(message) for message in prompt.messages],
            tools=[] if excluded else rewritten(prompt.tools, valid),
            documents=documents or None,
            generation_prompt=bool(options.get("add_generation_prompt", True)) and not continues,
            continues=continues,
            options={k: v for k, v in options.items() if k not in _NOT_THE_TEMPLATES},
        )

    def _accepted(self, request: Request) -> tuple[Request, str]:
        """The first form of ``request`` that the template takes, and its text."""
        refusal: TemplateRefused | None = None
        for form in forms(request):
            try:
                return form, self._applied(form)
            except TemplateRefused as refused:
                refusal = refusal or refused
        assert refusal is not None
        raise refusal

    def _applied(self, request: Request) -> str:
        messages = request.messages
        if self._in_parts:
            messages = [m | {"content": [{"type": "text", "text": m["content"]}]} for m in messages]
        arguments = {
            "conversation": messages,
            "tools": request.tools or None,
            "documents": request.documents,
            "add_generation_prompt": request.generation_prompt,
            "continue_final_message": request.continues,
            **request.options,
        }
        try:
            return render(self._tokenizer, None if self.text else PLAIN_TEMPLATE, arguments)
        except Overrun as overrun:
            raise TemplateRefused(str(overrun)) from None
        except Raised as raised:
            # A template is a program from the model's folder and raises what it likes.
            raise TemplateRefused(self._told(raised)) from None

    def _told(self, raised: Raised) -> str:
        """Why the template refuses: its own sentence where it raised one, without what it was given."""
        sentence = raised.says
        literals = {
            re.sub(r"\\(.)", r"\1", single or double)
            for raised in _RAISED.findall(self.text)
            for single, double in _LITERAL.findall(raised)
        }
        own = sorted((text for text in literals if text.strip()), key=len, reverse=True)
        parts = re.split("(" + "|".join(map(re.escape, own)) + ")", sentence) if own else []
        if len(parts) < 2:
            return f"the chat template raised {raised.kind}"
        quoted = "".join(
            part if place % 2 else "…" * bool(part) for place, part in enumerate(parts)
        )
        return f"the chat template says: {quoted[:200]}"

    def _shape(self, request: Request, *, keep: bool = True) -> str:
        """The text of a marked request, kept by its shape."""
        key = hashlib.blake2b(as_json(request).encode("utf-8", "replace"), digest_size=16).digest()
        known = self._shapes.get(key)
        if known is None:
            known = self._applied(request)
            if keep:
                self._kept += len(known)
                if self._kept > SHAPES_KEPT:
                    self._shapes.clear()
                    self._kept = len(known)
                self._shapes[key] = known
        return known

    def _spelled(self, request: Request, text: str) -> tuple[Span, ...] | None:
        """Spans of ``text`` where the request spelled a special token; None where it cannot be told."""
        known = as_json(request)
        if not self.spellings.search(known):
            return ()
        fence = Fence.absent_from(known)
        try:
            unfenced, spans = fence.unfenced(
                self._applied(fenced_request(request, fence.around(self.spellings)))
            )
        except TemplateRefused:
            return None
        return spans if unfenced == text else None

    def _shows_parts_alone(self) -> bool:
        """The template prints a content given as a list of parts, and not one given as text."""
        probe = Fence.absent_from(self.text).mark(0)
        shown = []
        for in_parts in (False, True):
            self._in_parts = in_parts
            try:
                shown.append(
                    probe in self._applied(Request(messages=[{"role": "user", "content": probe}]))
                )
            except TemplateRefused:
                shown.append(False)
        return shown == [False, True]


def _kept(content: str, contents: list[str], fence: Fence, first: int = 0) -> str:
    """The mark of a content, which is added to ``contents``; an empty one stays empty."""
    if not content:
        return ""
    contents.append(content)
    return fence.mark(first + len(contents) - 1)


def _behind(before: str, behind: str, fence: Fence, spellings: Fence) -> Tail | None:
    """What follows the prompt, or the prompt without the reasoning that its end opens or leaves out."""
    for start in (before, without_markup(before)):
        if behind.startswith(start):
            return Tail(text=behind[len(start) :], fence=fence, spellings=spellings)
    return None
