"""Shapes that the real libraries write, found by the round trips in tests/libraries."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from monitor.ingest.formats import parse
from monitor.settings import IngestSettings
from monitor.values.prompts import DeadLetter, DeadReason, Prompt, RawRecord, Skip, SkipReason

SETTINGS = IngestSettings()
Build = Callable[..., RawRecord]
EGGS = {"role": "user", "content": "How do I boil an egg?"}


def read(record: RawRecord) -> Prompt:
    (parsed,) = parse(record, SETTINGS)
    assert isinstance(parsed, Prompt), parsed
    return parsed


def responses_events(ending: str, **ended: Any) -> list[dict[str, Any]]:
    text = {"type": "output_text", "text": "Ten minutes."}
    said = [{"type": "message", "role": "assistant", "content": [text]}]
    usage = {"input_tokens": 14, "output_tokens": 6}
    last = {"object": "response", "model": "m", "output": said, "usage": usage, **ended}
    return [
        {"type": "response.created", "response": {"object": "response", "output": []}},
        {"type": "response.output_text.delta", "delta": "Ten minutes."},
        {"type": f"response.{ending}", "response": last},
    ]


CHUNKS = [
    {"id": "c1", "model": "m", "choices": [{"index": 0, "delta": {"content": "Ten "}}]},
    {"id": "c1", "model": "m", "choices": [{"index": 0, "delta": {"content": "minutes."}}]},
    {"id": "c1", "model": "m", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
    {"id": "c1", "choices": [], "usage": {"prompt_tokens": 14, "completion_tokens": 6}},
]
BLOCKS = [
    {"type": "message_start", "message": {"id": "c1", "model": "m", "usage": {"input_tokens": 14}}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"text": "Ten minutes."}},
    {
        "type": "message_delta",
        "delta": {"stop_reason": "end_turn"},
        "usage": {"output_tokens": 6, "input_tokens": None},
    },
    {"type": "message_stop"},
]


@pytest.mark.parametrize("written", ["text", "array"])
@pytest.mark.parametrize(
    ("request_", "events"),
    [
        ({"messages": [EGGS]}, CHUNKS),
        ({"system": "Be brief.", "messages": [EGGS]}, BLOCKS),
        ({"input": "How do I boil an egg?"}, responses_events("completed")),
    ],
    ids=["chunks", "blocks", "items"],
)
def test_a_stream_of_events_is_the_answer_that_it_amounts_to(
    record: Build, request_: dict[str, Any], events: list[dict[str, Any]], written: str
) -> None:
    response: Any = events
    if written == "text":
        response = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
    prompt = read(record({"request": request_, "response": response}))
    assert (prompt.response, prompt.model) == ("Ten minutes.", "m")
    assert prompt.served is not None
    assert (prompt.served.prompt_tokens, prompt.served.completion_tokens) == (14, 6)


@pytest.mark.parametrize(
    ("ending", "ended", "finish"),
    [
        ("completed", {"status": "completed"}, "completed"),
        (
            "incomplete",
            {"incomplete_details": {"reason": "max_output_tokens"}},
            "max_output_tokens",
        ),
    ],
)
def test_a_streamed_response_ends_in_several_ways(
    record: Build, ending: str, ended: dict[str, Any], finish: str
) -> None:
    events = responses_events(ending, **ended)
    text = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
    prompt = read(record({"request": {"input": "Eggs?"}, "response": text}))
    assert prompt.response == "Ten minutes."
    assert prompt.sampling is not None
    assert prompt.sampling.finish_reason == finish


def test_a_streamed_response_that_failed_is_no_answer(record: Build) -> None:
    events = responses_events("failed", output=[], error={"message": "out of eggs"})
    text = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
    assert not read(record({"request": {"input": "Eggs?"}, "response": text})).answered


@pytest.mark.parametrize(
    "events",
    [
        [CHUNKS[0], {"error": {"message": "out of eggs"}}],
        [*BLOCKS[:3], {"type": "error", "error": {"message": "out of eggs"}}],
        [responses_events("completed")[0], {"type": "error", "message": "out of eggs"}],
    ],
    ids=["chunks", "blocks", "items"],
)
def test_a_stream_that_broke_off_in_an_error_is_no_answer(
    record: Build, events: list[dict[str, Any]]
) -> None:
    text = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
    assert not read(record({"request": {"messages": [EGGS]}, "response": text})).answered


def test_a_streamed_answer_of_anthropic_continues_the_prefill(record: Build) -> None:
    """Its API is told by the stream, where the request has no key of its own."""
    begun = [EGGS, {"role": "assistant", "content": "Ten"}]
    prompt = read(record({"request": {"messages": begun}, "response": BLOCKS}))
    assert (prompt.source_format, prompt.continues) == ("anthropic", True)


@pytest.mark.parametrize(
    ("request_", "response"),
    [
        ({"messages": [EGGS], "stop_sequences": ["END"]}, {"error": "out of eggs"}),
        ({"messages": [EGGS], "tools": [{"name": "pan", "input_schema": {}}]}, None),
        ({"messages": [EGGS]}, {"type": "error", "error": {"type": "api_error"}}),
    ],
    ids=["its stop sequences", "its tools", "its error"],
)
def test_a_failed_call_of_anthropic_is_told_by_its_own_keys(
    record: Build, request_: dict[str, Any], response: Any
) -> None:
    prompt = read(record({"request": request_, "response": response}))
    assert (prompt.source_format, prompt.answered) == ("anthropic", False)


def otlp(**attributes: str) -> dict[str, Any]:
    listed = [{"key": key, "value": {"stringValue": value}} for key, value in attributes.items()]
    span = {"traceId": "0af7", "spanId": "b7ad", "attributes": listed}
    span["endTimeUnixNano"] = "1772366370000000000"
    return {"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}


def langfuse(**more: str) -> dict[str, Any]:
    return otlp(
        **{
            "langfuse.observation.type": "generation",
            "langfuse.observation.input": json.dumps([EGGS]),
            "langfuse.observation.model.name": "m",
            "langfuse.observation.model.parameters": '{"temperature": 0.7}',
            **{f"langfuse.observation.{key}": value for key, value in more.items()},
        }
    )


def test_a_span_of_langfuse_is_read(record: Build) -> None:
    said = {"role": "assistant", "content": "Ten minutes."}
    prompt = read(
        record(
            langfuse(
                output=json.dumps(said),
                usage_details='{"prompt_tokens": 14, "completion_tokens": 6}',
                **{"metadata.finish_reason": '"stop"'},
            )
        )
    )
    assert (prompt.source_format, prompt.model) == ("langfuse", "m")
    assert (prompt.prompt_id, prompt.conversation_id) == ("0af7/b7ad", "0af7")
    assert prompt.messages[0].content == EGGS["content"]
    assert prompt.response == "Ten minutes."
    assert prompt.served is not None
    assert prompt.served.prompt_tokens == 14
    assert prompt.sampling is not None
    assert (prompt.sampling.temperature, prompt.sampling.finish_reason) == (0.7, "stop")


def test_a_failed_observation_of_langfuse_has_no_answer(record: Build) -> None:
    assert not read(record(langfuse(level="ERROR", output="Out of eggs."))).answered


def test_other_observations_of_langfuse_are_no_prompts(record: Build) -> None:
    document = otlp(**{"langfuse.observation.type": "span", "langfuse.observation.input": "x"})
    (parsed,) = parse(record(document), SETTINGS)
    assert isinstance(parsed, Skip)
    assert parsed.reason is SkipReason.NOT_A_PROMPT


@pytest.mark.parametrize("outputs", [{"output": None}, {}, None, {"output": "Out of eggs."}])
def test_a_failed_run_of_langsmith_has_no_answer(record: Build, outputs: Any) -> None:
    run = {"run_type": "llm", "inputs": {"messages": [EGGS]}, "outputs": outputs}
    assert not read(record({**run, "error": "BadRequestError(…)"})).answered


ITEMS = [
    {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Which pan?"}]},
    {"type": "function_call", "call_id": "c", "name": "find_pan", "arguments": "{}"},
]


@pytest.mark.parametrize("written", ["structure", "text"])
@pytest.mark.parametrize("output", [ITEMS, ITEMS[1]], ids=["items", "one item"])
def test_output_items_alone_are_an_answer(record: Build, output: Any, written: str) -> None:
    """The Responses API's items without the response around them, as Langfuse keeps them."""
    given = json.dumps(output) if written == "text" else output
    generation = {"type": "GENERATION", "traceId": "t", "input": [EGGS], "output": given}
    prompt = read(record(generation))
    assert [call.name for call in prompt.tool_calls] == ["find_pan"]
    assert prompt.response is None


