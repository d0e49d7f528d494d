"""The stub that plays the APIs, and clients of the real libraries that talk to it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.libraries import stub as api
from tests.libraries.stub import Stub

for _name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"):
    os.environ.pop(_name, None)
os.environ |= {  # read when the libraries are imported: none calls home or finds a person's keys
    "ANTHROPIC_API_KEY": "none",
    "DO_NOT_TRACK": "1",
    "LANGSMITH_TRACING": "false",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "NO_PROXY": "127.0.0.1",
    "OPENAI_API_KEY": "none",
    "TRACELOOP_TELEMETRY": "false",
}


@pytest.fixture(scope="session")
def stub() -> Iterator[Stub]:
    with api.serving() as server:
        yield server
