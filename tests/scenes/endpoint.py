"""A server on this machine that stands where an OpenAI-compatible judge would."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, dict[str, str], bytes]


class Server(ThreadingHTTPServer):
    """Answers by ``reply``; remembers bodies and headers."""

    daemon_threads = True
    reply: Callable[[dict[str, Any]], Reply]

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked.append(body)
        self.server.headers.append(dict(self.headers))
        status, headers, content = self.server.reply(body)
        self.send_response(status if self.path == "/v1/chat/completions" else 404)
        for name, value in {**headers, "content-length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(reply: Callable[[dict[str, Any]], Reply]) -> Iterator[Server]:
    one = Server()
    one.reply = reply
    thread = threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield one
    finally:
        one.shutdown()
        one.server_close()
        thread.join()


def said(content: object) -> Reply:
    return 200, {}, json.dumps({"choices": [{"message": {"content": content}}]}).encode()


def by_length(body: dict[str, Any]) -> Reply:
    """A rating that only depends on the answer: its length in the trait, a constant coherence."""
    material = json.loads(body["messages"][1]["content"])
    return said(json.dumps({"trait": len(material["answer"]), "coherence": 90}))
