"""From a prompt to token ids, and which of them each region holds.

The prompt is rendered with the model's chat template, as a server would, and tokenised once without
adding a second BOS. Every character of a message's content is known to come from there: text that
spells a special token is split as plain text, so content cannot forge a turn. The response is
tokenised apart and appended behind the generation prompt, where the model wrote it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from monitor.replay.model import template_of
from monitor.values.features import Region
from monitor.values.prompts import DeadReason, Prompt
from monitor.values.scores import Unreplayable

PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}:\n{{ message['content'] }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:\n{% endif %}"
)
"""What stands in for the chat template of a model that has none."""

CUT_RULE = "prompt-middle"
SCAFFOLDS_KEPT = 4_096
ROLE = re.compile(r"[A-Za-z0-9_-]{1,32}")
_MARK = re.compile("\ue000(\\d+)\ue001")

Span = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """One prompt as the model sees it: n = prompt_tokens + response_tokens ids, after the cut.

    ``readable`` [n] is False for special tokens and template scaffolding where these are masked.
    """

    ids: tuple[int, ...]
    prompt_tokens: int
    response_tokens: int
    readable: NDArray[np.bool_]
    cut: bool = False

    def positions(self, region: Region, skip_tokens: int) -> NDArray[np.int64]:
        """Positions that ``region`` pools, rising; the first ``skip_tokens`` of the row never.

        ``last_prompt_token`` is the token after which the answer begins, scaffolding or not.
        """
        if region == "last_prompt_token":
            last = self.prompt_tokens - 1
            return np.array([last] if last >= skip_tokens else [], dtype=np.int64)
        start, stop = {
            "prompt": (0, self.prompt_tokens),
            "response": (self.prompt_tokens, len(self.ids)),
            "all": (0, len(self.ids)),
        }[region]
        start = max(start, skip_tokens)
        return np.flatnonzero(self.readable[start:stop]).astype(np.int64) + start


@dataclass(frozen=True, slots=True)
class _Rendered:
    """Text to tokenise and the spans of it, in characters, that came from contents."""

    text: str
    contents: tuple[Span, ...]
    bos: bool


@dataclass(slots=True)
class Tokeniser:
    """Tokenises prompts for one model. Safe to use from one thread beside others that run the model.

    ``limit`` is the longest replay in tokens.
    """

    tokenizer: Any
    limit: int
    mask_special_tokens: bool = True
    mask_template: bool = True
    _backend: Tokenizer = field(init=False)
    _literal: Tokenizer = field(init=False)
    _specials: frozenset[int] = field(init=False)
    _bos: tuple[int, ...] = field(init=False)
    _template: str = field(init=False)
    _scaffolds: dict[tuple[tuple[str, bool], ...], tuple[str, ...]] = field(
        init=False, default_factory=dict
    )

    def __post_init__(self) -> None:
        # Copies of our own: no truncation or padding set elsewhere, no post-processor that trims
        # offsets or adds tokens.
        parts = json.loads(self.tokenizer.backend_tokenizer.to_str())
        parts |= {"truncation": None, "padding": None, "post_processor": None}
        self._backend = Tokenizer.from_str(json.dumps(parts))
        self._literal = Tokenizer.from_str(json.dumps(parts))
        self._literal.encode_special_tokens = True
        self._specials = frozenset(
            index
            for index, token in self._backend.get_added_tokens_decoder().items()
            if token.special
        ) | frozenset(self.tokenizer.all_special_ids)
        bos = self.tokenizer.bos_token_id
        added = self.tokenizer("")["input_ids"]
        self._bos = (bos,) if bos is not None and added[:1] == [bos] else ()
        self._template = template_of(self.tokenizer)

    def tokenise(self, prompts: Sequence[Prompt]) -> list[Tokens | Unreplayable]:
        """Tokens of each prompt, in order; `Unreplayable` where the template refuses or nothing is left."""
        rendered = [self._render(prompt) for prompt in prompts]
        texts = [r.text if isinstance(r, _Rendered) else "" for r in rendered]
        answers = [_valid(prompt.response or "") for prompt in prompts]
        encodings = self._backend.encode_batch([*texts, *answers], add_special_tokens=False)
        results: list[Tokens | Unreplayable] = []
        for index, (prompt, one) in enumerate(zip(prompts, rendered, strict=True)):
            if isinstance(one, Unreplayable):
                results.append(one)
                continue
            answer = answers[index]
            head = self._classified(encodings[index], one.text, one.contents)
            tail = self._classified(encodings[len(texts) + index], answer, ((0, len(answer)),))
            if one.bos and head[0]:
                head = (
                    [*self._bos, *head[0]],
                    [not self.mask_special_tokens] * len(self._bos) + head[1],
                )
            if not head[0] and not tail[0]:
                results.append(Unreplayable(prompt=prompt, reason=DeadReason.NO_TOKENS))
            else:
                results.append(_cut(head, tail, self.limit))
        return results

    def with_answer(self, tokens: Tokens, answer: Sequence[int]) -> Tokens:
        """``tokens`` (of a prompt alone) followed by the ids of an answer the model gave itself."""
        readable = [not (self.mask_special_tokens and index in self._specials) for index in answer]
        return Tokens(
            ids=(*tokens.ids, *answer),
            prompt_tokens=tokens.prompt_tokens,
            response_tokens=len(answer),
            readable=np.array([*tokens.readable, *readable], dtype=np.bool_),
            cut=tokens.cut,
        )

    def shortened(self, tokens: Tokens, limit: int) -> Tokens:
        """``tokens`` cut to ``limit``: leave room for an answer still to come."""
        prompt = tokens.prompt_tokens
        head = (list(tokens.ids[:prompt]), list(tokens.readable[:prompt]))
        tail = (list(tokens.ids[prompt:]), list(tokens.readable[prompt:]))
        shorter = _cut(head, tail, limit)
        return shorter if shorter.cut else tokens

    def _render(self, prompt: Prompt) -> _Rendered | Unreplayable:
        if prompt.text is not None:
            text = _valid(prompt.text)
            return _Rendered(text, ((0, len(text)),), bos=True)
        for message in prompt.messages:
            if not ROLE.fullmatch(message.role):
                return Unreplayable(
                    prompt=prompt,
                    reason=DeadReason.TEMPLATE_REFUSED,
                    detail="a role may hold letters, digits, _ and - only",
                )
        roles = [message.role for message in prompt.messages]
        contents = [_valid(message.content) for message in prompt.messages]
        try:
            scaffold = self._scaffold(roles, contents)
            text = self._applied(roles, contents)
        except Exception as error:
            # A template is a program from the model's folder and raises what it likes.
            return Unreplayable(
                prompt=prompt,
                reason=DeadReason.TEMPLATE_REFUSED,
                detail=f"the chat template raised {type(error).__name__}",
            )
        return _aligned(text, scaffold, contents, bos=not self._template)

    def _scaffold(self, roles: Sequence[str], contents: Sequence[str]) -> tuple[str, ...]:
        """The template's own text for these roles: pieces, with the index of a content between them."""
        shape = tuple((role, bool(content)) for role, content in zip(roles, contents, strict=True))
        known = self._scaffolds.get(shape)
        if known is None:
            marks = [f"\ue000{i}\ue001" if filled else "" for i, (_, filled) in enumerate(shape)]
            known = tuple(_MARK.split(self._applied(roles, marks)))
            if len(self._scaffolds) < SCAFFOLDS_KEPT:
                self._scaffolds[shape] = known
        return known

    def _applied(self, roles: Iterable[str], contents: Sequence[str]) -> str:
        rendered = self.tokenizer.apply_chat_template(
            [{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)],
            chat_template=None if self._template else PLAIN_TEMPLATE,
            tokenize=False,
            add_generation_prompt=True,
        )
        assert isinstance(rendered, str)
        return rendered

    def _classified(
        self, encoding: Encoding, text: str, contents: Sequence[Span]
    ) -> tuple[list[int], list[bool]]:
        """Ids and readability. A token that shares a character with a content belongs to it."""
        owned = np.zeros(len(text) + 1, dtype=np.bool_)
        for start, stop in contents:
            owned[start:stop] = True
        ids: list[int] = []
        readable: list[bool] = []
        for index, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True):
            from_content = bool(owned[start:stop].any()) if stop > start else bool(owned[start])
            special = index in self._specials
            if special and from_content:
                spelled = self._spelled(text[start:stop])
                ids += spelled
                readable += [True] * len(spelled)
                continue
            ids.append(index)
            hidden = (special and self.mask_special_tokens) or (
                not from_content and self.mask_template
            )
            readable.append(not hidden)
        return ids, readable

    def _spelled(self, text: str) -> list[int]:
        """``text``, which spells a special token, as plain tokens."""
        ids: list[int] = self._literal.encode(text, add_special_tokens=False).ids
        if not self._specials.isdisjoint(ids) and len(text) > 1:
            # A vocabulary that also holds the spelling as an ordinary piece: break it.
            return [token for letter in text for token in self._spelled(letter)]
        return ids


