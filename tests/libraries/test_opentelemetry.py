"""OpenTelemetry's own instrumentation of OpenAI's client, in the convention that has content on spans."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest
from opentelemetry.instrumentation.openai_v2 import OpenAIInstrumentor

from tests.libraries.cases import CASES, Case, openai_request
from tests.libraries.otlp import Telemetry, instrumented
from tests.libraries.reading import check, check_failed, check_refused, read, to_the_end
from tests.libraries.stub import Stub

named = pytest.mark.parametrize("told", CASES, ids=lambda told: told.name)
LATEST = "gen_ai_latest_experimental"


@pytest.fixture(scope="module")
def telemetry() -> Iterator[Telemetry]:
    kept = Telemetry()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", LATEST)
        patch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "SPAN_AND_EVENT")
        patch.setenv("OTEL_INSTRUMENTATION_GENAI_EMIT_EVENT", "true")
        with instrumented(OpenAIInstrumentor(), kept):
            yield kept


@named
def test_content_on_spans(told: Case, stub: Stub, telemetry: Telemetry) -> None:
    client = openai.OpenAI(base_url=f"{stub.url}/v1", api_key="none", max_retries=0)
    stub.reply = told.reply
    failed = False
    try:
        to_the_end(client.chat.completions.create(**openai_request(told)))
    except openai.APIStatusError:
        failed = True
    for written in (*telemetry.taken(), *telemetry.taken_logs()):
        if failed:
            check_failed(told, written)
        elif told.name in ("parts", "image"):
            check_refused(written, "content_redacted")
        else:
            check(told, read(written), "otel", lacks=("reasoning", "tools"))