ASKED = [{"role": "user", "parts": [{"type": "text", "content": "How do I boil an egg?"}]}]


def genai(*messages: dict[str, Any], output: Any = None) -> dict[str, Any]:
    attributes = {
        "gen_ai.operation.name": "chat",
        "gen_ai.input.messages": json.dumps([*messages]),
    }
    if output is not None:
        attributes["gen_ai.output.messages"] = json.dumps(output)
    return otlp(**attributes)


@pytest.mark.parametrize("role", ["system", "user", "tool"])
def test_a_message_whose_parts_the_sender_left_out_is_not_half_a_chat(
    record: Build, role: str
) -> None:
    """OpenTelemetry's own instrumentation of OpenAI writes no parts where content came in parts."""
    (parsed,) = parse(record(genai(*ASKED, {"role": role, "parts": []})), SETTINGS)
    assert isinstance(parsed, Skip)
    assert parsed.reason is SkipReason.CONTENT_REDACTED


def test_an_assistant_that_said_nothing_is_no_content_left_out(record: Build) -> None:
    prompt = read(record(genai(*ASKED, {"role": "assistant", "parts": []}, *ASKED)))
    assert [message.content for message in prompt.messages] == [
        "How do I boil an egg?",
        "",
        "How do I boil an egg?",
    ]


