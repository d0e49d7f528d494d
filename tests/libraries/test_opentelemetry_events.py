"""OpenTelemetry's own instrumentation of OpenAI's client in its older convention: a log record per message.

It is the default beside opentelemetry-util-genai 0.4b0; later releases of that ask for the newer one
always, so the instrumentation is told here that they do not.
"""

from __future__ import annotations

import contextlib
import dataclasses

import openai
import pytest
from opentelemetry.instrumentation import openai_v2
from opentelemetry.instrumentation.openai_v2 import OpenAIInstrumentor

from tests.libraries.cases import CASES, Case, openai_request
from tests.libraries.otlp import Telemetry, instrumented
from tests.libraries.reading import (
    CHAT_SAMPLING,
    check,
    check_failed,
    read,
    to_the_end,
)
from tests.libraries.stub import Stub

named = pytest.mark.parametrize("told", CASES, ids=lambda told: told.name)

LACKS = {*CHAT_SAMPLING, "counts", "model", "reasoning", "tools"}
"""Messages and the choice are all that the log records hold."""


@named
def test_an_event_per_message(told: Case, stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_v2, "is_experimental_mode", lambda: False)
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "true")
    kept = Telemetry()
    client = openai.OpenAI(base_url=f"{stub.url}/v1", api_key="none", max_retries=0)
    stub.reply = told.reply
    with instrumented(OpenAIInstrumentor(), kept), contextlib.suppress(openai.APIStatusError):
        to_the_end(client.chat.completions.create(**openai_request(told)))
    for written in kept.taken_logs():
        if told.reply.status != 200:
            check_failed(told, written)
        else:
            check(_written(told), read(written), "otel", lacks=LACKS)


def _written(told: Case) -> Case:
    """It writes the calls of an assistant's turn in place of what was said in it."""
    turns = [dataclasses.replace(turn, texts=()) if turn.calls else turn for turn in told.turns]
    return dataclasses.replace(told, turns=tuple(turns))
