"""Langfuse's wrapper of OpenAI's client, whose observations are spans, as the collector hands them on."""

from __future__ import annotations

import langfuse
import pytest
from langfuse.openai import openai
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.libraries.cases import CASES, Case, openai_request, responses_request
from tests.libraries.otlp import Telemetry
from tests.libraries.reading import RESPONSES_SAMPLING, check, check_failed, read, to_the_end
from tests.libraries.stub import Stub

named = pytest.mark.parametrize("told", CASES, ids=lambda told: told.name)


@pytest.fixture(scope="module")
def telemetry() -> Telemetry:
    kept = Telemetry()
    langfuse.Langfuse(
        public_key="pk",
        secret_key="sk",
        base_url="http://127.0.0.1:9",
        tracer_provider=kept.tracing,
        span_exporter=InMemorySpanExporter(),
    )
    return kept


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
        lacks = ("stop", "reasoning", "finish_reason")
        check(told, read(written), "langfuse", lacks=lacks)


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
        lacks = ("finish_reason",)
        check(told, read(written), "langfuse", sampling=RESPONSES_SAMPLING, lacks=lacks)
