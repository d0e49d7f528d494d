"""The audit of the environment: run as CI runs it, against a server that stands for OSV."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


@contextmanager
def osv(known: dict[str, str], *, whole: bool = True) -> Iterator[str]:
    """Knows one vulnerability by the name of its package."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))["queries"]
            results: list[dict[str, Any]] = []
            for one in asked:
                name = one["package"]["purl"].removeprefix("pkg:pypi/").split("@")[0]
                results.append({"vulns": [{"id": known[name]}]} if name in known else {})
            body = json.dumps({"results": results if whole else results[1:]}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def audit(url: str, sbom: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / ".ci" / "audit.py"), "--sbom", str(sbom), "--url", url]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_known_vulnerability_fails_and_is_named(tmp_path: Path) -> None:
    with osv({"starlette": "GHSA-0000"}) as url:
        ran = audit(url, tmp_path / "sbom.json")
    assert ran.returncode == 1, ran.stderr
    assert "GHSA-0000" in ran.stdout
    assert "1 vulnerabilities that are not accepted" in ran.stdout


def test_the_bill_of_materials_names_each_package_once_with_its_version(tmp_path: Path) -> None:
    with osv({}) as url:
        assert audit(url, tmp_path / "sbom.json").returncode == 0
    bill = json.loads((tmp_path / "sbom.json").read_text())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    scopes = {one["purl"].split("@")[0]: one["scope"] for one in bill["components"]}
    assert len(scopes) == len(bill["components"])
    assert scopes["pkg:pypi/psycopg-binary"] == scopes["pkg:pypi/starlette"] == "required"
    assert scopes["pkg:pypi/pytest"] == "optional"


def test_where_nothing_is_reached_it_says_so_and_never_that_all_is_well(tmp_path: Path) -> None:
    with osv({}, whole=False) as url:
        half = audit(url, tmp_path / "half.json")
    for ran in (half, audit("http://127.0.0.1:9", tmp_path / "none.json")):
        assert ran.returncode == 0, ran.stderr
        assert "NOT AUDITED" in ran.stdout
        assert "audited 1" not in ran.stdout
    assert (tmp_path / "none.json").exists()
