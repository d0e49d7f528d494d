"""OpenAI's Responses API: ``instructions``, ``input`` items, and ``output`` items."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from monitor.ingest import chat, fields, parameters, parts
from monitor.ingest.chat import Chat
from monitor.ingest.exchange import Answer, Asked
from monitor.ingest.parts import Speech
from monitor.values.prompts import Message


def asked(request: Mapping[str, Any], where: str) -> Asked:
    """Items in order: messages, calls and their outputs. What the provider stores is not whole here."""
    for key in ("previous_response_id", "conversation"):
        if request.get(key):
            raise fields.not_read(
                "a response that goes on from one the provider stores",
                "send the whole input",
                f"{where}{key}",
            )
    read = turns(request.get("input"), f"{where}input")
    if request.get("instructions") is not None:
        read.add_system(request["instructions"], f"{where}instructions")
    return chat.asked(
        read,
        f"{where}input",
        tools=parameters.tools(request, where),
        template_options=parameters.template_options(request, where),
        parameters=request,
    )


def turns(value: object, where: str) -> Chat:
    """A string, or items; reasoning and calls join the assistant's turn that they belong to."""
    if isinstance(value, str):
        return Chat(messages=[Message(role="user", content=value)])
    items = fields.sequence(value, where)
    fields.within(len(items), parts.LIMIT, where, "items")
    read = Chat()
    for index, entry in enumerate(items):
        at = f"{where}[{index}]"
        item = fields.mapping(entry, at)
        if item.get("type") in (None, "message"):
            one = Chat()
            one.add(item, at)
            read.media |= one.media
            said = one.messages
        else:
            speech = Speech("assistant")
            _item(item, at, speech)
            read.media |= speech.media
            said = speech.end()
        for message in said:
            _join(read.messages, message)
    return read


def _item(item: dict[str, Any], where: str, speech: Speech) -> None:
    if item.get("type") == "reasoning":
        speech.reasoning.append(parts.thought(item, where))
    elif item.get("type") == "item_reference":
        raise fields.not_read(
            "an item that the provider stores", "send the whole input", f"{where}.type"
        )
    else:
        parts.read([item], where.rpartition("[")[0], speech)


def _join(messages: list[Message], said: Message) -> None:
    """Adjacent items of the assistant are one turn, as long as no text follows text or a call."""
    last = messages[-1] if messages else None
    if (
        last is not None
        and last.role == said.role == "assistant"
        and not (said.content and (last.content or last.tool_calls))
        and not (said.reasoning and (last.content or last.tool_calls))
    ):
        messages[-1] = dataclasses.replace(
            last,
            content=last.content or said.content,
            reasoning=parts.joined([last.reasoning or "", said.reasoning or ""]) or None,
            tool_calls=last.tool_calls + said.tool_calls,
        )
    elif said.role != "assistant" or said.content or said.reasoning or said.tool_calls:
        messages.append(said)


def output(response: Mapping[str, Any], where: str) -> Answer:
    """All output items together are the answer: reasoning, text and calls."""
    items = fields.sequence(response["output"], f"{where}.output")
    fields.within(len(items), parts.LIMIT, f"{where}.output", "items")
    speech = Speech("assistant")
    for index, entry in enumerate(items):
        at = f"{where}.output[{index}]"
        item = fields.mapping(entry, at)
        if item.get("type") in (None, "message"):
            said = chat.answer(item, at)
            speech.texts += [said.text] if said.text else []
            speech.reasoning += [said.reasoning] if said.reasoning else []
            speech.media |= said.media
            speech.calls += said.tool_calls
        else:
            _item(item, at, speech)
    reason = response.get("incomplete_details")
    return dataclasses.replace(
        chat.spoken(speech, f"{where}.output"),
        finish_reason=parameters.label(
            reason.get("reason") if isinstance(reason, dict) else response.get("status")
        ),
        counts=parameters.counts(response.get("usage")),
    )
