"""A request and its response, told apart by the API that they speak: what every gateway's log holds.

Requests are told by ``contents`` (Gemini), ``messages`` (chat), ``input`` (Responses), ``prompt`` and
``inputs`` (completions); responses by their own shape, so that a gateway which translates between
APIs is read too. A response of no known shape is refused: it is never taken for no answer.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Final

from monitor.ingest import chat, fields, parameters, parts
from monitor.ingest.dialects import gemini, openai, responses, stream
from monitor.ingest.exchange import NO_ANSWER, Answer, Asked, Exchange
from monitor.ingest.fields import Skipped, Unreadable
from monitor.ingest.foreign import Foreign
from monitor.values.making import quickly_made
from monitor.values.prompts import DeadReason, SkipReason

REQUEST_KEYS: Final = ("messages", "prompt", "contents", "input", "inputs")
CUT_MARKS: Final = ("truncated by litellm", "litellm_truncated")
"""What LiteLLM writes where it cut a text off."""
_OTHER_CALLS: Final = (
    *("embedding", "moderation", "/images", "/audio", "/rerank", "/score", "/classify", "/pooling"),
    *("/tokenize", "/detokenize", "/models", "/files", "/batches", "/vector_stores", "/ocr"),
)
_RESPONSE_MARK: Final = re.compile(
    r'"(choices|candidates|generations)"\s*:\s*\['
    r'|"object"\s*:\s*"(chat\.completion|text_completion|response)'
    r'|"type"\s*:\s*"message"\s*,|"role"\s*:\s*"assistant"'
)
_ANTHROPIC_KEYS: Final = frozenset({"system", "anthropic_version", "stop_sequences"})
_ITEM_MARK: Final = re.compile(r"\s*[\[{](?=.{0,1000}\"type\")", re.DOTALL)
_REPR: Final = re.compile(
    r"<[^<>\n]{1,200} object (?:[^<>\n]{1,200} )?at 0x[0-9a-fA-F]{1,16}>\s*$"
    r"|(ChatCompletion|Completion|Message|ModelResponse|Response)\(id='"
)
"""Names of Python objects that loggers write in place of a stream or a response."""
_NO_TEXT: Final = frozenset("{[<deCMR")
"""What streams (``data:``, ``event:``), JSON and Python reprs begin with: what else is text."""
_EMPTY_LOG: Final[tuple[Any, ...]] = (None, {}, [])


@quickly_made
@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A request and its response, as objects; ``request_at`` ends in a dot or is empty."""

    request: Mapping[str, Any]
    response: Any = None
    request_at: str = ""
    response_at: str = "response"
    logged: bool = True
    """A response was logged, be it empty or failed: then nothing in the request is the answer."""
    continues: bool = False
    """The API goes on with a final assistant message, as Anthropic's does."""
    spoken: bool = False
    """A response that is a string is the answer's text, which may be JSON for the user."""


def name_of(request: Mapping[str, Any], response: object = None) -> str:
    """The API's name, as `Exchange.source_format` has it."""
    if "contents" in request:
        return "gemini"
    if request.get("messages") is None and "input" in request:
        return "responses"
    if "inferenceConfig" in request or "toolConfig" in request:
        return "bedrock"
    if is_anthropic(request, response):
        return "anthropic"
    return "openai"


def is_anthropic(request: Mapping[str, Any], response: object) -> bool:
    if isinstance(response, dict) and "error" not in response:
        return response.get("type") == "message" and "content" in response
    if isinstance(response, dict) and response.get("type") == "error":
        return True
    tools = request.get("tools")
    first = tools[0] if isinstance(tools, list) and tools else None
    return not _ANTHROPIC_KEYS.isdisjoint(request) or (
        isinstance(first, dict) and "input_schema" in first
    )


def read(pair: Pair, nesting: int) -> tuple[Asked, Answer, dict[str, Any]]:
    """The prompt, the answer, and the response object (empty where it is none)."""
    response = opened_response(pair.response, pair.response_at, nesting, spoken=pair.spoken)
    if is_other_call(pair.request, response):
        raise Skipped(SkipReason.NOT_A_PROMPT)
    asked = ask(pair.request, pair.request_at, continues=pair.continues)
    answer = NO_ANSWER
    if pair.logged:
        answer = answered(response, pair.response_at)
    elif asked.messages and not asked.continues:
        asked, answer = _final(asked, pair.request_at)
    if pair.request.get("echo") is True:
        answer = openai.without_echo(asked, answer, pair.response_at)
    if asked.messages:
        answer = chat.thought_apart(answer)
    return asked, answer, response if isinstance(response, dict) else {}


def _final(asked: Asked, at: str) -> tuple[Asked, Answer]:
    rest = chat.Chat(messages=list(asked.messages), media=asked.media)
    answer = chat.final_answer(rest)
    if answer is None:
        return asked, NO_ANSWER
    before = chat.asked(rest, f"{at}messages")
    return dataclasses.replace(asked, messages=before.messages), answer


