"""OpenAI's chat and legacy completions, as vLLM, SGLang, llama.cpp, TGI and gateways speak them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

from monitor.ingest import chat, fields, parameters
from monitor.ingest.exchange import NO_ANSWER, Answer, Asked
from monitor.ingest.fields import Unreadable
from monitor.values.prompts import DeadReason

_INNER: Final = frozenset(
    {"inferenceConfig", "options", "parameters", "generationConfig", "generation_config"}
)
_BESIDE_MESSAGES: Final = (
    parameters.FOR_PROMPTS | _INNER | {"instructions", "system", "continue_final_message"}
)
"""Keys that say more of a chat's prompt than its messages do."""
TOKENS_LIMIT: Final = 2_000_000
"""Most token ids of one raw prompt."""


def asked(request: Mapping[str, Any], where: str, *, continues: bool = False) -> Asked:
    """A chat request. ``system`` and ``instructions`` apart from the messages are read too."""
    read = chat.read(request["messages"], f"{where}messages")
    if request.keys().isdisjoint(_BESIDE_MESSAGES):  # so are most
        return chat.asked(read, f"{where}messages", continues=continues, parameters=request)
    for key in ("instructions", "system"):
        if request.get(key) is not None:
            read.add_system(request[key], f"{where}{key}")
    final = request.get("continue_final_message")
    return chat.asked(
        read,
        f"{where}messages",
        continues=final is True or (continues and final is not False),
        tools=parameters.tools(request, where),
        tools_forbidden=parameters.tools_forbidden(request),
        template_options=parameters.template_options(request, where),
        parameters=parameters_of(request),
    )


def parameters_of(request: Mapping[str, Any]) -> Mapping[str, Any]:
    """Converse, Ollama and TGI keep theirs in an object of their own."""
    for key in sorted(request.keys() & _INNER):
        inner = request.get(key)
        if isinstance(inner, dict):
            return {**request, **inner}
    return request


def asked_raw(request: Mapping[str, Any], where: str) -> Asked:
    """A legacy completion: one prompt, as text or as the server's own tokens."""
    if request.get("suffix"):
        raise fields.not_read(
            "a completion with a suffix (fill in the middle)", "log chats", f"{where}suffix"
        )
    value = request.get("prompt")
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str | list):
        value = value[0]
    if isinstance(value, list) and value and all(type(token) is int for token in value):
        fields.within(len(value), TOKENS_LIMIT, f"{where}prompt", "tokens")
        if min(value) < 0:
            raise fields.invalid(f"{where}prompt", "token ids from 0", value)
        return Asked(token_ids=tuple(value), parameters=parameters_of(request))
    if not isinstance(value, str):
        raise fields.invalid(f"{where}prompt", "messages, or one prompt", value)
    return Asked(
        text=chat.raw(value, f"{where}prompt"),
        special_tokens=request.get("add_special_tokens") is False or request.get("raw") is True,
        parameters=parameters_of(request),
    )


def prompts_of(request: Mapping[str, Any], response: object) -> list[tuple[Any, Any]] | None:
    """A completion with several prompts as one pair of request and response each; else None.

    The API gives ``n`` choices for each prompt, in the order of the prompts. Ids are numbered, and the
    token counts, which are sums over all of them, are left behind.
    """
    prompts = request.get("prompt")
    if not isinstance(prompts, list) or len(prompts) < 2 or type(prompts[0]) is int:
        return None
    return apart(request, [{"prompt": prompt} for prompt in prompts], response)


def apart(
    request: Mapping[str, Any], prompts: list[dict[str, Any]], response: object
) -> list[tuple[Any, Any]]:
    served = response if isinstance(response, dict) else {}
    given = request.get("n")
    each = given if isinstance(given, int) and given > 0 else 1
    choices = served.get("choices")
    indexed = {
        choice.get("index", place): choice
        for place, choice in enumerate(choices if isinstance(choices, list) else ())
        if isinstance(choice, dict) and isinstance(choice.get("index", place), int)
    }
    rest = {key: value for key, value in served.items() if key not in ("choices", "usage", "id")}
    pairs: list[tuple[Any, Any]] = []
    for index, prompt in enumerate(prompts):
        one: Any = response
        if isinstance(choices, list):
            choice = indexed.get(index * each)
            one = {**rest, "choices": [] if choice is None else [{**choice, "index": 0}]}
            if isinstance(served.get("id"), str):
                one["id"] = f"{served['id']}/{index}"
        pairs.append(({**request, **prompt}, one))
    return pairs


def choice(response: Mapping[str, Any], where: str) -> Answer:
    """The first choice of a completion, chat or legacy, whole or put together from a stream."""
    choices = fields.sequence(response["choices"], f"{where}.choices")
    if not choices:
        return NO_ANSWER
    first = choices[0]
    if len(choices) > 1:
        first = next((c for c in choices if isinstance(c, dict) and c.get("index") == 0), first)
    first = fields.mapping(first, f"{where}.choices[0]")
    finished = parameters.label(first.get("finish_reason"))
    counted = parameters.counts(response.get("usage"))
    if isinstance(first.get("text"), str):
        reasoning = first.get("reasoning")
        return Answer(
            text=first["text"] or None,
            reasoning=reasoning if isinstance(reasoning, str) and reasoning else None,
            finish_reason=finished,
            counts=counted,
        )
    for key in ("message", "delta"):
        if first.get(key) is not None:
            said = chat.answer(first[key], f"{where}.choices[0].{key}")
            return Answer(
                text=said.text,
                reasoning=said.reasoning,
                tool_calls=said.tool_calls,
                media=said.media,
                finish_reason=finished,
                counts=counted,
            )
    raise fields.invalid(f"{where}.choices[0].message", "an object", first.get("message"))


def without_echo(asked: Asked, answer: Answer, where: str) -> Answer:
    """The answer of a request with ``echo``: the server repeats the prompt before it."""
    if answer.text is None:
        return answer
    if asked.text is None or not answer.text.startswith(asked.text):
        raise Unreadable(
            DeadReason.INVALID_FIELD,
            f"{where}: the request asked for an echo and the answer does not begin with the prompt",
        )
    return dataclasses.replace(answer, text=answer.text[len(asked.text) :] or None)
