"""LiteLLM's `StandardLoggingPayload`, taken from a callback of our own, for every API that it speaks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable
from typing import Any

import litellm
import pytest
from litellm.integrations.custom_logger import CustomLogger

from tests.libraries.cases import (
    CASES,
    Case,
    Document,
    anthropic_request,
    case,
    openai_request,
    responses_request,
)
from tests.libraries.reading import (
    ANTHROPIC_SAMPLING,
    RESPONSES_SAMPLING,
    check,
    check_failed,
    check_refused,
    read,
)
from tests.libraries.stub import Stub

named = pytest.mark.parametrize("told", CASES, ids=lambda told: told.name)


class Log(CustomLogger):
    """What every callback of LiteLLM is handed."""

    def __init__(self) -> None:
        super().__init__()
        self.payloads: list[Document] = []

    async def async_log_success_event(
        self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any
    ) -> None:
        self._keep(kwargs)

    async def async_log_failure_event(
        self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any
    ) -> None:
        self._keep(kwargs)

    def _keep(self, kwargs: Any) -> None:
        payload = kwargs.get("standard_logging_object")
        if payload is not None:
            self.payloads.append(json.loads(json.dumps(payload, default=str)))


LOG = Log()
"""One for all calls: LiteLLM adds no second callback of a class."""


@pytest.fixture
def log() -> Log:
    litellm.callbacks = [LOG]
    litellm.drop_params = True
    litellm.suppress_debug_info = True
    LOG.payloads.clear()
    return LOG


LOOP = asyncio.new_event_loop()
"""One for all calls: LiteLLM's logging works in the loop of the first."""


def logged(call: Awaitable[Any], log: Log) -> Document:
    """The payload of one call, made and read to its end as a service does it."""

    async def made() -> None:
        try:
            served = await call
            if hasattr(served, "__aiter__"):
                async for _ in served:
                    pass
        except Exception as error:  # the log is what is looked at
            print(f"{type(error).__name__}: {error}")
        for _ in range(100):
            if log.payloads:
                return
            await asyncio.sleep(0.05)

    LOOP.run_until_complete(made())
    assert log.payloads, "nothing was logged"
    return log.payloads[-1]


def chat(told: Case, stub: Stub, **more: Any) -> Awaitable[Any]:
    stub.reply = told.reply
    request = openai_request(told)
    request["model"] = f"openai/{request['model']}"
    at = {"api_base": f"{stub.url}/v1", "api_key": "none", "max_retries": 0}
    return litellm.acompletion(**request, **at, **more)


@named
def test_chat(told: Case, stub: Stub, log: Log) -> None:
    payload = logged(chat(told, stub), log)
    if told.reply.status != 200:
        check_failed(told, payload)
        return
    check(told, read(payload), "litellm")


@named
def test_anthropic_as_a_chat(told: Case, stub: Stub, log: Log) -> None:
    """LiteLLM translates between the APIs, and logs the chat."""
    stub.reply = told.reply
    request = openai_request(told) | {"model": "anthropic/claude-sonnet-4-5"}
    for key in ("temperature", "seed", "frequency_penalty", "presence_penalty", "top_p"):
        request.pop(key, None)
    payload = logged(
        litellm.acompletion(**request, api_base=stub.url, api_key="none", max_retries=0), log
    )
    if told.reply.status != 200:
        check_failed(told, payload)
        return
    check(told, read(payload), "litellm", sampling=ANTHROPIC_SAMPLING)


@named
def test_anthropic_messages(told: Case, stub: Stub, log: Log) -> None:
    stub.reply = told.reply
    request = anthropic_request(told)
    request["model"] = f"anthropic/{request['model']}"
    call = litellm.anthropic.messages.acreate(
        **request, api_base=stub.url, api_key="none", max_retries=0
    )
    payload = logged(call, log)
    if told.reply.status != 200:
        check_failed(told, payload)
        return
    check(told, read(payload), "litellm", sampling=ANTHROPIC_SAMPLING)


@named
def test_responses(told: Case, stub: Stub, log: Log) -> None:
    stub.reply = told.reply
    request = responses_request(told)
    request["model"] = f"openai/{request['model']}"
    call = litellm.aresponses(**request, api_base=f"{stub.url}/v1", api_key="none", max_retries=0)
    payload = logged(call, log)
    if told.reply.status != 200:
        check_failed(told, payload)
        return
    check(told, read(payload), "litellm", sampling=RESPONSES_SAMPLING)


def test_responses_of_a_string(stub: Stub, log: Log) -> None:
    stub.reply = CASES[0].reply
    call = litellm.aresponses(
        model="openai/gpt-4o", input="Once?", api_base=f"{stub.url}/v1", api_key="none"
    )
    found = read(logged(call, log))
    assert [(message.role, message.content) for message in found.messages] == [("user", "Once?")]
    assert found.response == stub.reply.text


def test_text_completion(stub: Stub, log: Log) -> None:
    stub.reply = CASES[0].reply
    prompt = "Once upon a time 🥚 <|im_start|>"
    call = litellm.atext_completion(
        model="text-completion-openai/gpt-3.5-turbo-instruct",
        prompt=prompt,
        max_tokens=9,
        api_base=f"{stub.url}/v1",
        api_key="none",
    )
    found = read(logged(call, log))
    assert (found.text, found.response) == (prompt, stub.reply.text)
    assert found.sampling is not None
    assert found.sampling.max_tokens == 9


def test_message_logging_turned_off(stub: Stub, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(litellm, "turn_off_message_logging", True)
    payload = logged(chat(case("system"), stub), log)
    check_refused(payload, "content_redacted")
