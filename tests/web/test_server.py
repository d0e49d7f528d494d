"""The server in its thread: a real socket, a clean end, an address that is taken."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading

import httpx
import pytest

from monitor.errors import ConfigurationError
from monitor.heartbeat import Heartbeat
from monitor.settings import WebSettings
from monitor.web.app import create_app
from monitor.web.server import WebServer


def server(port: int = 0) -> WebServer:
    return WebServer(create_app(None, Heartbeat(), dict), WebSettings(port=port))


def test_answers_from_start_to_stop_and_can_start_again() -> None:
    face = server()
    for _ in range(2):
        face.start()
        address = f"http://127.0.0.1:{face.port}/livez"
        answer = httpx.get(address)
        assert answer.status_code == 200
        assert "server" not in answer.headers
        face.stop()
        with pytest.raises(httpx.ConnectError):
            httpx.get(address)
    face.stop()


def test_serve_ends_when_told() -> None:
    face, stop = server(), threading.Event()
    thread = threading.Thread(target=face.serve, args=(stop,))
    thread.start()
    while face.port == 0:
        stop.wait(0.01)
    assert httpx.get(f"http://127.0.0.1:{face.port}/readyz").status_code == 200
    stop.set()
    thread.join(10)
    assert not thread.is_alive()


def test_taken_address_is_a_refusal_that_names_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"127.0.0.1:{port}"):
            server(port).start()


def test_the_web_face_needs_no_torch() -> None:
    program = "import sys, monitor.web.app, monitor.web.server; print('torch' in sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "False"
