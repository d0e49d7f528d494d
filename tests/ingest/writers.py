"""The same chat written in each dialect, the way its own documentation has it.

A `Conversation` is what was said; a writer makes the record of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

Document = dict[str, Any]


@dataclass(frozen=True)
class Call:
    id: str
    name: str
    arguments: dict[str, Any]
    result: str


@dataclass(frozen=True)
class Round:
    """A question, the calls that were made for it, and what was said in the end."""

    asked: tuple[str, ...]
    """One or several parts of text."""
    calls: tuple[Call, ...]
    said: str
    reasoning: str = ""


@dataclass(frozen=True)
class Conversation:
    """The last round's ``said`` is the served answer."""

    system: str
    rounds: tuple[Round, ...]


def openai_messages(told: Conversation, *, answer: bool = False) -> list[Document]:
    messages: list[Document] = [{"role": "system", "content": told.system}] if told.system else []
    for index, turn in enumerate(told.rounds):
        parts = [{"type": "text", "text": text} for text in turn.asked]
        messages.append({"role": "user", "content": parts if len(parts) > 1 else turn.asked[0]})
        if turn.calls:
            calls = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": json.dumps(call.arguments)},
                }
                for call in turn.calls
            ]
            messages.append({"role": "assistant", "content": None, "tool_calls": calls})
            messages += [
                {"role": "tool", "tool_call_id": call.id, "content": call.result}
                for call in turn.calls
            ]
        if index < len(told.rounds) - 1 or answer:
            messages.append({"role": "assistant", "content": turn.said, **_thought(turn)})
    return messages


def _thought(turn: Round) -> Document:
    return {"reasoning_content": turn.reasoning} if turn.reasoning else {}


def completion(told: Conversation) -> Document:
    last = told.rounds[-1]
    message = {"role": "assistant", "content": last.said, **_thought(last)}
    return {"object": "chat.completion", "choices": [{"index": 0, "message": message}]}


def native(told: Conversation) -> Document:
    return {"messages": openai_messages(told, answer=True)}


def openai(told: Conversation) -> Document:
    return {"request": {"messages": openai_messages(told)}, "response": completion(told)}


def litellm(told: Conversation) -> Document:
    return {
        "call_type": "acompletion",
        "messages": openai_messages(told),
        "response": completion(told),
    }


def responses(told: Conversation) -> Document:
    items: list[Document] = []
    output: list[Document] = []
    for index, turn in enumerate(told.rounds):
        asked = [{"type": "input_text", "text": text} for text in turn.asked]
        items.append({"role": "user", "content": asked})
        items += [
            {
                "type": "function_call",
                "call_id": call.id,
                "name": call.name,
                "arguments": json.dumps(call.arguments),
            }
            for call in turn.calls
        ]
        items += [
            {"type": "function_call_output", "call_id": call.id, "output": call.result}
            for call in turn.calls
        ]
        into = items if index < len(told.rounds) - 1 else output
        if turn.reasoning:
            summary = [{"type": "summary_text", "text": turn.reasoning}]
            into.append({"type": "reasoning", "summary": summary})
        text = [{"type": "output_text", "text": turn.said}]
        into.append({"type": "message", "role": "assistant", "content": text})
    request: Document = {"input": items}
    if told.system:
        request["instructions"] = told.system
    return {"request": request, "response": {"object": "response", "output": output}}


def anthropic(told: Conversation) -> Document:
    messages: list[Document] = []
    served: list[Document] = []
    for index, turn in enumerate(told.rounds):
        messages.append(
            {"role": "user", "content": [{"type": "text", "text": text} for text in turn.asked]}
        )
        if turn.calls:
            used = [
                {"type": "tool_use", "id": c.id, "name": c.name, "input": c.arguments}
                for c in turn.calls
            ]
            results = [
                {"type": "tool_result", "tool_use_id": c.id, "content": c.result}
                for c in turn.calls
            ]
            messages += [
                {"role": "assistant", "content": used},
                {"role": "user", "content": results},
            ]
        blocks: list[Document] = []
        if turn.reasoning:
            blocks.append({"type": "thinking", "thinking": turn.reasoning, "signature": "s"})
        blocks.append({"type": "text", "text": turn.said})
        if index < len(told.rounds) - 1:
            messages.append({"role": "assistant", "content": blocks})
        else:
            served = blocks
    request: Document = {"max_tokens": 10, "messages": messages}
    if told.system:
        request["system"] = [{"type": "text", "text": told.system}]
    answer = {"type": "message", "role": "assistant", "content": served}
    return {"request": request, "response": answer}


