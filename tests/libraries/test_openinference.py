"""OpenInference's instrumentations (Phoenix), as the collector hands their spans on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest
from openinference.instrumentation import TraceConfig
from openinference.instrumentation.anthropic import AnthropicInstrumentor
from openinference.instrumentation.openai import OpenAIInstrumentor

from tests.libraries.cases import (
    CASES,
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
        check(told, read(written), "openinference")


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
    for written in telemetry.taken():
        check(told, read(written), "openinference", sampling=RESPONSES_SAMPLING)


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
        check(told, read(written), "openinference", sampling=ANTHROPIC_SAMPLING)


def hidden(stub: Stub, **options: bool) -> tuple[Any, ...]:
    kept = Telemetry()
    OpenAIInstrumentor().uninstrument()
    told = case("system")
    stub.reply = told.reply
    with instrumented(OpenAIInstrumentor(), kept, config=TraceConfig(**options)):
        client = openai.OpenAI(base_url=f"{stub.url}/v1", api_key="none", max_retries=0)
        client.chat.completions.create(**openai_request(told))
    return kept.taken()


def test_hidden_inputs(stub: Stub) -> None:
    for written in hidden(stub, hide_inputs=True):
        check_refused(written, "content_redacted")


def test_hidden_outputs(stub: Stub) -> None:
    for written in hidden(stub, hide_outputs=True):
        found = read(written)
        assert [message.role for message in found.messages] == ["system", "user"]
        assert not found.answered