def _cut(
    head: tuple[list[int], list[bool]], tail: tuple[list[int], list[bool]], limit: int
) -> Tokens:
    """Join prompt and response, cut to ``limit`` tokens.

    A response keeps its beginning: at least half the limit when it needs that much, more when the
    prompt is short. A prompt keeps its first quarter (BOS, system prompt) and its end (the last
    turn, the generation prompt), and loses its middle.
    """
    prompt, response = len(head[0]), len(tail[0])
    answer = min(response, max(limit // 2, limit - prompt))
    room = limit - answer
    ids, readable = head
    if prompt > room:
        first = room // 4
        last = prompt - (room - first)
        ids, readable = ids[:first] + ids[last:], readable[:first] + readable[last:]
    return Tokens(
        ids=(*ids, *tail[0][:answer]),
        prompt_tokens=len(ids),
        response_tokens=answer,
        readable=np.array([*readable, *tail[1][:answer]], dtype=np.bool_),
        cut=prompt > room or answer < response,
    )


def _aligned(
    text: str, scaffold: Sequence[str], contents: Sequence[str], *, bos: bool
) -> _Rendered:
    """Find each content in the rendered text.

    Most templates insert a content as it is or stripped. One that rewrites a content (drops a
    reasoning block, say) is followed from piece to piece of its own text; if even that does not
    come out even, contents are set into the template's text unchanged.
    """
    pieces, order = scaffold[::2], [int(index) for index in scaffold[1::2]]
    spans: list[Span] = []
    at = len(pieces[0])
    fits = text.startswith(pieces[0])
    for place, index in enumerate(order, start=1):
        last = place == len(order)
        stop = _end_of(text, at, contents[index], pieces[place], last=last) if fits else None
        if stop is None:
            fits = False
            break
        spans.append((at, stop))
        at = stop + len(pieces[place])
    if fits and at == len(text):
        return _Rendered(text, tuple(spans), bos)
    whole, spans = pieces[0], []
    for piece, index in zip(pieces[1:], order, strict=True):
        spans.append((len(whole), len(whole) + len(contents[index])))
        whole += contents[index] + piece
    return _Rendered(whole, tuple(spans), bos)


def _end_of(text: str, at: int, content: str, piece: str, *, last: bool) -> int | None:
    for candidate in (content, content.strip(), content.rstrip(), content.lstrip()):
        stop = at + len(candidate)
        if text.startswith(candidate, at) and text.startswith(piece, stop):
            return stop
    found = text.rfind(piece, at) if last else text.find(piece, at)
    return found if found >= 0 else None


def _valid(text: str) -> str:
    """``text`` with lone surrogates, which no tokenizer takes, replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
