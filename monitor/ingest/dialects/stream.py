"""Server-sent events that were logged as they were streamed, put together into one answer object."""

from __future__ import annotations

from typing import Any, Final, TypeGuard

from monitor.ingest import fields
from monitor.ingest.fields import Unreadable
from monitor.values.prompts import DeadReason

LIMIT: Final = 100_000
"""Most events of one stream."""
_ENDED: Final = ("response.completed", "response.incomplete", "response.failed")
"""How a stream of the Responses API ends; each carries the whole response."""
_BEGUN: Final = ("message_start", "response.created")


def is_stream(value: str) -> bool:
    return value.lstrip()[:6] in ("data: ", "event:") or value.lstrip().startswith("data:{")


def is_events(value: object) -> TypeGuard[list[Any]]:
    """Whether a list holds the events of a stream, as a client dumps them, and not messages."""
    first = value[0] if isinstance(value, list) and value else None
    if not isinstance(first, dict):
        return False
    if first.get("type") in _BEGUN:
        return True
    choices = first.get("choices")
    return isinstance(choices, list) and not any(
        isinstance(choice, dict) and "message" in choice for choice in choices
    )


def whole(value: str, where: str, max_nesting: int) -> dict[str, Any]:
    """The response object that the events amount to; a stream without its end is TRUNCATED."""
    lines = value.split("\n")
    fields.within(len(lines), LIMIT, where, "events")
    events: list[dict[str, Any]] = []
    done = False
    for line in lines:
        if not line.startswith("data:"):
            continue
        data = line[5:].strip()
        if data == "[DONE]":
            done = True
        elif data:
            event = fields.opened(data, where, max_nesting, "log the whole stream")
            events.append(fields.mapping(event, where))
    return assembled(events, where, done=done)


def assembled(listed: list[Any], where: str, *, done: bool = False) -> dict[str, Any]:
    """The response object that decoded events amount to; ``done`` when their end mark was seen.

    An error among them is a failed call: what was said before it is no answer.
    """
    fields.within(len(listed), LIMIT, where, "events")
    events = [fields.mapping(event, where) for event in listed]
    for event in events:
        if event.get("type") == "error" or isinstance(event.get("error"), dict):
            return {"error": event.get("error", event)}
    if any("choices" in event for event in events):
        return _completion(events, where, done)
    for event in reversed(events):
        if event.get("type") in _ENDED and isinstance(event.get("response"), dict):
            return dict(event["response"])
    if any(event.get("type") == "message_start" for event in events):
        return _message(events, where)
    if any(event.get("type") == "response.created" for event in events):
        raise fields.truncated(where, "log the whole stream")
    raise fields.invalid(where, "a stream of a known API", listed)


def _completion(events: list[dict[str, Any]], where: str, done: bool) -> dict[str, Any]:
    """Chunks of a chat or legacy completion; of several choices the one of index 0."""
    said: dict[str, list[str]] = {}
    calls: dict[int, dict[str, Any]] = {}
    whole: dict[str, Any] = {}
    finish: Any = None
    for event in events:
        whole |= {key: v for key, v in event.items() if key != "choices" and v is not None}
        choices = event.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if not isinstance(choice, dict) or choice.get("index", 0) != 0:
                continue
            finish = choice.get("finish_reason") or finish
            delta = choice.get("delta")
            if isinstance(choice.get("text"), str):
                said.setdefault("text", []).append(choice["text"])
            for key, value in delta.items() if isinstance(delta, dict) else ():
                if key == "tool_calls":
                    _add_calls(calls, value, where)
                elif isinstance(value, str) and key != "role":
                    said.setdefault(key, []).append(value)
    if finish is None and not done:
        raise fields.truncated(where, "log the whole stream")
    first: dict[str, Any] = {"index": 0, "finish_reason": finish}
    joined: dict[str, Any] = {key: "".join(pieces) for key, pieces in said.items()}
    for call in calls.values():
        call["function"]["arguments"] = "".join(call["function"]["arguments"])
    if "text" in joined:
        first["text"] = joined["text"]
    else:
        first["message"] = {**joined, "tool_calls": [calls[index] for index in sorted(calls)]}
    return {**whole, "choices": [first]}


def _add_calls(calls: dict[int, dict[str, Any]], value: Any, where: str) -> None:
    """A call comes in pieces: its name first, then its arguments bit by bit."""
    for place, piece in enumerate(value if isinstance(value, list) else ()):
        call = fields.mapping(piece, where)
        index = call.get("index", place)
        if not isinstance(index, int):
            raise Unreadable(DeadReason.INVALID_FIELD, f"{where}: a call without an index")
        into = calls.setdefault(index, {"id": None, "function": {"name": "", "arguments": []}})
        into["id"] = call.get("id") or into["id"]
        function = call.get("function")
        if isinstance(function, dict):
            into["function"]["name"] = function.get("name") or into["function"]["name"]
            if isinstance(function.get("arguments"), str):
                into["function"]["arguments"].append(function["arguments"])


def _message(events: list[dict[str, Any]], where: str) -> dict[str, Any]:
    """Anthropic's blocks, started and then filled by deltas."""
    message: dict[str, Any] = {"type": "message", "role": "assistant"}
    blocks: dict[int, dict[str, Any]] = {}
    filled: dict[int, dict[str, list[str]]] = {}
    stopped = False
    for event in events:
        kind, index = event.get("type"), event.get("index")
        if kind == "message_start" and isinstance(event.get("message"), dict):
            message |= event["message"]
        elif kind == "content_block_start" and isinstance(event.get("content_block"), dict):
            if isinstance(index, int):
                blocks[index] = dict(event["content_block"])
        elif kind == "content_block_delta" and isinstance(event.get("delta"), dict):
            if not isinstance(index, int) or index not in blocks:
                raise fields.truncated(where, "log the whole stream")
            for key, value in event["delta"].items():
                if key in ("text", "thinking", "partial_json") and isinstance(value, str):
                    filled.setdefault(index, {}).setdefault(key, []).append(value)
        elif kind == "message_delta" and isinstance(event.get("delta"), dict):
            message |= event["delta"]
            counted = _object(event.get("usage"))
            given = {key: count for key, count in counted.items() if count is not None}
            message["usage"] = {**_object(message.get("usage")), **given}
        stopped |= kind == "message_stop"
    if not stopped:
        raise fields.truncated(where, "log the whole stream")
    for index, pieces in filled.items():
        for key, texts in pieces.items():
            name = "input" if key == "partial_json" else key
            before = blocks[index].get(name)
            start = before if isinstance(before, str) else ""
            blocks[index][name] = start + "".join(texts)
    return {**message, "content": [blocks[index] for index in sorted(blocks)]}


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