@pytest.mark.parametrize(
    "written",
    [
        [{"type": "summary_text", "text": "Eggs set."}],
        [{"type": "reasoning_text", "text": "Eggs"}, {"type": "reasoning_text", "text": "set."}],
    ],
)
def test_reasoning_written_as_json_is_its_text(record: Build, written: Any) -> None:
    """OpenLLMetry writes the Responses API's summary as JSON into a reasoning part."""
    thought = {"type": "reasoning", "content": json.dumps(written)}
    said = {"role": "assistant", "parts": [thought, {"type": "text", "content": "Ten minutes."}]}
    prompt = read(record(genai(*ASKED, output=[said])))
    assert prompt.reasoning == "\n".join(part["text"] for part in written)


def test_reasoning_that_is_json_of_another_kind_stays_as_it_is(record: Build) -> None:
    thought = '[{"pan": "blue"}]'
    part = {"type": "reasoning", "content": thought}
    prompt = read(record(genai(*ASKED, output=[{"role": "assistant", "parts": [part]}])))
    assert prompt.reasoning == thought


def openinference(**more: str) -> dict[str, Any]:
    return otlp(
        **{
            "openinference.span.kind": "LLM",
            "llm.input_messages.0.message.role": "user",
            "llm.input_messages.0.message.content": "How do I boil an egg?",
            "llm.output_messages.0.message.role": "assistant",
            **{f"llm.output_messages.0.message.{key}": value for key, value in more.items()},
        }
    )


CALL = {
    "tool_call.id": "c",
    "tool_call.function.name": "find_pan",
    "tool_call.function.arguments": "{}",
}


@pytest.mark.parametrize(
    "places", [["contents.1"], ["tool_calls.0"], ["contents.1", "tool_calls.0"]]
)
def test_a_call_among_the_contents_of_openinference_counts_once(
    record: Build, places: list[str]
) -> None:
    given = {f"{place}.{key}": value for place in places for key, value in CALL.items()}
    given |= {"contents.0.message_content.type": "text", "contents.0.message_content.text": "So"}
    if "contents.1" in places:
        given["contents.1.message_content.type"] = "tool_use"
    prompt = read(record(openinference(**given)))
    assert prompt.response == "So"
    assert [(c.name, c.arguments, c.call_id) for c in prompt.tool_calls] == [
        ("find_pan", "{}", "c")
    ]


