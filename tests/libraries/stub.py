"""A server that plays OpenAI's and Anthropic's APIs: it says what it was told to, whole or streamed."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.libraries.cases import (
    COMPLETION_TOKENS,
    PROMPT_TOKENS,
    REVISION,
    SERVED_MODEL,
    Document,
    Reply,
    anthropic_call,
    openai_call,
)

CREATED = 1_772_366_400


class Stub:
    """``reply`` is what the next calls are answered with; ``requests`` are the bodies that came."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.reply = Reply()
        self.requests: list[Document] = []
        self.exported: list[bytes] = []
        """Bodies that were sent to it as to a collector."""

    @property
    def number(self) -> int:
        """Of the call, from 1: no two responses have the same id, since libraries join by them."""
        return len(self.requests)


@contextlib.contextmanager
def serving() -> Iterator[Stub]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    server.stub = Stub(f"http://127.0.0.1:{server.server_port}")  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.stub  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        stub: Stub = self.server.stub  # type: ignore[attr-defined]
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.path == "/v1/traces":
            stub.exported.append(body)
            self._send(200, "application/x-protobuf", b"")
            return
        request = json.loads(body) if body else {}
        stub.requests.append(request)
        reply, route = stub.reply, self.path.rstrip("/").rpartition("/")[2]
        play = {
            "completions": _chat if "/chat/" in self.path else _completion,
            "responses": _response,
            "messages": _message,
        }.get(route)
        if play is None:
            self._send(404, "application/json", b'{"error": {"message": "no such route"}}')
        elif reply.status != 200:
            error = {"type": "server_error", "message": reply.text, "code": None, "param": None}
            document = {"type": "error", "error": error, "request_id": "r1"}
            self._send(reply.status, "application/json", json.dumps(document).encode())
        else:
            whole, events = play(reply, request, stub.number)
            if request.get("stream"):
                lines = "".join(_event(event, named=route != "completions") for event in events)
                end = "data: [DONE]\n\n" if route == "completions" else ""
                self._send(200, "text/event-stream", (lines + end).encode())
            else:
                self._send(200, "application/json", json.dumps(whole).encode())

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _event(event: Document, *, named: bool) -> str:
    name = f"event: {event['type']}\n" if named else ""
    return f"{name}data: {json.dumps(event)}\n\n"


def _pieces(text: str) -> list[str]:
    return [text[start : start + 5] for start in range(0, len(text), 5)]


def _played(request: Document) -> str:
    """The model's full name, as a server that was asked for an alias gives it."""
    asked = request.get("model", "")
    return SERVED_MODEL if asked.startswith("gpt-4o") else asked


def _about(kind: str, request: Document, number: int) -> Document:
    about = {
        "id": f"chatcmpl-{number}",
        "object": kind,
        "created": CREATED,
        "model": _played(request),
    }
    return about | {"system_fingerprint": REVISION}


_USAGE = {
    "prompt_tokens": PROMPT_TOKENS,
    "completion_tokens": COMPLETION_TOKENS,
    "total_tokens": PROMPT_TOKENS + COMPLETION_TOKENS,
}


