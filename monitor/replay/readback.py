"""Reads a rendered text back: is it exactly what the model's template makes of some chat?

A raw prompt is text, and text that spells special tokens is data, unless the template itself would have
written just this text. Turns are found by the template's own words between them; the proof is that the
chat that was found renders to the same text again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from monitor.replay.rendering import ChatTemplate, Rendered, TemplateRefused
from monitor.values.prompts import Message, Prompt

MOST_TURNS = 1_000
_SYSTEM, _USER, _ASSISTANT, _AGAIN = (
    "\ue0f0s\ue0f1",
    "\ue0f0u\ue0f1",
    "\ue0f0a\ue0f1",
    "\ue0f0v\ue0f1",
)


class ReadBack:
    """The turns of one template, learnt from chats of marks."""

    def __init__(self, template: ChatTemplate, prompt: Prompt, bos: str) -> None:
        self._template = template
        self._bos = bos
        self._blank = replace(
            prompt,
            text=None,
            token_ids=None,
            messages=(Message(role="user", content=_USER),),
            tools=(),
            template_options={},
        )
        self._starts: list[tuple[tuple[str, ...], tuple[str, ...]]] = []
        asked = (("user", _USER),)
        if template.text:
            self._answer, self._question = self._turns()
            self._end = self._between(asked)[-1]
            self._starts = [
                ((), self._between(asked)[:1]),
                (("system",), self._between((("system", _SYSTEM), *asked))[:2]),
            ]

    def chat(self, text: str) -> Rendered | None:
        """The chat that renders to ``text`` (the BOS may be missing), or None."""
        for whole in (text, self._bos + text) if self._bos else (text,):
            for messages in self._parsed(whole):
                if any(self._template.spellings.search(one.content) for one in messages):
                    continue
                last = messages[-1]
                found = replace(self._blank, messages=messages, continues=last.role == "assistant")
                try:
                    rendered = self._template.rendered(found)
                except TemplateRefused:
                    continue
                if rendered.text == whole:
                    return rendered
        return None

    def _between(self, turns: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
        """The template's text around the contents of ``turns``; empty texts where it does not take them."""
        chat = replace(
            self._blank, messages=tuple(Message(role=role, content=mark) for role, mark in turns)
        )
        nothing = ("",) * (len(turns) + 1)
        try:
            rest = self._template.rendered(chat).text
        except TemplateRefused:
            return nothing
        pieces = []
        for _, mark in turns:
            before, found, rest = rest.partition(mark)
            if not found:
                return nothing
            pieces.append(before)
        return (*pieces, rest)

    def _turns(self) -> tuple[str, str]:
        """What stands between a question and its answer, and between an answer and the next question."""
        pieces = self._between((("user", _USER), ("assistant", _ASSISTANT), ("user", _AGAIN)))
        return pieces[1], pieces[2]

    def _parsed(self, text: str) -> Iterator[tuple[Message, ...]]:
        for roles, pieces in self._starts:
            if not pieces[0] or not text.startswith(pieces[0]):
                continue
            at = len(pieces[0])
            messages: list[Message] = []
            if roles:
                stop = text.find(pieces[1], at) if pieces[1] else -1
                if stop < 0:
                    continue
                messages.append(Message(role="system", content=text[at:stop]))
                at = stop + len(pieces[1])
            turns = self._dialogue(text, at)
            if turns:
                yield (*messages, *turns)

    def _dialogue(self, text: str, at: int) -> list[Message]:
        """Questions and answers in turn from ``at`` on; the last one open. Empty where they do not fit."""
        if not self._answer or not self._question:
            return []
        messages: list[Message] = []
        while len(messages) < MOST_TURNS:
            stop = text.find(self._answer, at)
            if stop < 0 or stop + len(self._answer) == len(text):
                if not self._end or not text.endswith(self._end, at):
                    return []
                return [
                    *messages,
                    Message(role="user", content=text[at : len(text) - len(self._end)]),
                ]
            messages.append(Message(role="user", content=text[at:stop]))
            at = stop + len(self._answer)
            stop = text.find(self._question, at)
            if stop < 0:
                if text[at:] == self._end.removeprefix(self._answer):
                    return messages
                return [*messages, Message(role="assistant", content=text[at:])]
            messages.append(Message(role="assistant", content=text[at:stop]))
            at = stop + len(self._question)
        return []
