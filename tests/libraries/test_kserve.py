"""KServe's two events of one call, written with the CloudEvents SDK that KServe's server uses.

KServe's payload logger is a Go program and its OpenAI server imports vLLM: neither runs here. The bodies
are the client's and the stub's own, the envelopes' attributes are those of KServe's ``pkg/logger``.
"""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from cloudevents.http import CloudEvent
from cloudevents.kafka import to_binary, to_structured

from tests.libraries.cases import CASES, Case, openai_request
from tests.libraries.reading import Written, check, check_failed, read
from tests.libraries.stub import Stub

named = pytest.mark.parametrize("told", CASES, ids=lambda told: told.name)


def event(side: str, body: Any, *, binary: bool) -> Written:
    attributes = {
        "type": f"org.kubeflow.serving.inference.{side}",
        "source": "http://localhost:9081/",
        "id": "3b3a6c4e-55d2-4a76-9a44-6ad1b1f1b1e2",
        "datacontenttype": "application/json",
        "inferenceservicename": "assistant",
        "namespace": "prod",
        "component": "predictor",
        "endpoint": "",
    }
    message = (to_binary if binary else to_structured)(CloudEvent(attributes, body))
    value = message.value if isinstance(message.value, bytes) else message.value.encode()
    return Written(value=value, headers=tuple(message.headers.items()))


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "structured"])
@named
def test_two_events(told: Case, binary: bool, stub: Stub) -> None:
    client = openai.OpenAI(base_url=f"{stub.url}/v1", api_key="none", max_retries=0)
    stub.reply = told.reply
    halves = []
    try:
        served = client.chat.completions.with_raw_response.create(**openai_request(told))
    except openai.APIStatusError:
        # KServe logs no response of another status than 200
        halves = [event("request", stub.requests[-1], binary=binary)]
    else:
        body = served.http_response.read()
        halves = [
            event("request", stub.requests[-1], binary=binary),
            event("response", body.decode() if told.streamed else json.loads(body), binary=binary),
        ]
    if told.reply.status != 200:
        check_failed(told, *halves)
        return
    check(told, read(*halves), "openai")
    check(told, read(*reversed(halves)), "openai")