def test_a_body_of_anthropic_in_a_span_of_openinference_is_read_whole(record: Build) -> None:
    request = {"messages": [EGGS], "system": "Be brief.", "max_tokens": 100}
    said = [
        {"type": "thinking", "thinking": "Eggs set."},
        {"type": "text", "text": "Ten minutes."},
        {"type": "tool_use", "id": "c", "name": "find_pan", "input": {}},
    ]
    body = {"type": "message", "role": "assistant", "content": said, "stop_reason": "tool_use"}
    document = otlp(
        **{
            "openinference.span.kind": "LLM",
            "input.value": json.dumps(request),
            "output.value": json.dumps(body),
        }
    )
    prompt = read(record(document))
    assert [message.role for message in prompt.messages] == ["system", "user"]
    assert (prompt.response, prompt.reasoning) == ("Ten minutes.", "Eggs set.")
    assert [call.name for call in prompt.tool_calls] == ["find_pan"]


def mlflow(kind: str, **more: str) -> dict[str, Any]:
    """As MLflow's SDK sends its spans to a collector: every attribute as JSON."""
    return otlp(**{"mlflow.spanType": json.dumps(kind), **more})


def test_a_span_of_mlflow_is_read(record: Build) -> None:
    request = {"model": "m", "messages": [EGGS], "temperature": 0.7}
    message = {"role": "assistant", "content": "Ten minutes."}
    response = {"choices": [{"message": message, "finish_reason": "stop"}]}
    document = mlflow(
        "CHAT_MODEL",
        **{"mlflow.spanInputs": json.dumps(request), "mlflow.spanOutputs": json.dumps(response)},
    )
    prompt = read(record(document))
    assert (prompt.source_format, prompt.prompt_id) == ("mlflow", "0af7/b7ad")
    assert (prompt.response, prompt.model) == ("Ten minutes.", "m")
    assert prompt.recorded_at.timestamp() == 1772366370


def test_other_spans_of_mlflow_enclose_an_exchange(record: Build) -> None:
    document = mlflow("AGENT", **{"mlflow.spanInputs": json.dumps({"messages": [EGGS]})})
    (parsed,) = parse(record(document), SETTINGS)
    assert isinstance(parsed, Skip)
    assert parsed.reason is SkipReason.NOT_A_PROMPT


def litellm_responses(*items: dict[str, Any], **more: Any) -> dict[str, Any]:
    said = {
        "type": "message",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "Blue."}],
    }
    return {
        "call_type": "aresponses",
        "model": "m",
        "messages": [*items],
        "response": {"object": "response", "instructions": "Be brief.", "output": [said]},
        **more,
    }


def test_litellm_keeps_the_items_of_the_responses_api_as_messages(record: Build) -> None:
    call = {"type": "function_call", "call_id": "c", "name": "find_pan", "arguments": "{}"}
    result = {"type": "function_call_output", "call_id": "c", "output": "The blue pan."}
    prompt = read(record(litellm_responses(EGGS, call, {**call, "call_id": "d"}, result)))
    assert [message.role for message in prompt.messages] == ["system", "user", "assistant", "tool"]
    assert [call.call_id for call in prompt.messages[2].tool_calls] == ["c", "d"]
    assert prompt.messages[3].tool_call_id == "c"
    assert prompt.response == "Blue."


def test_a_response_of_litellm_that_goes_on_from_a_stored_one_is_not_half_read(
    record: Build,
) -> None:
    stored = {"model_parameters": {"previous_response_id": "resp_1"}}
    (parsed,) = parse(record(litellm_responses(EGGS, **stored)), SETTINGS)
    assert isinstance(parsed, DeadLetter)
    assert parsed.reason is DeadReason.DIALECT_NOT_READ


def test_parts_whose_content_the_sender_left_out_are_redacted(record: Build) -> None:
    """pydantic-ai without its content writes the kinds of the parts alone."""
    (parsed,) = parse(record(genai({"role": "user", "parts": [{"type": "text"}]})), SETTINGS)
    assert isinstance(parsed, Skip)
    assert parsed.reason is SkipReason.CONTENT_REDACTED


