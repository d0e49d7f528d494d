"""The server in its thread: a real socket, a clean end, an address that is taken."""

from __future__ import annotations

import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from monitor.app import Readiness
from monitor.errors import ConfigurationError
from monitor.heartbeat import Heartbeat
from monitor.logs import configure
from monitor.settings import LogSettings, WebSettings
from monitor.web import connections
from monitor.web.app import create_app
from monitor.web.server import WebServer, health_server


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


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("127.0.0.1", "this machine alone"),
        ("0.0.0.0", "no log-in"),
        ("localhost", "this machine alone"),
    ],
)
def test_it_says_at_start_who_can_reach_it(
    host: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(LogSettings())
    face = WebServer(create_app(None, Heartbeat(), dict), WebSettings(port=0, host=host))
    face.start()
    face.stop()
    line = capsys.readouterr().err.replace("_", " ")
    assert said in line.replace("without log in", "no log-in")


def test_it_binds_to_this_machine_unless_told_otherwise() -> None:
    assert WebSettings().host == "127.0.0.1"


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 0.5)


@contextmanager
def unfinished(
    port: int, number: int, begun: bytes = b"GET /livez HTTP/1.1\r\nx: "
) -> Iterator[Any]:
    """Connections that have sent the beginning of a request and no more."""
    held = []
    try:
        for _ in range(number):
            one = socket.create_connection(("127.0.0.1", port), timeout=10)
            held.append(one)
            with suppress(OSError):
                one.sendall(begun)
        yield held
    finally:
        for one in held:
            one.close()


def alive(port: int) -> bool:
    return httpx.get(f"http://127.0.0.1:{port}/livez", timeout=5).status_code == 200


def test_three_thousand_unfinished_requests_keep_no_probe_out() -> None:
    """In a process of its own, with the file descriptors that a process commonly has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    ours = min(hard, 8_192)
    if ours < 3_200:
        pytest.fail(f"this machine allows {hard} open files; the test needs 3,200")
    program = (
        "import resource, sys, threading; from tests.web.test_server import server\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))\n"
        "face = server(); face.start(); print('port', face.port, flush=True); sys.stdin.read()"
    )
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, ours), hard))
    try:
        with subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            assert process.stdin is not None
            said = next(line for line in process.stdout if line.startswith("port "))
            port = int(said.split()[1])
            with unfinished(port, 3_000):
                assert all(alive(port) for _ in range(5))
                open_files = len(list(Path(f"/proc/{process.pid}/fd").iterdir()))
                assert open_files < connections.CONNECTIONS + 200
            process.stdin.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(
    "begun",
    [
        b"",
        b"GET /livez HTTP/1.1\r\nx: ",
        b"GET /livez HTTP/1.1\r\nhost: a\r\n\r\nGET /livez",
        b"\x16\x03\x01",
    ],
)
def test_a_request_that_is_not_finished_is_closed(begun: bytes) -> None:
    face = server()
    face.start()
    with unfinished(face.port, 1, begun) as (one,):
        while one.recv(65_536):
            pass
    face.stop()


def test_readiness_is_told_within_a_second_while_what_it_asks_hangs() -> None:
    """And liveness, and both again and again, with one thread that hangs and no more."""
    thaw = threading.Event()

    def frozen() -> dict[str, bool | str]:
        thaw.wait(60)
        return {"database": True}

    face = WebServer(create_app(None, Heartbeat(), frozen), WebSettings(port=0))
    face.start()
    for _ in range(4):
        answer = httpx.get(f"http://127.0.0.1:{face.port}/readyz", timeout=5)
        assert answer.elapsed.total_seconds() < 2
        assert answer.status_code == 503
        assert "hangs" in answer.json()["checks"]["answer"]
        assert alive(face.port)
    assert sum(thread.name == "readiness" for thread in threading.enumerate()) == 1
    thaw.set()
    assert wait_until(
        lambda: httpx.get(f"http://127.0.0.1:{face.port}/readyz").json()["ready"] is True
    )
    face.stop()


def wait_until(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 10
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@contextmanager
def frozen_servers(data: Path) -> Iterator[None]:
    postmaster = psutil.Process(int((data / "postmaster.pid").read_text().split()[0]))
    family = [postmaster, *postmaster.children(recursive=True)]
    for one in family:
        one.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for one in family:
            with suppress(psutil.NoSuchProcess):
                one.send_signal(signal.SIGCONT)


def ask(port: int) -> None:
    with suppress(httpx.HTTPError):
        httpx.get(f"http://127.0.0.1:{port}/api/alerts", timeout=3)


@pytest.mark.slow
def test_a_frozen_postgres_freezes_neither_probe(restartable_postgres: Any) -> None:
    from monitor.settings import PostgresSettings
    from monitor.store.database import connect, migrate

    url = PostgresSettings(url=restartable_postgres.url)
    migrate(url)
    database = connect(url)
    face = WebServer(
        create_app(database, Heartbeat(), Readiness(database).report), WebSettings(port=0)
    )
    face.start()
    ready = f"http://127.0.0.1:{face.port}/readyz"
    assert httpx.get(ready, timeout=10).status_code == 200
    with frozen_servers(restartable_postgres.folder / "data"):
        for _ in range(50):  # more than there are threads for requests
            threading.Thread(target=ask, args=(face.port,), daemon=True).start()
        for _ in range(3):
            answer = httpx.get(ready, timeout=5)
            assert (answer.status_code, "answer" in answer.json()["checks"]) == (503, True)
            assert answer.elapsed.total_seconds() < 2
            assert alive(face.port)
    assert wait_until(lambda: httpx.get(ready, timeout=10).status_code == 200)
    face.stop()
    database.dispose()


def test_health_has_a_listener_of_its_own_where_one_is_wanted(database: Any) -> None:
    """Full of unfinished requests and with all its pages frozen, the face keeps no probe of it waiting."""
    settings = WebSettings(port=0, health_port=0, health_host="127.0.0.1")
    thaw = threading.Event()

    def page(_request: object) -> None:
        thaw.wait(60)

    app = create_app(database, Heartbeat(), dict)
    app.add_route("/frozen", page)  # type: ignore[arg-type]
    face = WebServer(app, settings)
    health = health_server(create_app(database, Heartbeat(), dict, pages=False), settings)
    assert health is not None
    for one in (face, health):
        one.start()
    held = b"GET /frozen HTTP/1.1\r\nhost: a\r\n\r\n"
    with unfinished(face.port, 200, held), unfinished(face.port, 100):
        assert all(alive(health.port) for _ in range(5))
        for path, status in (("readyz", 200), ("metrics", 200), ("", 404), ("api/alerts", 404)):
            answer = httpx.get(f"http://127.0.0.1:{health.port}/{path}", timeout=5)
            assert answer.status_code == status, path
    thaw.set()
    for one in (face, health):
        one.stop()
    assert health_server(app, WebSettings()) is None


def test_the_web_face_needs_no_torch() -> None:
    program = "import sys, monitor.web.app, monitor.web.server; print('torch' in sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "False"
