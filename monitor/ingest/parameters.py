"""What a request says beside its messages: tools, template options, sampling; and the token counts.

Every API has its own names for the same few things. A value of the wrong kind is no value: none of this
is worth an exchange, except tools, which are part of the prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from monitor.ingest import fields
from monitor.values.prompts import Sampling, ServedCounts

TOOLS_LIMIT: Final = 1_000
_LARGEST_COUNT: Final = 2**53
_NUMBERS: Final = {
    "temperature": "temperature",
    "top_p": "top_p",
    "topP": "top_p",
    "min_p": "min_p",
    "minP": "min_p",
    "presence_penalty": "presence_penalty",
    "presencePenalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "frequencyPenalty": "frequency_penalty",
    "repetition_penalty": "repetition_penalty",
    "repetitionPenalty": "repetition_penalty",
}
_WHOLE_NUMBERS: Final = {
    "top_k": "top_k",
    "topK": "top_k",
    "seed": "seed",
    "max_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "max_output_tokens": "max_tokens",
    "max_new_tokens": "max_tokens",
    "max_gen_len": "max_tokens",
    "maxTokens": "max_tokens",
    "maxOutputTokens": "max_tokens",
    "maxTokenCount": "max_tokens",
    "num_predict": "max_tokens",
}
_MOST_BIASED: Final = 1_024
"""Entries of a ``logit_bias``, as vLLM and OpenAI bound it."""
_STOPS: Final = ("stop", "stop_sequences", "stopSequences")
_STOPS_LIMIT: Final = 64
_STEERING: Final = (
    *("response_format", "guided_json", "guided_regex", "guided_choice", "guided_grammar"),
    *("structured_outputs", "grammar", "json_schema", "regex", "ebnf", "structural_tag"),
    *(
        "logit_bias",
        "min_tokens",
        "ignore_eos",
        "repeat_penalty",
        "bad_words",
        "allowed_token_ids",
        "logits_processors",
        "use_beam_search",
    ),
    *("typical_p", "top_a", "tfs", "mirostat", "xtc_probability", "dry_multiplier", "eta_cutoff"),
    *("responseSchema", "responseMimeType", "format", "tool_choice", "function_call"),
)
_STEERING_KEYS: Final = frozenset(_STEERING)
_NEUTRAL_AT_ONE: Final = frozenset({"repeat_penalty", "typical_p"})
_UNSTEERED: Final = frozenset(
    {"", "none", "auto", "text", "text/plain", "disabled", "0", "0.0", "False", "None"}
)
_PASSED_ON: Final = (
    *("documents", "reasoning_effort", "enable_thinking", "add_generation_prompt"),
    "thinking_budget",
)


_FOR_TEMPLATES: Final = frozenset({*_PASSED_ON, "chat_template_kwargs", "reasoning", "think"})
_TOOL_KEYS: Final = frozenset({"tools", "functions", "toolConfig"})
_CHOICES: Final = frozenset({"tool_choice", "function_call"})
FOR_PROMPTS: Final = _FOR_TEMPLATES | _TOOL_KEYS | _CHOICES | {"chat_template"}
"""Keys that change what the chat template is given beside the messages."""
_DRAWING: Final = frozenset({*_NUMBERS, *_WHOLE_NUMBERS, *_STOPS, *_STEERING, "text"})
"""Keys that say how an answer is drawn."""


def sampling(given: Mapping[str, Any], finish_reason: str | None = None) -> Sampling | None:
    """How the answer was drawn; None where nothing is said of it.

    Of two names for the same, the one that stands first in our table counts: a redelivered record gives
    the same values in every process.
    """
    if finish_reason is None and given.keys().isdisjoint(_DRAWING):
        return None
    found: dict[str, Any] = {}
    for key, name in _NUMBERS.items():
        if key in given and (number := _number(given[key])) is not None:
            found.setdefault(name, number)
    for key, name in _WHOLE_NUMBERS.items():
        if key in given and (count := _count(given, key)) is not None:
            found.setdefault(name, count)
    if stop := _stops(given):
        found["stop"] = stop
    if finish_reason is not None:
        found["finish_reason"] = finish_reason
    # The Responses API says it inside: {"text": {"format": {"type": "json_schema", …}}}.
    said = given.get("text")
    told = {**given, "format": said.get("format")} if isinstance(said, dict) else given
    # Nearly every record has none of these keys: asking for each of them is slow.
    if not _STEERING_KEYS.isdisjoint(told):
        present = _STEERING_KEYS & told.keys()
        if bias := _biases(told.get("logit_bias")):
            found["logit_bias"] = bias
            present = present - {"logit_bias"}
        if steering := tuple(k for k in _STEERING if k in present and _steers(k, told[k])):
            found["steered_by"] = steering
    return Sampling(**found) if found else None


def _biases(value: object) -> tuple[tuple[int, float], ...]:
    """A ``logit_bias`` by token id; empty where it is none, or of words: that one is not reproduced."""
    if not isinstance(value, dict) or len(value) > _MOST_BIASED:
        return ()
    found = []
    for key, bias in value.items():
        number = _number(bias)
        if number is None or not (key.isascii() and key.isdigit() and len(key) < 10):
            return ()
        found.append((int(key), number))
    return tuple(sorted(found))


def _steers(key: str, value: object) -> bool:
    """Does a steering parameter of this value change anything? ``{"type": "text"}`` and "auto" do not."""
    if key in _NEUTRAL_AT_ONE and _number(value) == 1.0:
        return False
    if isinstance(value, dict):
        kind = value.get("type")
        return bool(value) and not (isinstance(kind, str) and kind in _UNSTEERED)
    return bool(value) and str(value) not in _UNSTEERED


def label(value: object) -> str | None:
    """A finish reason and the like: a short word, or nothing."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value if isinstance(value, str) and fields.is_name(value) else None