def test_calls_of_one_turn_in_messages_of_their_own_are_one_turn(record: Build) -> None:
    """OpenLLMetry writes every item of the Responses API as a message."""

    def called(name: str) -> dict[str, Any]:
        call = {"type": "tool_call", "id": name, "name": name, "arguments": {}}
        return {"role": "assistant", "parts": [call]}

    look = {"role": "assistant", "parts": [{"type": "text", "content": "Let me look."}]}
    result = {
        "role": "tool",
        "parts": [{"type": "tool_call_response", "id": "pan", "response": "None."}],
    }
    prompt = read(record(genai(*ASKED, look, called("pan"), called("pot"), result, called("pan"))))
    assert [
        (message.role, message.content, [call.name for call in message.tool_calls])
        for message in prompt.messages
    ] == [
        ("user", "How do I boil an egg?", []),
        ("assistant", "Let me look.", ["pan", "pot"]),
        ("tool", "None.", []),
        ("assistant", "", ["pan"]),
    ]


@pytest.mark.parametrize(
    "written",
    [
        "<anthropic.Stream object at 0x7fbeaef1b890>",
        "<async_generator object Service.answer at 0x7fbeaef1b890>",
        "<openai.Stream[openai.types.chat.ChatCompletionChunk] object at 0x10>",
        "ChatCompletion(id='c', choices=[Choice(message=ChatCompletionMessage(content='Ten.'))])",
        "Message(id='c', content=[TextBlock(text='Ten.', type='text')])",
    ],
)
@pytest.mark.parametrize("dialect", ["mlflow", "flat", "native"])
def test_the_name_of_a_python_object_is_not_what_the_model_said(
    record: Build, written: str, dialect: str
) -> None:
    """MLflow writes Anthropic's stream so."""
    request = {"messages": [EGGS]}
    document: dict[str, Any] = {
        "mlflow": mlflow(
            "CHAT_MODEL",
            **{
                "mlflow.spanInputs": json.dumps(request),
                "mlflow.spanOutputs": json.dumps(written),
            },
        ),
        "flat": {"input": request, "output": written},
        "native": {**request, "response": written},
    }[dialect]
    (parsed,) = parse(record(document), SETTINGS)
    assert isinstance(parsed, DeadLetter), parsed
    assert parsed.reason is DeadReason.INVALID_FIELD
    assert "Python" in parsed.detail


@pytest.mark.parametrize("said", ["<b>Ten</b>", "Message (id) means …", "<x object at hand>"])
def test_text_that_only_looks_like_one_is_what_the_model_said(record: Build, said: str) -> None:
    assert read(record({"messages": [EGGS], "response": said})).response == said


def test_a_stream_in_the_events_of_mlflow_is_the_answer(record: Build) -> None:
    """MLflow's own output of a stream leaves out calls and reasoning; its events hold every chunk."""
    call = {"index": 0, "id": "c", "function": {"name": "find_pan", "arguments": "{}"}}
    deltas: list[dict[str, Any]] = [{"reasoning_content": "Eggs."}, {"tool_calls": [call]}]
    chunks = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]})
    message = {"role": "assistant", "content": ""}
    document = mlflow(
        "CHAT_MODEL",
        **{
            "mlflow.spanInputs": json.dumps({"messages": [EGGS]}),
            "mlflow.spanOutputs": json.dumps({"choices": [{"message": message}]}),
        },
    )
    span = document["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
    span["events"] = [
        {
            "name": f"mlflow.chunk.item.{index}",
            "attributes": [
                {"key": "mlflow.chunk.value", "value": {"stringValue": json.dumps(chunk)}}
            ],
        }
        for index, chunk in enumerate(chunks)
    ]
    prompt = read(record(document))
    assert [call.name for call in prompt.tool_calls] == ["find_pan"]
    assert prompt.reasoning == "Eggs."
    assert prompt.sampling is not None
    assert prompt.sampling.finish_reason == "tool_calls"
    del span["events"][-1]
    assert read(record(document)).tool_calls == ()  # not whole: MLflow's own output
