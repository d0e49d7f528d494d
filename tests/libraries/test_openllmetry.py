"""OpenLLMetry's instrumentations (Traceloop), as the collector hands their spans on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import anthropic
import openai
import pytest
from opentelemetry.instrumentation.anthropic import AnthropicInstrumentor
from opentelemetry.instrumentation.openai import OpenAIInstrumentor

from tests.libraries.cases import (
    CASES,
    COMPLETION_TOKENS,
    PROMPT_TOKENS,
    Case,
    anthropic_request,
    case,
    openai_request,
    responses_request,
)
from tests.libraries.otlp import Telemetry, instrumented
from tests.libraries.reading import (
    ANTHROPIC_SAMPLING,
    RESPONSES_SAMPLING,
    check,
    check_failed,
    check_refused,
    read,
    to_the_end,
)
from tests.libraries.stub import Stub

named = pytest.mark.parametrize("told", CASES, ids=lambda told: told.name)


@pytest.fixture(scope="module")
def telemetry() -> Iterator[Telemetry]:
    kept = Telemetry()
    with (
        instrumented(OpenAIInstrumentor(), kept),
        instrumented(AnthropicInstrumentor(), kept),
    ):
        yield kept


@named
def test_openai_chat(told: Case, stub: Stub, telemetry: Telemetry) -> None:
    client = openai.OpenAI(base_url=f"{stub.url}/v1", api_key="none", max_retries=0)
    stub.reply = told.reply
    try:
        to_the_end(client.chat.completions.create(**openai_request(told)))
    except openai.APIStatusError:
        for written in telemetry.taken():
            check_failed(told, written)
        return
    for written in telemetry.taken():
        if told.name == "image":  # the whole of the messages is left out
            check_refused(written, "content_redacted")
        else:
            check(told, read(written), "otel", lacks=("seed", "stop"))


@named
def test_openai_responses(told: Case, stub: Stub, telemetry: Telemetry) -> None:
    client = openai.OpenAI(base_url=f"{stub.url}/v1", api_key="none", max_retries=0)
    stub.reply = told.reply
    try:
        to_the_end(client.responses.create(**responses_request(told)))
    except openai.APIStatusError:
        for written in telemetry.taken():
            check_failed(told, written)
        return
    # it writes an item's id in place of its call's
    calls = tuple(dataclasses.replace(call, id=f"fc_{call.id}") for call in told.reply.calls)
    told = dataclasses.replace(told, reply=dataclasses.replace(told.reply, calls=calls))
    for written in telemetry.taken():
        check(told, read(written), "otel", sampling=RESPONSES_SAMPLING)


@named
def test_anthropic(told: Case, stub: Stub, telemetry: Telemetry) -> None:
    client = anthropic.Anthropic(base_url=stub.url, api_key="none", max_retries=0)
    stub.reply = told.reply
    try:
        to_the_end(client.messages.create(**anthropic_request(told)))
    except anthropic.APIStatusError:
        for written in telemetry.taken():
            check_failed(told, written)
        return
    for written in telemetry.taken():
        check(
            told,
            read(written),
            "otel",
            sampling=ANTHROPIC_SAMPLING,
            lacks=("stop",),
            counts=(PROMPT_TOKENS, COMPLETION_TOKENS + told.streamed),  # it adds the first event's
        )


def test_content_turned_off(
    stub: Stub, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACELOOP_TRACE_CONTENT", "false")
    told = case("system")
    stub.reply = told.reply
    client = openai.OpenAI(base_url=f"{stub.url}/v1", api_key="none", max_retries=0)
    client.chat.completions.create(**openai_request(told))
    for written in telemetry.taken():
        check_refused(written, "content_redacted")
