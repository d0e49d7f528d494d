"""MLflow's tracing of OpenAI's and Anthropic's clients: the trace as JSON, and its spans at a collector."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import anthropic
import mlflow
import mlflow.anthropic
import mlflow.openai
import openai
import pytest
from mlflow.tracing.provider import provider
from mlflow.tracing.trace_manager import InMemoryTraceManager
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.libraries.cases import (
    CASES,
    Case,
    Document,
    anthropic_request,
    openai_request,
)
from tests.libraries.otlp import as_collector
from tests.libraries.reading import (
    ANTHROPIC_SAMPLING,
    check,
    check_failed,
    check_refused,
    read,
    to_the_end,
)
from tests.libraries.stub import Stub

named = pytest.mark.parametrize("told", CASES, ids=lambda told: told.name)


@pytest.fixture(scope="module", autouse=True)
def _traced(stub: Stub) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_ENABLE_ASYNC_TRACE_LOGGING", "false")
        patch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"{stub.url}/v1/traces")
        patch.setenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf")
        mlflow.set_tracking_uri("http://127.0.0.1:9")  # none: it is asked for nothing
        mlflow.openai.autolog()
        mlflow.anthropic.autolog()
        yield


def traced(call: Any, stub: Stub) -> tuple[Document, Document]:
    """A call's trace inside a service's own span: as JSON, and as a collector got it."""
    stub.exported.clear()
    with mlflow.start_span("service") as outer:
        with contextlib.suppress(openai.APIStatusError, anthropic.APIStatusError):
            to_the_end(call())
        with InMemoryTraceManager.get_instance().get_trace(outer.trace_id) as held:
            assert held is not None
            trace = json.loads(held.to_mlflow_trace().to_json())
    provider.get().force_flush()
    message = ExportTraceServiceRequest()
    for body in stub.exported:
        message.MergeFromString(body)
    return trace, as_collector(message)


@named
def test_openai_chat(told: Case, stub: Stub) -> None:
    client = openai.OpenAI(base_url=f"{stub.url}/v1", api_key="none", max_retries=0)
    stub.reply = told.reply
    for written in traced(lambda: client.chat.completions.create(**openai_request(told)), stub):
        if told.reply.status != 200:
            check_failed(told, written)
        else:
            check(told, read(written), "mlflow")


@named
def test_anthropic(told: Case, stub: Stub) -> None:
    client = anthropic.Anthropic(base_url=stub.url, api_key="none", max_retries=0)
    stub.reply = told.reply
    for written in traced(lambda: client.messages.create(**anthropic_request(told)), stub):
        if told.reply.status != 200:
            check_failed(told, written)
        elif told.streamed:  # it writes the name of the stream's class
            check_refused(written, "invalid_field")
        else:
            check(told, read(written), "mlflow", sampling=ANTHROPIC_SAMPLING)
