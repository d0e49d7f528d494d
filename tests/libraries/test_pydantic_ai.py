"""pydantic-ai's own instrumentation, over both of the APIs that its models speak."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import anthropic
import openai
import pytest
from pydantic_ai import (
    BinaryContent,
    ModelHTTPError,
    ModelMessage,
    ModelRequest,
    ModelResponse,
    SystemPromptPart,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.direct import model_request, model_request_stream
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.instrumented import InstrumentationSettings
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.tools import ToolDefinition

from tests.libraries.cases import CASES, PIXEL, TOOL, Case, Turn, case
from tests.libraries.otlp import Telemetry
from tests.libraries.reading import check, check_failed, check_refused, read
from tests.libraries.stub import Stub

named = pytest.mark.parametrize("told", CASES, ids=lambda told: told.name)


def history(told: Case) -> list[ModelMessage]:
    messages: list[ModelMessage] = []
    for turn in told.turns:
        if turn.role == "assistant":
            said: list[Any] = [TextPart(text) for text in turn.texts]
            said += [ToolCallPart(c.name, c.arguments, tool_call_id=c.id) for c in turn.calls]
            messages.append(ModelResponse(parts=said))
            continue
        if not messages or isinstance(messages[-1], ModelResponse):
            messages.append(ModelRequest(parts=[]))
        messages[-1].parts.append(_part(turn))
    return messages


def _part(turn: Turn) -> Any:
    if turn.role == "system":
        return SystemPromptPart(turn.texts[0])
    if turn.answers is not None:
        return ToolReturnPart(TOOL["name"], turn.texts[0], tool_call_id=turn.answers)
    content: list[Any] = list(turn.texts)
    if turn.image:
        content.append(BinaryContent(base64.b64decode(PIXEL), media_type="image/png"))
    return UserPromptPart(content if len(content) > 1 else turn.texts[0])


def asked(told: Case, model: Any, telemetry: Telemetry, **instrumentation: Any) -> None:
    tool = ToolDefinition(
        name=TOOL["name"],
        description=TOOL["description"],
        parameters_json_schema=TOOL["parameters"],
    )
    drawn = {key: value for key, value in told.sampling.items() if key != "stop"}
    options: dict[str, Any] = {
        "model_settings": {**drawn, "stop_sequences": told.sampling.get("stop", [])},
        "model_request_parameters": ModelRequestParameters(
            function_tools=[tool] if told.tools else []
        ),
        "instrument": InstrumentationSettings(tracer_provider=telemetry.tracing, **instrumentation),
    }

    async def called() -> None:
        if told.streamed:
            async with model_request_stream(model, history(told), **options) as events:
                async for _ in events:
                    pass
        else:
            await model_request(model, history(told), **options)

    asyncio.run(called())


def model_of(api: str, stub: Stub) -> Any:
    if api == "anthropic":
        client = anthropic.AsyncAnthropic(base_url=stub.url, api_key="none", max_retries=0)
        return AnthropicModel(
            "claude-sonnet-4-5", provider=AnthropicProvider(anthropic_client=client)
        )
    client = openai.AsyncOpenAI(base_url=f"{stub.url}/v1", api_key="none", max_retries=0)
    kind = OpenAIChatModel if api == "openai" else OpenAIResponsesModel
    return kind("gpt-4o", provider=OpenAIProvider(openai_client=client))


@pytest.mark.parametrize("api", ["openai", "responses", "anthropic"])
@named
def test_spans(told: Case, api: str, stub: Stub) -> None:
    telemetry = Telemetry()
    stub.reply = told.reply
    try:
        asked(told, model_of(api, stub), telemetry)
    except ModelHTTPError:
        for written in telemetry.taken():
            check_failed(told, written)
        return
    for written in telemetry.taken():
        check(told, read(written), "otel", lacks=("stop",))


def test_content_turned_off(stub: Stub) -> None:
    telemetry = Telemetry()
    told = case("system")
    stub.reply = told.reply
    asked(told, model_of("openai", stub), telemetry, include_content=False)
    for written in telemetry.taken():
        check_refused(written, "content_redacted")
