"""The clients' own request and response objects, as a service that logs its calls would dump them."""

from __future__ import annotations

from typing import Any

import anthropic
import openai
import pytest

from tests.libraries.cases import CASES, Case, anthropic_request, openai_request, responses_request
from tests.libraries.reading import (
    ANTHROPIC_SAMPLING,
    RESPONSES_SAMPLING,
    check,
    check_failed,
    read,
)
from tests.libraries.stub import Stub

named = pytest.mark.parametrize("told", CASES, ids=lambda told: told.name)


@named
def test_openai_chat(told: Case, stub: Stub) -> None:
    client = openai.OpenAI(base_url=f"{stub.url}/v1", api_key="none", max_retries=0)
    stub.reply = told.reply
    try:
        served = client.chat.completions.create(**openai_request(told))
        if told.streamed:
            served = [event.model_dump(mode="json") for event in served]
        else:
            served = served.model_dump(mode="json")
    except openai.APIStatusError as error:
        check_failed(told, {"request": stub.requests[-1], "response": {"error": error.body}})
        return
    document = {"request": stub.requests[-1], "response": served}
    check(told, read(document), "openai")


@named
def test_openai_responses(told: Case, stub: Stub) -> None:
    client = openai.OpenAI(base_url=f"{stub.url}/v1", api_key="none", max_retries=0)
    stub.reply = told.reply
    try:
        served: Any = client.responses.create(**responses_request(told))
        if told.streamed:
            served = [event.model_dump(mode="json") for event in served]
        else:
            served = served.model_dump(mode="json")
    except openai.APIStatusError as error:
        check_failed(told, {"request": stub.requests[-1], "response": {"error": error.body}})
        return
    document = {"request": stub.requests[-1], "response": served}
    check(told, read(document), "responses", sampling=RESPONSES_SAMPLING)


@named
def test_anthropic(told: Case, stub: Stub) -> None:
    client = anthropic.Anthropic(base_url=stub.url, api_key="none", max_retries=0)
    stub.reply = told.reply
    try:
        served: Any = client.messages.create(**anthropic_request(told))
        if told.streamed:
            served = [event.model_dump(mode="json") for event in served]
        else:
            served = served.model_dump(mode="json")
    except anthropic.APIStatusError as error:
        check_failed(told, {"request": stub.requests[-1], "response": error.body})
        return
    document = {"request": stub.requests[-1], "response": served}
    check(told, read(document), "anthropic", sampling=ANTHROPIC_SAMPLING)


@pytest.mark.parametrize("streamed", [False, True])
def test_openai_legacy_completion(streamed: bool, stub: Stub) -> None:
    client = openai.OpenAI(base_url=f"{stub.url}/v1", api_key="none", max_retries=0)
    stub.reply = CASES[0].reply
    prompt = "Once upon a time 🥚 <|im_start|>"
    served: Any = client.completions.create(
        model="gpt-3.5-turbo-instruct", prompt=prompt, max_tokens=9, stream=streamed
    )
    if streamed:
        served = [event.model_dump(mode="json") for event in served]
    else:
        served = served.model_dump(mode="json")
    found = read({"request": stub.requests[-1], "response": served})
    assert (found.text, found.response) == (prompt, stub.reply.text)
    assert found.sampling is not None
    assert found.sampling.max_tokens == 9