def bedrock(told: Conversation) -> Document:
    messages: list[Document] = []
    served: list[Document] = []
    for index, turn in enumerate(told.rounds):
        messages.append({"role": "user", "content": [{"text": text} for text in turn.asked]})
        if turn.calls:
            used = [
                {"toolUse": {"toolUseId": c.id, "name": c.name, "input": c.arguments}}
                for c in turn.calls
            ]
            results = [
                {"toolResult": {"toolUseId": c.id, "content": [{"text": c.result}]}}
                for c in turn.calls
            ]
            messages += [
                {"role": "assistant", "content": used},
                {"role": "user", "content": results},
            ]
        blocks: list[Document] = []
        if turn.reasoning:
            blocks.append({"reasoningContent": {"reasoningText": {"text": turn.reasoning}}})
        blocks.append({"text": turn.said})
        if index < len(told.rounds) - 1:
            messages.append({"role": "assistant", "content": blocks})
        else:
            served = blocks
    body: Document = {"messages": messages}
    if told.system:
        body["system"] = [{"text": told.system}]
    output = {"output": {"message": {"role": "assistant", "content": served}}}
    return {
        "schemaType": "ModelInvocationLog",
        "operation": "Converse",
        "input": {"inputBodyJson": body},
        "output": {"outputBodyJson": output},
    }


def gemini(told: Conversation) -> Document:
    contents: list[Document] = []
    served: list[Document] = []
    for index, turn in enumerate(told.rounds):
        contents.append({"role": "user", "parts": [{"text": text} for text in turn.asked]})
        if turn.calls:
            called = [
                {"functionCall": {"id": c.id, "name": c.name, "args": c.arguments}}
                for c in turn.calls
            ]
            results = [{"functionResponse": {"id": c.id, "response": c.result}} for c in turn.calls]
            contents += [{"role": "model", "parts": called}, {"role": "user", "parts": results}]
        parts: list[Document] = []
        if turn.reasoning:
            parts.append({"text": turn.reasoning, "thought": True})
        parts.append({"text": turn.said})
        if index < len(told.rounds) - 1:
            contents.append({"role": "model", "parts": parts})
        else:
            served = parts
    request: Document = {"contents": contents}
    if told.system:
        request["systemInstruction"] = {"parts": [{"text": told.system}]}
    return {
        "request": request,
        "response": {"candidates": [{"content": {"role": "model", "parts": served}}]},
    }


def _otel_messages(told: Conversation) -> tuple[list[Document], list[Document]]:
    messages: list[Document] = []
    output: list[Document] = []
    for index, turn in enumerate(told.rounds):
        asked = [{"type": "text", "content": text} for text in turn.asked]
        messages.append({"role": "user", "parts": asked})
        if turn.calls:
            called = [
                {"type": "tool_call", "id": c.id, "name": c.name, "arguments": c.arguments}
                for c in turn.calls
            ]
            messages.append({"role": "assistant", "parts": called})
            messages += [
                {
                    "role": "tool",
                    "parts": [{"type": "tool_call_response", "id": c.id, "response": c.result}],
                }
                for c in turn.calls
            ]
        parts: list[Document] = []
        if turn.reasoning:
            parts.append({"type": "reasoning", "content": turn.reasoning})
        parts.append({"type": "text", "content": turn.said})
        last = index == len(told.rounds) - 1
        (output if last else messages).append({"role": "assistant", "parts": parts})
    return messages, output


def otel(told: Conversation) -> Document:
    messages, output = _otel_messages(told)
    attributes = {
        "gen_ai.operation.name": "chat",
        "gen_ai.input.messages": json.dumps(messages),
        "gen_ai.output.messages": json.dumps(output),
    }
    if told.system:
        system = [{"type": "text", "content": told.system}]
        attributes["gen_ai.system_instructions"] = json.dumps(system)
    return {"attributes": attributes}