def exchange(
    source_format: str,
    pair: Pair,
    foreign: Foreign,
    nesting: int,
    **more: Any,
) -> Exchange:
    """The whole exchange; what ``more`` names wins where it is not None."""
    asked, answer, response = read(pair, nesting)
    at = f"{pair.response_at}."
    found: dict[str, Any] = {
        "counts": answer.counts,
        "prompt_id": foreign.identifier(response.get("id"), f"{at}id"),
        "model": foreign.first_name(response, at, "model", "modelVersion")
        or foreign.first_name(pair.request, pair.request_at, "model", "modelId"),
        "model_revision": foreign.name(
            response.get("system_fingerprint"), f"{at}system_fingerprint"
        ),
    }
    if more.get("timestamp") is None:
        found["timestamp"] = foreign.time(response.get("created"), f"{at}created") or foreign.time(
            response.get("created_at"), f"{at}created_at"
        )
    found |= {key: value for key, value in more.items() if value is not None}
    return Exchange(
        source_format=source_format,
        asked=asked,
        answer=answer,
        sampling=parameters.sampling(asked.parameters, answer.finish_reason),
        left_out=foreign.left_out,
        **found,
    )


def ask(request: Mapping[str, Any], where: str, *, continues: bool = False) -> Asked:
    if request.get("contents") is not None:
        return gemini.asked(request, where)
    if request.get("messages") is not None:
        return openai.asked(request, where, continues=continues)
    if request.get("input") is not None:
        return responses.asked(request, where)
    if request.get("inputs") is not None:
        return openai.asked_raw({**request, "prompt": request["inputs"]}, where)
    return openai.asked_raw(request, where)


def is_other_call(request: Mapping[str, Any], response: object) -> bool:
    """Embeddings, moderation, images and audio: calls of a mixed log that are no exchange in text."""
    if isinstance(response, dict):
        data = response.get("data")
        if isinstance(data, list) and response.get("choices") is None:
            first = data[0] if data else None
            if response.get("object") == "list" or (
                isinstance(first, dict) and not {"embedding", "b64_json", "url"}.isdisjoint(first)
            ):
                return True
        results = response.get("results")
        if isinstance(results, list) and isinstance(results[:1], list) and results:
            first = results[0]
            return isinstance(first, dict) and not {"flagged", "relevance_score"}.isdisjoint(first)
    if request.get("messages") is not None or "input" not in request:
        return False
    given, model = request["input"], request.get("model")
    if isinstance(given, list) and given and isinstance(given[0], str | int | list):
        return True
    if not {"encoding_format", "dimensions", "voice"}.isdisjoint(request):
        return True
    named = model.lower() if isinstance(model, str) else ""
    return "embed" in named or "moderation" in named or "rerank" in named


def is_other_route(url: object) -> bool:
    """Whether a request's path is that of a call that is no exchange in text."""
    return isinstance(url, str) and any(word in url.lower() for word in _OTHER_CALLS)


def opened_response(value: object, where: str, nesting: int, *, spoken: bool = False) -> Any:
    """The response as an object where it was logged as text (JSON, or a stream) or as a stream's events;
    else as it is.

    With ``spoken`` a string is what the model said: JSON in it stays text unless it is a response
    object of some API, whole or cut off.
    """
    if stream.is_events(value):
        return stream.assembled(value, where)
    if not isinstance(value, str) or not value.strip():
        return value
    refuse_cut(value, where)
    if value.lstrip()[0] not in _NO_TEXT:
        return value
    if stream.is_stream(value):
        return stream.whole(value, where, nesting)
    if _REPR.match(value) or (value.lstrip()[:2] == "{'" and not spoken):
        raise Unreadable(
            DeadReason.INVALID_FIELD, f"{where}: a Python repr, which is not JSON; log JSON"
        )
    if _ITEM_MARK.match(value) and (items := _items_in(value, where, nesting)) is not None:
        return items
    if value.lstrip()[:1] != "{" or (spoken and not _RESPONSE_MARK.search(value[:1_000])):
        return value
    try:
        return fields.decode(value, where, nesting)
    except Unreadable as error:
        if error.reason is not DeadReason.NOT_JSON:
            raise
    if fields.ends_early(value):
        raise fields.truncated(where, "raise its limit on the size of a log")
    return value


def _items_in(value: str, where: str, nesting: int) -> Any:
    """Output items that were logged as text; None where it is other text, such as JSON for the user."""
    try:
        given = fields.decode(value, where, nesting)
    except Unreadable:
        return None
    listed = given if isinstance(given, list) else [given]
    return given if listed and all(map(_is_item, listed)) else None


def _is_item(entry: object) -> bool:
    """An output item of the Responses API, told by its kind and by what that kind must hold."""
    if not isinstance(entry, dict):
        return False
    match entry.get("type"):
        case "function_call" | "custom_tool_call":
            return "call_id" in entry
        case "reasoning":
            return "summary" in entry
        case "message":
            return _is_output(entry.get("content"))
    return False


def _is_output(content: object) -> bool:
    """Content in the parts that the Responses API alone has."""
    return isinstance(content, list) and any(
        isinstance(part, dict) and part.get("type") == "output_text" for part in content
    )


