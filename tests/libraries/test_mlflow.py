"""MLflow's tracing of OpenAI's and Anthropic's clients: the trace as it is exported."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import mlflow
import mlflow.anthropic
import mlflow.openai
import openai
import pytest

from tests.libraries.cases import CASES, Case, anthropic_request, openai_request
from tests.libraries.reading import ANTHROPIC_SAMPLING, check, check_failed, read, to_the_end
from tests.libraries.stub import Stub

named = pytest.mark.parametrize("told", CASES, ids=lambda told: told.name)


@pytest.fixture(scope="module", autouse=True)
def _traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_ENABLE_ASYNC_TRACE_LOGGING", "false")
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        folder: Path = tmp_path_factory.mktemp("mlflow")
        mlflow.set_tracking_uri(folder.as_uri())
        mlflow.openai.autolog()
        mlflow.anthropic.autolog()
        yield
        mlflow.openai.autolog(disable=True)
        mlflow.anthropic.autolog(disable=True)


def trace() -> Any:
    found = mlflow.get_trace(mlflow.get_last_active_trace_id())
    assert found is not None
    return json.loads(found.to_json())


@named
def test_openai_chat(told: Case, stub: Stub) -> None:
    client = openai.OpenAI(base_url=f"{stub.url}/v1", api_key="none", max_retries=0)
    stub.reply = told.reply
    try:
        to_the_end(client.chat.completions.create(**openai_request(told)))
    except openai.APIStatusError:
        check_failed(told, trace())
        return
    check(told, read(trace()), "mlflow")


@named
def test_anthropic(told: Case, stub: Stub) -> None:
    client = anthropic.Anthropic(base_url=stub.url, api_key="none", max_retries=0)
    stub.reply = told.reply
    try:
        to_the_end(client.messages.create(**anthropic_request(told)))
    except anthropic.APIStatusError:
        check_failed(told, trace())
        return
    check(told, read(trace()), "mlflow", sampling=ANTHROPIC_SAMPLING)
