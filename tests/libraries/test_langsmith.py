"""LangSmith's wrappers of the clients: the run as the client sends it, and as its API would give it back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import langsmith
import openai
import pytest
import requests
from langsmith.run_helpers import tracing_context
from langsmith.wrappers import wrap_anthropic, wrap_openai

from tests.libraries.cases import CASES, Case, Document, anthropic_request, openai_request
from tests.libraries.reading import ANTHROPIC_SAMPLING, check, check_failed, read, to_the_end
from tests.libraries.stub import Stub

named = pytest.mark.parametrize("told", CASES, ids=lambda told: told.name)


class Session(requests.Session):
    """Where the client sends its runs: begun by POST, ended by PATCH."""

    def __init__(self) -> None:
        super().__init__()
        self.run: Document = {}

    def request(self, method: Any, url: Any, *args: Any, **kwargs: Any) -> requests.Response:
        if "/runs" in str(url) and kwargs.get("data"):
            self.run |= {k: v for k, v in json.loads(kwargs["data"]).items() if v is not None}
        served = requests.Response()
        served.status_code = 200
        served._content = b"{}"
        return served


@pytest.fixture
def session() -> Iterator[Session]:
    kept = Session()
    client = langsmith.Client(
        api_url="http://127.0.0.1:9", api_key="none", session=kept, auto_batch_tracing=False
    )
    with tracing_context(enabled=True, client=client):
        yield kept


@named
def test_openai_chat(told: Case, stub: Stub, session: Session) -> None:
    client = wrap_openai(openai.OpenAI(base_url=f"{stub.url}/v1", api_key="none", max_retries=0))
    stub.reply = told.reply
    try:
        to_the_end(client.chat.completions.create(**openai_request(told)))
    except openai.APIStatusError:
        check_failed(told, session.run)
        return
    lacks = ("reasoning",) if told.streamed else ()
    check(told, read(session.run), "langsmith", lacks=lacks)


@pytest.mark.parametrize(
    "told", [one for one in CASES if not one.streamed], ids=lambda told: told.name
)
def test_anthropic(told: Case, stub: Stub, session: Session) -> None:
    """Not streamed: langsmith 0.15.1 raises a TypeError on the streams of anthropic 2.14.0."""
    client = wrap_anthropic(anthropic.Anthropic(base_url=stub.url, api_key="none", max_retries=0))
    stub.reply = told.reply
    try:
        to_the_end(client.messages.create(**anthropic_request(told)))
    except anthropic.APIStatusError:
        check_failed(told, session.run)
        return
    check(told, read(session.run), "langsmith", sampling=ANTHROPIC_SAMPLING)
