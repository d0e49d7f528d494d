"""A schema registry over HTTP, as small as one can be: schemas by id and by subject and version."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlparse


@dataclass
class Registered:
    kind: str
    text: str
    serialised: bytes | None = None
    references: tuple[tuple[str, str, int], ...] = ()
    """Name, subject, version."""

    def answer(self, serialised: bool) -> dict[str, Any]:
        schema = self.text
        if serialised and self.serialised is not None:
            schema = base64.b64encode(self.serialised).decode()
        listed = [
            {"name": name, "subject": subject, "version": version}
            for name, subject, version in self.references
        ]
        return {"schema": schema, "schemaType": self.kind, "references": listed}


@dataclass
class SchemaRegistry:
    """``status`` other than 200 is answered to everything; ``user`` is what basic auth must say."""

    url: str = ""
    by_id: dict[int, Registered] = field(default_factory=dict)
    by_subject: dict[tuple[str, int], Registered] = field(default_factory=dict)
    status: int = 200
    user: str | None = None
    asked: list[str] = field(default_factory=list)

    def answer(self, path: str, authorization: str | None) -> tuple[int, dict[str, Any]]:
        url = urlparse(path)
        self.asked.append(path)
        if self.user is not None:
            wanted = "Basic " + base64.b64encode(self.user.encode()).decode()
            if authorization != wanted:
                return 401, {"error_code": 401, "message": "who are you"}
        if self.status != 200:
            return self.status, {"error_code": self.status, "message": "not now"}
        serialised = parse_qs(url.query).get("format") == ["serialized"]
        match url.path.strip("/").split("/"):
            case ["schemas", "ids", number] if int(number) in self.by_id:
                return 200, self.by_id[int(number)].answer(serialised)
            case ["subjects", subject, "versions", version]:
                found = self.by_subject.get((subject, int(version)))
                if found is not None:
                    about = {"subject": subject, "version": int(version), "id": 1_000}
                    return 200, about | found.answer(serialised)
        return 404, {"error_code": 40403, "message": "Schema not found"}


@contextmanager
def serving(registry: SchemaRegistry, *, port: int = 0) -> Iterator[SchemaRegistry]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, document = registry.answer(self.path, self.headers.get("Authorization"))
            body = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    registry.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield registry
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def framed(schema_id: int, body: bytes) -> bytes:
    return b"\x00" + schema_id.to_bytes(4) + body