def counts(usage: object) -> ServedCounts | None:
    """The server's token counts, under any API's names. A prompt of no tokens is not a count.

    Anthropic counts what its cache held apart from the rest of the input; Gemini what was thought.
    """
    if not isinstance(usage, dict):
        return None
    prompt = _count(
        usage, "prompt_tokens", "input_tokens", "inputTokens", "promptTokenCount", "promptTokens"
    )
    if prompt is not None and "input_tokens" in usage:
        for key in ("cache_creation_input_tokens", "cache_read_input_tokens"):
            prompt += _count(usage, key) or 0
    completion = _count(
        *(usage, "completion_tokens", "output_tokens", "outputTokens", "candidatesTokenCount"),
        *("completionTokens", "generated_tokens"),
    )
    if completion is not None and "candidatesTokenCount" in usage:
        completion += _count(usage, "thoughtsTokenCount") or 0
    return served(prompt, completion)


def served(prompt: object, completion: object) -> ServedCounts | None:
    """Two counts that stand by themselves."""
    given = {"p": prompt, "c": completion}
    found = ServedCounts(
        prompt_tokens=_count(given, "p") or None, completion_tokens=_count(given, "c")
    )
    return None if found.prompt_tokens is None else found


def template_options(request: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What else the server's chat template is given: `chat_template_kwargs` and options of their own."""
    if request.get("chat_template") is not None:
        raise fields.not_read(
            "a chat template of the request's own",
            "serve the model with one template, see replay.chat_template",
            f"{where}chat_template",
        )
    options: dict[str, Any] = {}
    if request.keys().isdisjoint(_FOR_TEMPLATES):
        return options
    given = request.get("chat_template_kwargs")
    if given is not None:
        options |= fields.mapping(given, f"{where}chat_template_kwargs")
    for key in _PASSED_ON:
        if request.get(key) is not None:
            options[key] = request[key]
    reasoning = request.get("reasoning")
    if isinstance(reasoning, dict) and isinstance(reasoning.get("effort"), str):
        options.setdefault("reasoning_effort", reasoning["effort"])
    if isinstance(request.get("think"), bool):
        options.setdefault("enable_thinking", request["think"])
    return options


def tools_forbidden(request: Mapping[str, Any]) -> bool:
    """``tool_choice: none``. Of all choices this alone may change the prompt: the others steer the answer,
    and no server gives them to its template."""
    return "none" in (request.get("tool_choice"), request.get("function_call"))


def tools(request: Mapping[str, Any], where: str) -> tuple[Mapping[str, Any], ...]:
    """Definitions of any API as the chat template takes them: ``{"type": "function", "function": …}``."""
    found: list[Mapping[str, Any]] = []
    for key in sorted(request.keys() & _TOOL_KEYS):
        value = request.get(key)
        if isinstance(value, dict) and key == "toolConfig":
            value = value.get("tools")
        if value is None:
            continue
        listed = fields.sequence(value, f"{where}{key}")
        fields.within(len(listed), TOOLS_LIMIT, f"{where}{key}", "tools")
        for index, entry in enumerate(listed):
            at = f"{where}{key}[{index}]"
            found += _definitions(fields.mapping(entry, at), at)
    return tuple(found)


def _definitions(entry: Mapping[str, Any], where: str) -> list[Mapping[str, Any]]:
    declared = entry.get("functionDeclarations", entry.get("function_declarations"))
    if isinstance(declared, list):  # Gemini
        at = f"{where}.functionDeclarations"
        fields.within(len(declared), TOOLS_LIMIT, at, "tools")
        return [
            _function(fields.mapping(one, f"{at}[{index}]"), f"{at}[{index}]")
            for index, one in enumerate(declared)
        ]
    if "cachePoint" in entry:
        return []
    if isinstance(entry.get("toolSpec"), dict):  # Bedrock Converse
        return [_function(entry["toolSpec"], f"{where}.toolSpec")]
    kind = entry.get("type")
    if isinstance(entry.get("function"), dict):  # OpenAI
        return [entry if kind == "function" else {"type": "function", **entry}]
    if kind in (None, "function", "custom", "") and "name" in entry:
        return [_function(entry, where)]  # Anthropic, Responses, legacy functions
    raise fields.not_read("a tool that the provider runs itself", "log functions", where)


def _function(entry: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """A definition that keeps name, description and parameters side by side."""
    function: dict[str, Any] = {"name": fields.text(entry.get("name"), f"{where}.name")}
    if entry.get("description") is not None:
        function["description"] = fields.text(entry["description"], f"{where}.description")
    for key in ("parameters", "input_schema", "inputSchema", "parametersJsonSchema"):
        schema = entry.get(key)
        if isinstance(schema, dict):
            function["parameters"] = schema.get("json", schema) if key == "inputSchema" else schema
            break
    return {"type": "function", "function": function}


def _number(value: Any) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    return None


def _count(given: Mapping[str, Any], *keys: str) -> int | None:
    for key in keys:
        value = given.get(key)
        if type(value) is not int:
            if (isinstance(value, float) and value.is_integer()) or (
                isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 17
            ):
                value = int(value)
            else:
                continue
        if -1 <= value < _LARGEST_COUNT:
            return value
    return None


def _stops(given: Mapping[str, Any]) -> tuple[str, ...]:
    for key in _STOPS:
        value = given.get(key)
        if isinstance(value, str):
            return (value,)
        if isinstance(value, list):
            return tuple(stop for stop in value[:_STOPS_LIMIT] if isinstance(stop, str))
    return ()
