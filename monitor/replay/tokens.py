"""From a prompt to token ids, and which of them each region holds.

The prompt is rendered with the model's chat template, as a server would, and tokenised once without
adding a second BOS. Every character of a message's content is known to come from there: text that
spells a special token is split as plain text, so content cannot forge a turn. The answer is tokenised
apart and appended behind the generation prompt, where the model wrote it.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from tokenizers import Encoding, Tokenizer

from monitor.replay.completion import Completion, completed
from monitor.replay.model import LoadedModel, positions_limit
from monitor.replay.provenance import Span
from monitor.replay.readback import ReadBack
from monitor.replay.reasoning import opened_by, split
from monitor.replay.regions import Run, Tokens, joined
from monitor.replay.rendering import ChatTemplate, Rendered, TemplateRefused
from monitor.replay.request import valid
from monitor.settings import ReplaySettings
from monitor.values.fidelity import Rendering
from monitor.values.prompts import DeadReason, Prompt
from monitor.values.scores import Unreplayable

_ANCHOR = "\n"
"""What a text stands behind where it goes on mid-line: some tokenizers add a blank to a beginning."""
_OPENING = 16
"""Tokens from the end of a prompt in which reasoning may have been opened."""


@dataclass(frozen=True, slots=True)
class _Head:
    """A prompt that is ready to be tokenised, or is tokens already."""

    rendered: Rendered
    rendering: Rendering
    ids: tuple[int, ...] | None = None


@dataclass(slots=True)
class Tokeniser:
    """Tokenises prompts for one model. Several threads take turns in `tokenise`.

    ``limit`` is the longest replay in tokens, ``template_options`` the server's defaults for variables
    of the chat template. ``replay_reasoning``: reasoning logged apart stands where the model wrote it.
    ``exclude_forbidden_tools``: the template is not given tools that the request forbade to call.
    """

    tokenizer: Any
    limit: int
    mask_special_tokens: bool = True
    mask_template: bool = True
    replay_reasoning: bool = True
    template_options: Mapping[str, Any] = field(default_factory=dict)
    exclude_forbidden_tools: bool = False
    _backend: Tokenizer = field(init=False)
    _literal: Tokenizer = field(init=False)
    _specials: frozenset[int] = field(init=False)
    _vocabulary: frozenset[str] = field(init=False)
    _size: int = field(init=False)
    _bos: tuple[int, ...] = field(init=False)
    _bos_text: str = field(init=False)
    _adds_blank: bool = field(init=False)
    _template: ChatTemplate = field(init=False)
    _read_back: ReadBack | None = field(init=False, default=None)
    _turns: threading.Lock = field(init=False, default_factory=threading.Lock)

    def __post_init__(self) -> None:
        # Copies of our own: no truncation or padding set elsewhere, no post-processor that trims
        # offsets or adds tokens.
        parts = json.loads(self.tokenizer.backend_tokenizer.to_str())
        parts |= {"truncation": None, "padding": None, "post_processor": None}
        self._backend = Tokenizer.from_str(json.dumps(parts))
        self._literal = Tokenizer.from_str(json.dumps(parts))
        self._literal.encode_special_tokens = True
        added = self._backend.get_added_tokens_decoder()
        self._vocabulary = frozenset(token.content for token in added.values())
        self._specials = frozenset(
            index for index, token in added.items() if token.special
        ) | frozenset(self.tokenizer.all_special_ids)
        self._size = len(self.tokenizer)
        bos = self.tokenizer.bos_token_id
        begun = self.tokenizer("")["input_ids"]
        self._bos = (bos,) if bos is not None and begun[:1] == [bos] else ()
        self._bos_text = self.tokenizer.bos_token or ""
        self._adds_blank = self._ids("a") != self._behind_anchor("a")
        spelled = [self._backend.id_to_token(index) for index in self._specials]
        self._template = ChatTemplate(
            self.tokenizer,
            self.template_options,
            [text for text in spelled if text],
            exclude_forbidden_tools=self.exclude_forbidden_tools,
        )

    def tokenise(self, prompts: Sequence[Prompt]) -> list[Tokens | Unreplayable]:
        """Tokens of each prompt, in order; `Unreplayable` where the template refuses or nothing is left."""
        with self._turns:
            return self._tokenised(prompts)

    def _tokenised(self, prompts: Sequence[Prompt]) -> list[Tokens | Unreplayable]:
        ready = [self._ready(prompt) for prompt in prompts]
        heads, answers = [head for head, _ in ready], [answer for _, answer in ready]
        texts = [h.rendered.text if isinstance(h, _Head) and not h.ids else "" for h in heads]
        encodings = self._backend.encode_batch(
            [*texts, *(answer.text for answer in answers)], add_special_tokens=False
        )
        results: list[Tokens | Unreplayable] = []
        for index, (prompt, head, answer) in enumerate(zip(prompts, heads, answers, strict=True)):
            if isinstance(head, Unreplayable):
                results.append(head)
                continue
            asked = self._asked(prompt, head, encodings[index])
            thought, said = self._answered(answer, head, encodings[len(texts) + index])
            if not asked[0] and not thought[0] and not said[0]:
                results.append(Unreplayable(prompt=prompt, reason=DeadReason.NO_TOKENS))
                continue
            results.append(
                replace(
                    joined(asked, thought, said, self.limit),
                    rendering=head.rendering,
                    stand_ins=answer.stand_ins,
                )
            )
        return results

    def with_answer(self, tokens: Tokens, answer: Sequence[int]) -> Tokens:
        """``tokens`` (of a prompt alone) followed by the ids of an answer the model gave itself."""
        readable = [not (self.mask_special_tokens and index in self._specials) for index in answer]
        opening = tokens.ids[max(0, tokens.prompt_tokens - _OPENING) : tokens.prompt_tokens]
        text = self._backend.decode(list(answer), skip_special_tokens=False)
        found = split(
            text,
            opened_by(self._backend.decode(list(opening), skip_special_tokens=False)),
            self._vocabulary,
        )
        begins = 0
        if found is not None:
            # Decoding from the start gives the text up to each token, whatever the tokenizer.
            while begins < len(answer) and (
                len(self._backend.decode(list(answer[: begins + 1]), skip_special_tokens=False))
                <= found.answer[0]
            ):
                begins += 1
        return replace(
            tokens,
            ids=(*tokens.ids, *answer),
            reasoning_tokens=begins,
            response_tokens=len(answer) - begins,
            readable=np.array([*tokens.readable, *readable], dtype=np.bool_),
        )

    def spoken(self, answer: Sequence[int]) -> str:
        """The text of an answer's ids as a server logs it: no special tokens, and no half of a letter."""
        text: str = self._backend.decode(list(answer), skip_special_tokens=True)
        return text.rstrip("\N{REPLACEMENT CHARACTER}")

    def shortened(self, tokens: Tokens, limit: int) -> Tokens:
        """``tokens`` cut to ``limit``: leave room for an answer still to come."""
        shorter = joined(*tokens.runs(), limit)
        if not shorter.cut:
            return tokens
        return replace(
            shorter,
            whole_prompt=tokens.whole_prompt,
            whole_answer=tokens.whole_answer,
            rendering=tokens.rendering,
            stand_ins=tokens.stand_ins,
        )

    def _ready(self, prompt: Prompt) -> tuple[_Head | Unreplayable, Completion]:
        try:
            head = self._head(prompt)
            if isinstance(head, Unreplayable):
                return head, Completion()
            answer = completed(
                prompt,
                head.rendered,
                self._template,
                self._vocabulary,
                with_reasoning=self.replay_reasoning,
            )
        except RecursionError:
            # Arguments are JSON inside a text, which no reader has measured.
            refused = Unreplayable(
                prompt=prompt,
                reason=DeadReason.TEMPLATE_REFUSED,
                detail="the arguments of a call are nested too deeply",
            )
            return refused, Completion()
        return head, answer

    def _head(self, prompt: Prompt) -> _Head | Unreplayable:
        if prompt.token_ids is not None:
            return self._logged(prompt, prompt.token_ids)
        if prompt.text is not None:
            return self._raw(prompt, valid(prompt.text))
        try:
            return _Head(self._template.rendered(prompt), "chat")
        except TemplateRefused as refused:
            return Unreplayable(
                prompt=prompt, reason=DeadReason.TEMPLATE_REFUSED, detail=str(refused)
            )

    def _raw(self, prompt: Prompt, text: str) -> _Head:
        """A raw text. Its special tokens are tokens only where the record, or the template itself, says so."""
        whole = ((0, len(text)),)
        if not self._template.spellings.search(text):
            return _Head(Rendered(text=text, contents=whole, bos=True), "text")
        chat = self._chat_in(prompt, text)
        if chat is not None:
            return _Head(chat, "rendered_text" if prompt.special_tokens else "parsed_text")
        if prompt.special_tokens:
            bos = not (self._bos_text and text.startswith(self._bos_text))
            return _Head(Rendered(text=text, contents=whole, spelled=(), bos=bos), "rendered_text")
        return _Head(Rendered(text=text, contents=whole, bos=True), "text")

    def _logged(self, prompt: Prompt, ids: Sequence[int]) -> _Head | Unreplayable:
        if any(not 0 <= index < self._size for index in ids):
            return Unreplayable(
                prompt=prompt,
                reason=DeadReason.INVALID_FIELD,
                detail=f"token_ids: expected ids of the model's {self._size} tokens",
            )
        text = self._backend.decode(list(ids), skip_special_tokens=False)
        chat = self._chat_in(prompt, text)
        if chat is None or self._ids(chat.text) != list(ids):
            chat = Rendered(text=text, contents=((0, len(text)),), spelled=())
        return _Head(chat, "token_ids", tuple(ids))

    def _chat_in(self, prompt: Prompt, text: str) -> Rendered | None:
        if self._read_back is None:
            self._read_back = ReadBack(self._template, prompt, self._bos_text)
        chat = self._read_back.chat(text)
        # What answers a raw prompt is raw too: no template stands around it.
        return replace(chat, request=None) if chat else None

    def _asked(self, prompt: Prompt, head: _Head, encoding: Encoding) -> Run:
        """The prompt's tokens, BOS included."""
        one = head.rendered
        if head.ids is not None:
            return self._as_logged(head.ids, one)
        ids, readable = self._classified(encoding, one.text, one.contents, one.spelled)
        bos = one.bos
        if head.rendering in ("rendered_text", "parsed_text") and prompt.served and not bos:
            # A server adds its BOS to a completion's text, also in front of one that stands there.
            bos = prompt.served.prompt_tokens == len(ids) + len(self._bos)
        if bos and ids:
            ids = [*self._bos, *ids]
            readable = [not self.mask_special_tokens] * len(self._bos) + readable
        return ids, readable

    def _as_logged(self, ids: tuple[int, ...], one: Rendered) -> Run:
        if self._ids(one.text) == list(ids):
            encoding = self._backend.encode(one.text, add_special_tokens=False)
            return self._classified(encoding, one.text, one.contents, ())
        return ids, [not (self.mask_special_tokens and index in self._specials) for index in ids]

    def _answered(self, answer: Completion, head: _Head, encoding: Encoding) -> tuple[Run, Run]:
        """Tokens of reasoning and response."""
        request = head.rendered.request
        shift = 0
        if self._adds_blank and answer.text and (request is None or request.continues):
            anchored = self._backend.encode(_ANCHOR + answer.text, add_special_tokens=False)
            if all(stop <= 1 or start >= 1 for start, stop in anchored.offsets):
                encoding, shift = anchored, len(_ANCHOR)
        reasoning = 0
        ids, readable = self._classified(
            encoding, answer.text, answer.contents, answer.spelled, shift=shift
        )
        if answer.begins:
            # Every token that ends before the response begins; the two are classified alike.
            early, _ = self._classified(
                encoding, answer.text, answer.contents, answer.spelled, shift, answer.begins
            )
            reasoning = len(early)
        return (ids[:reasoning], readable[:reasoning]), (ids[reasoning:], readable[reasoning:])

    def _classified(
        self,
        encoding: Encoding,
        text: str,
        contents: Sequence[Span],
        spelled: Sequence[Span] | None,
        shift: int = 0,
        until: int | None = None,
    ) -> tuple[list[int], list[bool]]:
        """Ids and readability. A token that shares a character with a content belongs to it.

        ``spelled`` are the spans in which a special token is letters; None: in contents. The encoded text
        has ``shift`` characters in front of ``text``. Only tokens that end by ``until``, where it is given.
        """
        owned, letters = _covered(text, contents), _covered(text, contents)
        if spelled is not None:
            letters = _covered(text, spelled)
        ids: list[int] = []
        readable: list[bool] = []
        for index, (first, last) in zip(encoding.ids, encoding.offsets, strict=True):
            start, stop = first - shift, last - shift
            if start < 0 or (until is not None and stop > until):
                continue
            width = slice(start, max(stop, start + 1))
            special = index in self._specials
            if special and bool(letters[width].any()):
                plain = self._spelled(text[start:stop])
                ids += plain
                readable += [True] * len(plain)
                continue
            ids.append(index)
            hidden = (special and self.mask_special_tokens) or (
                not owned[width].any() and self.mask_template
            )
            readable.append(not hidden)
        return ids, readable

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids

    def _behind_anchor(self, text: str) -> list[int]:
        anchor = self._ids(_ANCHOR)
        ids = self._ids(_ANCHOR + text)
        return ids[len(anchor) :] if ids[: len(anchor)] == anchor else ids

    def _spelled(self, text: str) -> list[int]:
        """``text``, which spells a special token, as plain tokens."""
        ids: list[int] = self._literal.encode(text, add_special_tokens=False).ids
        if not self._specials.isdisjoint(ids) and len(text) > 1:
            # A vocabulary that also holds the spelling as an ordinary piece: break it.
            return [token for letter in text for token in self._spelled(letter)]
        return ids


def tokeniser(loaded: LoadedModel, settings: ReplaySettings) -> Tokeniser:
    """The tokeniser that replay and research share."""
    return tokeniser_of(loaded.tokenizer, positions_limit(settings, loaded.config), settings)


def tokeniser_of(tokenizer: Any, limit: int, settings: ReplaySettings) -> Tokeniser:
    """The same without a loaded copy, for rows of at most ``limit`` tokens."""
    return Tokeniser(
        tokenizer,
        limit,
        mask_special_tokens=settings.mask_special_tokens,
        mask_template=settings.mask_template,
        replay_reasoning=settings.replay_reasoning,
        template_options=settings.template_options,
        exclude_forbidden_tools=settings.exclude_tools_when_tool_choice_none,
    )


def _covered(text: str, spans: Sequence[Span]) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """For each character of ``text``, and one behind it, whether it stands in one of ``spans``."""
    covered = np.zeros(len(text) + 1, dtype=np.bool_)
    for start, stop in spans:
        covered[start:stop] = True
    return covered