def _chat(reply: Reply, request: Document, number: int) -> tuple[Document, list[Document]]:
    message: Document = {"role": "assistant", "content": reply.text or None}
    if reply.reasoning:
        message["reasoning_content"] = reply.reasoning
    if reply.calls:
        message["tool_calls"] = [openai_call(call) for call in reply.calls]
    finish = "tool_calls" if reply.calls else "stop"
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
    whole = _about("chat.completion", request, number) | {"choices": [choice], "usage": _USAGE}

    deltas: list[Document] = [{"role": "assistant", "content": ""}]
    deltas += [{"reasoning_content": piece} for piece in _pieces(reply.reasoning)]
    deltas += [{"content": piece} for piece in _pieces(reply.text)]
    for index, call in enumerate(reply.calls):
        said = openai_call(call)
        given = said["function"]["arguments"]
        opening = said | {"index": index, "function": {"name": call.name, "arguments": ""}}
        deltas.append({"tool_calls": [opening]})
        deltas += [
            {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}
            for piece in _pieces(given)
        ]
    about = _about("chat.completion.chunk", request, number)
    events = [
        about | {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
        for delta in deltas
    ]
    events.append(about | {"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
    if (request.get("stream_options") or {}).get("include_usage"):
        events.append(about | {"choices": [], "usage": _USAGE})
    return whole, events


def _completion(reply: Reply, request: Document, number: int) -> tuple[Document, list[Document]]:
    about = _about("text_completion", request, number)
    choice = {"index": 0, "text": reply.text, "logprobs": None, "finish_reason": "stop"}
    events = [
        about | {"choices": [{"index": 0, "text": piece, "finish_reason": None}]}
        for piece in _pieces(reply.text)
    ]
    events.append(about | {"choices": [{"index": 0, "text": "", "finish_reason": "stop"}]})
    return about | {"choices": [choice], "usage": _USAGE}, events


def _response(reply: Reply, request: Document, number: int) -> tuple[Document, list[Document]]:
    output: list[Document] = []
    if reply.reasoning:
        summary = [{"type": "summary_text", "text": reply.reasoning}]
        output.append({"id": "rs_1", "type": "reasoning", "summary": summary})
    if reply.text:
        part = {"type": "output_text", "text": reply.text, "annotations": [], "logprobs": []}
        said = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed"}
        output.append(said | {"content": [part]})
    output += [
        {
            "id": f"fc_{call.id}",
            "type": "function_call",
            "call_id": call.id,
            "name": call.name,
            "arguments": json.dumps(call.arguments),
            "status": "completed",
        }
        for call in reply.calls
    ]
    whole = {
        "id": f"resp_{number}",
        "object": "response",
        "created_at": CREATED,
        "status": "completed",
        "model": _played(request),
        "output": output,
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": request.get("tools", []),
        "temperature": request.get("temperature"),
        "top_p": request.get("top_p"),
        "max_output_tokens": request.get("max_output_tokens"),
        "instructions": request.get("instructions"),
        "error": None,
        "incomplete_details": None,
        "metadata": {},
        "usage": {
            "input_tokens": PROMPT_TOKENS,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": COMPLETION_TOKENS,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": PROMPT_TOKENS + COMPLETION_TOKENS,
        },
    }
    begun = whole | {"output": [], "status": "in_progress", "usage": None}
    events: list[Document] = [{"type": "response.created", "response": begun}]
    for place, item in enumerate(output):
        at = {"output_index": place}
        empty = {key: [] if isinstance(value, list) else value for key, value in item.items()}
        if item["type"] == "function_call":
            empty["arguments"] = ""
        events.append({"type": "response.output_item.added", **at, "item": empty})
        if item["type"] == "reasoning":
            inside = at | {"item_id": item["id"], "summary_index": 0}
            part = item["summary"][0]
            events.append(
                {
                    "type": "response.reasoning_summary_part.added",
                    **inside,
                    "part": part | {"text": ""},
                }
            )
            events += [
                {"type": "response.reasoning_summary_text.delta", **inside, "delta": piece}
                for piece in _pieces(reply.reasoning)
            ]
            text = {"text": reply.reasoning}
            events.append({"type": "response.reasoning_summary_text.done", **inside, **text})
            events.append({"type": "response.reasoning_summary_part.done", **inside, "part": part})
        if item["type"] == "message":
            inside = at | {"item_id": item["id"], "content_index": 0}
            part = item["content"][0]
            events.append(
                {"type": "response.content_part.added", **inside, "part": part | {"text": ""}}
            )
            events += [
                {"type": "response.output_text.delta", **inside, "delta": piece, "logprobs": []}
                for piece in _pieces(reply.text)
            ]
            text = {"text": reply.text, "logprobs": []}
            events.append({"type": "response.output_text.done", **inside, **text})
            events.append({"type": "response.content_part.done", **inside, "part": part})
        events.append({"type": "response.output_item.done", **at, "item": item})
    events.append({"type": "response.completed", "response": whole})
    for number, event in enumerate(events):
        event["sequence_number"] = number
    return whole, events


def _message(reply: Reply, request: Document, number: int) -> tuple[Document, list[Document]]:
    blocks: list[Document] = []
    if reply.reasoning:
        blocks.append({"type": "thinking", "thinking": reply.reasoning, "signature": "sealed"})
    if reply.text:
        blocks.append({"type": "text", "text": reply.text, "citations": None})
    blocks += [anthropic_call(call) for call in reply.calls]
    stopped = "tool_use" if reply.calls else "end_turn"
    whole = {
        "id": f"msg_{number}",
        "type": "message",
        "role": "assistant",
        "model": _played(request),
        "content": blocks,
        "stop_reason": stopped,
        "stop_sequence": None,
        "usage": {
            "input_tokens": PROMPT_TOKENS,
            "output_tokens": COMPLETION_TOKENS,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
        },
    }
    begun = whole | {"content": [], "stop_reason": None}
    begun["usage"] = {"input_tokens": PROMPT_TOKENS, "output_tokens": 1}
    events: list[Document] = [{"type": "message_start", "message": begun}]
    for index, block in enumerate(blocks):
        at = {"index": index}
        empties = {"text": "", "thinking": "", "signature": "", "input": {}}
        empty = {key: empties.get(key, value) for key, value in block.items()}
        events.append({"type": "content_block_start", **at, "content_block": empty})
        deltas: list[Document] = [
            {"type": "text_delta", "text": piece} for piece in _pieces(block.get("text", ""))
        ]
        deltas += [
            {"type": "thinking_delta", "thinking": piece}
            for piece in _pieces(block.get("thinking", ""))
        ]
        if block["type"] == "thinking":
            deltas.append({"type": "signature_delta", "signature": "sealed"})
        if block["type"] == "tool_use":
            deltas += [
                {"type": "input_json_delta", "partial_json": piece}
                for piece in _pieces(json.dumps(block["input"]))
            ]
        events += [{"type": "content_block_delta", **at, "delta": delta} for delta in deltas]
        events.append({"type": "content_block_stop", **at})
    delta = {"stop_reason": stopped, "stop_sequence": None}
    usage = {"output_tokens": COMPLETION_TOKENS}
    events.append({"type": "message_delta", "delta": delta, "usage": usage})
    events.append({"type": "message_stop"})
    return whole, events