def refuse_cut(value: str, where: str) -> None:
    end = value[-200:]
    for mark in CUT_MARKS:
        if mark in end:
            raise fields.truncated(
                where, "set MAX_STRING_LENGTH_PROMPT_IN_DB or log to another place"
            )


def answered(value: object, where: str) -> Answer:
    """The answer in a response of any API; empty for a failed call and for one that said nothing."""
    if isinstance(value, str):
        return Answer(text=value) if value else NO_ANSWER
    if value in _EMPTY_LOG:
        return NO_ANSWER
    match value:
        case dict():
            return _object(value, where)
        case list():
            return _listed(value, where)
    raise fields.invalid(where, "a string or an object", value)


def _object(response: dict[str, Any], where: str) -> Answer:
    if _is_item(response):
        return responses.output({"output": [response]}, where)
    if response.get("choices") is not None:
        return openai.choice(response, where)
    if response.get("error") is not None or response.get("type") == "error":
        return NO_ANSWER
    if isinstance(response.get("output"), list):
        return responses.output(response, where)
    if response.get("candidates") is not None:
        return gemini.candidate(response, where)
    if "promptFeedback" in response:  # Gemini: the prompt was blocked
        return NO_ANSWER
    for key in ("message", "output"):
        inner = response.get(key)
        if isinstance(inner, dict) and key == "output" and isinstance(inner.get("message"), dict):
            inner = inner["message"]  # Bedrock Converse
        elif not isinstance(inner, dict) or key == "output":
            continue
        said = chat.answer(inner, f"{where}.{key}")
        return _ended(said, response)
    if "content" in response or "tool_calls" in response or "function_call" in response:
        return _ended(chat.answer(response, where), response)
    if "refusal" in response or isinstance(response.get("parts"), list):
        return _ended(chat.answer(response, where), response)
    return _plain_text(response, where)


def _ended(said: Answer, response: Mapping[str, Any]) -> Answer:
    """Anthropic, Converse and Ollama say beside the message why it ended and what it counted."""
    reason = (
        response.get("stop_reason")
        or response.get("stopReason")
        or response.get("done_reason")
        or response.get("finish_reason")
    )
    counted = parameters.counts(response.get("usage"))
    if counted is None and "prompt_eval_count" in response:  # Ollama
        counted = parameters.served(response["prompt_eval_count"], response.get("eval_count"))
    return dataclasses.replace(said, finish_reason=parameters.label(reason), counts=counted)


def _plain_text(response: dict[str, Any], where: str) -> Answer:
    """Bare completions: TGI, Llama on Bedrock, LangChain, vLLM's offline outputs, Ollama."""
    for key in ("generated_text", "generation", "completion", "output_text", "text", "response"):
        if isinstance(response.get(key), str):
            return _ended(Answer(text=response[key] or None), response)
    for key in ("outputs", "generations", "results"):
        listed = response.get(key)
        while isinstance(listed, list) and listed and isinstance(listed[0], list):
            listed = listed[0]
        if isinstance(listed, list):
            if not listed:
                return NO_ANSWER
            return _object(
                fields.mapping(_first(listed[0]), f"{where}.{key}[0]"), f"{where}.{key}[0]"
            )
    raise Unreadable(
        DeadReason.INVALID_FIELD,
        f"{where}: an answer of no known shape; see docs/records.md for those that are read",
    )


def _first(entry: Any) -> Any:
    """LangChain's generation: the message in it holds the calls too; Titan calls it outputText."""
    if isinstance(entry, dict):
        message = entry.get("message")
        if isinstance(message, dict) and isinstance(message.get("kwargs"), dict):
            return message["kwargs"]
        if isinstance(entry.get("outputText"), str):
            return {"text": entry["outputText"]}
    return entry


def _listed(value: list[Any], where: str) -> Answer:
    """Messages of one assistant, or TGI's list of one completion."""
    if all(map(_is_item, value)):
        return responses.output({"output": value}, where)
    first = value[0]
    if isinstance(first, dict) and "generated_text" in first:
        return _object(first, f"{where}[0]")
    return choices_of_messages(value, where)


def choices_of_messages(value: list[Any], where: str) -> Answer:
    """Output messages as one answer: reasoning, text and calls may be a message each.

    A message that follows a finished one with something said, or text that follows text, is another
    choice; the first is read.
    """
    fields.within(len(value), parts.LIMIT, where, "messages")
    whole = NO_ANSWER
    texts: list[str] = []
    ended = False
    for index, entry in enumerate(value):
        said = chat.answer(entry, f"{where}[{index}]")
        if ended or (texts and said.text):
            break
        texts += [said.text] if said.text else []
        finish = parameters.label(entry.get("finish_reason"))
        whole = Answer(
            text=parts.joined(texts) or None,
            reasoning=parts.joined([whole.reasoning or "", said.reasoning or ""]) or None,
            tool_calls=whole.tool_calls + said.tool_calls,
            media=whole.media or said.media,
            finish_reason=finish or whole.finish_reason,
        )
        ended = finish is not None and bool(texts or whole.tool_calls)
    return whole