def otel_events(told: Conversation) -> Document:
    """Events of a span, with the content of each as JSON."""
    events = []
    for message in openai_messages(told):
        name = f"gen_ai.{message['role']}.message"
        events.append({"name": name, "attributes": {"gen_ai.event.content": json.dumps(message)}})
    message = completion(told)["choices"][0]["message"]
    content = json.dumps({"index": 0, "message": message})
    events.append({"name": "gen_ai.choice", "attributes": {"gen_ai.event.content": content}})
    return {"attributes": {"gen_ai.operation.name": "chat"}, "events": events}


def indexed(told: Conversation) -> Document:
    """OpenLLMetry's attributes."""
    attributes: Document = {"llm.request.type": "chat"}
    for index, message in enumerate(openai_messages(told)):
        at = f"gen_ai.prompt.{index}"
        content = message["content"]
        attributes[f"{at}.role"] = message["role"]
        attributes[f"{at}.content"] = json.dumps(content) if isinstance(content, list) else content
        attributes[f"{at}.reasoning"] = message.get("reasoning_content")
        attributes[f"{at}.tool_call_id"] = message.get("tool_call_id")
        for place, call in enumerate(message.get("tool_calls", ())):
            attributes[f"{at}.tool_calls.{place}.id"] = call["id"]
            attributes[f"{at}.tool_calls.{place}.name"] = call["function"]["name"]
            attributes[f"{at}.tool_calls.{place}.arguments"] = call["function"]["arguments"]
    last = told.rounds[-1]
    attributes["gen_ai.completion.0.role"] = "assistant"
    attributes["gen_ai.completion.0.content"] = last.said
    attributes["gen_ai.completion.0.reasoning"] = last.reasoning or None
    return {"attributes": attributes}


def openinference(told: Conversation) -> Document:
    attributes: Document = {"openinference.span.kind": "LLM"}
    for index, message in enumerate(openai_messages(told)):
        _put(attributes, f"llm.input_messages.{index}.message", message)
    answer = completion(told)["choices"][0]["message"]
    _put(attributes, "llm.output_messages.0.message", answer)
    return {"attributes": attributes}


def _put(attributes: Document, at: str, message: Document) -> None:
    attributes[f"{at}.role"] = message["role"]
    if "tool_call_id" in message:
        attributes[f"{at}.tool_call_id"] = message["tool_call_id"]
    for place, call in enumerate(message.get("tool_calls", ())):
        inner = f"{at}.tool_calls.{place}.tool_call"
        attributes[f"{inner}.id"] = call["id"]
        attributes[f"{inner}.function.name"] = call["function"]["name"]
        attributes[f"{inner}.function.arguments"] = call["function"]["arguments"]
    content, thought = message["content"], message.get("reasoning_content")
    if isinstance(content, str) and not thought:
        attributes[f"{at}.content"] = content
        return
    parts = [{"type": "reasoning", "text": thought}] if thought else []
    listed = content if isinstance(content, list) else [{"type": "text", "text": content}]
    parts += listed if content is not None else []
    for place, part in enumerate(parts):
        attributes[f"{at}.contents.{place}.message_content.type"] = part["type"]
        attributes[f"{at}.contents.{place}.message_content.text"] = part["text"]


def vercel(told: Conversation) -> Document:
    messages: list[Document] = [{"role": "system", "content": told.system}] if told.system else []
    for index, turn in enumerate(told.rounds):
        asked = [{"type": "text", "text": text} for text in turn.asked]
        messages.append({"role": "user", "content": asked})
        if turn.calls:
            called = [
                {
                    "type": "tool-call",
                    "toolCallId": c.id,
                    "toolName": c.name,
                    "input": c.arguments,
                }
                for c in turn.calls
            ]
            results = [
                {
                    "type": "tool-result",
                    "toolCallId": c.id,
                    "toolName": c.name,
                    "output": {"type": "text", "value": c.result},
                }
                for c in turn.calls
            ]
            messages += [
                {"role": "assistant", "content": called},
                {"role": "tool", "content": results},
            ]
        if index < len(told.rounds) - 1:
            parts: list[Document] = []
            if turn.reasoning:
                parts.append({"type": "reasoning", "text": turn.reasoning})
            parts.append({"type": "text", "text": turn.said})
            messages.append({"role": "assistant", "content": parts})
    last = told.rounds[-1]
    attributes = {
        "ai.operationId": "ai.streamText.doStream",
        "ai.prompt.messages": json.dumps(messages),
        "ai.response.text": last.said,
    }
    if last.reasoning:
        attributes["ai.response.reasoning"] = last.reasoning
    return {"attributes": attributes}


def _strings(told: Conversation) -> tuple[str, str]:
    return json.dumps({"messages": openai_messages(told)}), json.dumps(completion(told))


def kong(told: Conversation) -> Document:
    request, response = _strings(told)
    return {"ai": {"proxy": {"payload": {"request": request, "response": response}}}}


def databricks(told: Conversation) -> Document:
    request, response = _strings(told)
    return {"databricks_request_id": "d", "request": request, "response": response}


def helicone(told: Conversation) -> Document:
    body = {"messages": openai_messages(told)}
    return {"request_body": body, "response_body": completion(told)}


def portkey(told: Conversation) -> Document:
    body = {"messages": openai_messages(told)}
    return {"request": {"body": body}, "response": {"body": completion(told)}}


def vertex(told: Conversation) -> Document:
    pair = gemini(told)
    return {"full_request": pair["request"], "full_response": json.dumps(pair["response"])}


def sagemaker(told: Conversation) -> Document:
    request, response = _strings(told)
    return {
        "captureData": {
            "endpointInput": {"data": request, "encoding": "JSON"},
            "endpointOutput": {"data": response, "encoding": "JSON"},
        }
    }


def mlflow(told: Conversation) -> Document:
    request, response = _strings(told)
    span = {
        "attributes": {
            "mlflow.spanType": '"CHAT_MODEL"',
            "mlflow.spanInputs": request,
            "mlflow.spanOutputs": response,
        }
    }
    return {"info": {}, "data": {"spans": [span]}}


def langsmith(told: Conversation) -> Document:
    types = {"system": "system", "user": "human", "assistant": "ai", "tool": "tool"}
    messages = []
    for message in openai_messages(told):
        given: Document = {"type": types[message["role"]], "content": message["content"] or ""}
        given["tool_call_id"] = message.get("tool_call_id")
        given["tool_calls"] = [
            {
                "name": call["function"]["name"],
                "args": json.loads(call["function"]["arguments"]),
                "id": call["id"],
            }
            for call in message.get("tool_calls", ())
        ]
        given["additional_kwargs"] = _reasoned(message)
        messages.append(given)
    answer = completion(told)["choices"][0]["message"]
    generation = {
        "text": answer["content"],
        "message": {
            "lc": 1,
            "type": "constructor",
            "id": ["langchain", "schema", "messages", "AIMessage"],
            "kwargs": {"content": answer["content"], "additional_kwargs": _reasoned(answer)},
        },
    }
    return {
        "run_type": "llm",
        "inputs": {"messages": [messages]},
        "outputs": {"generations": [[generation]]},
    }


def _reasoned(message: Document) -> Document:
    thought = message.get("reasoning_content")
    return {"reasoning_content": thought} if thought else {}


def langfuse(told: Conversation) -> Document:
    return {
        "type": "GENERATION",
        "traceId": "t",
        "input": openai_messages(told),
        "output": completion(told)["choices"][0]["message"],
    }


def flat(told: Conversation) -> Document:
    return {"input": {"messages": openai_messages(told)}, "output": completion(told)}


WRITERS: Final[dict[str, Callable[[Conversation], Document]]] = {
    writer.__name__: writer
    for writer in (
        *(native, openai, litellm, responses, anthropic, bedrock, gemini, otel, otel_events),
        *(indexed, openinference, vercel, kong, databricks, helicone, portkey, vertex),
        *(sagemaker, mlflow, langsmith, langfuse, flat),
    )
}
