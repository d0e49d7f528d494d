"""Which dialect a document is of, told by its keys, in this order.

The names are the values of ``ingest.format``; a record of an API's request and response is named after
the API (openai, responses, anthropic, gemini, bedrock).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from monitor.ingest import fields
from monitor.ingest.dialects import exchanges, flat, kserve, messages, native, unread
from monitor.ingest.dialects.apisix import APISIX
from monitor.ingest.dialects.bedrock import BEDROCK
from monitor.ingest.dialects.bodies import HELICONE, PORTKEY
from monitor.ingest.dialects.databricks import DATABRICKS
from monitor.ingest.dialects.dialect import Dialect
from monitor.ingest.dialects.exchanges import OPENAI
from monitor.ingest.dialects.flat import BATCH, FLAT
from monitor.ingest.dialects.kong import KONG
from monitor.ingest.dialects.langfuse import LANGFUSE
from monitor.ingest.dialects.langsmith import LANGSMITH
from monitor.ingest.dialects.litellm import LITELLM
from monitor.ingest.dialects.mlflow import MLFLOW
from monitor.ingest.dialects.native import NATIVE
from monitor.ingest.dialects.sagemaker import SAGEMAKER
from monitor.ingest.dialects.telemetry import OTEL
from monitor.ingest.dialects.vertex import VERTEX
from monitor.ingest.exchange import Exchange
from monitor.ingest.fields import Unreadable
from monitor.settings import IngestSettings
from monitor.values.prompts import DeadReason

_PARAMETERS: Final = frozenset(
    {
        *("temperature", "top_p", "n", "stream", "stream_options", "stop", "max_tokens"),
        *("max_completion_tokens", "presence_penalty", "frequency_penalty", "logit_bias"),
        *("logprobs", "top_logprobs", "user", "seed", "tools", "tool_choice", "response_format"),
        *("parallel_tool_calls", "metadata", "service_tier", "store", "reasoning_effort"),
        *("continue_final_message", "chat_template_kwargs", "inferenceConfig", "toolConfig"),
    }
)
"""Keys of requests that our own format does not have."""

_MARKED: Final = (
    *(LITELLM, BEDROCK, DATABRICKS, SAGEMAKER, MLFLOW, LANGSMITH, APISIX, KONG, HELICONE),
    *(PORTKEY, VERTEX, LANGFUSE, BATCH),
)
"""Dialects with a mark of their own."""

RESPONSES: Final = exchanges.of_api("responses")
ANTHROPIC: Final = exchanges.of_api("anthropic")
GEMINI: Final = exchanges.of_api("gemini")

DIALECTS: Final[Mapping[str, Dialect]] = MappingProxyType(
    {
        dialect.name: dialect
        for dialect in (NATIVE, OPENAI, OTEL, RESPONSES, ANTHROPIC, GEMINI, FLAT, *_MARKED)
    }
)


JOINED: Final[Mapping[str, Callable[[Sequence[Any], IngestSettings], Exchange]]] = MappingProxyType(
    {"kserve": kserve.joined, "otel": messages.joined}
)
"""How the parts of an exchange are read once they are together, by `Piece.dialect`."""


def told(document: Any) -> Dialect:
    """The dialect of a document; refuses by name what is known and not read, else UNKNOWN_FORMAT."""
    if isinstance(document, dict):
        if (found := _plain(document)) is not None:
            return found
        if OTEL.told(document):
            return OTEL
        for dialect in _MARKED:
            if dialect.told(document):
                return dialect
        if "request" in document:
            return OPENAI
        if flat.told(document):
            return FLAT
        if native.told(document):
            return _chat_or_prompt(document)
        if "contents" in document or _is_responses(document):
            return OPENAI
        if (refusal := unread.named(document)) is not None:
            raise refusal
    raise Unreadable(
        DeadReason.UNKNOWN_FORMAT,
        f"record: {fields.kind_of(document)} of no known format; see docs/records.md or set ingest.format",
    )


def _plain(document: Mapping[str, Any]) -> Dialect | None:
    """The commonest records, which have nothing but keys of their own: no other mark is looked for."""
    keys = document.keys()
    if keys <= _PLAIN_LOG and "request" in keys:
        request = document["request"]
        return None if isinstance(request, dict) and "body" in request else OPENAI
    if keys <= _PLAIN_NATIVE and "response" in keys:
        return NATIVE
    return None


_PLAIN_LOG: Final = frozenset({"request", "response", "id", "conversation_id", "timestamp"})
_PLAIN_NATIVE: Final = frozenset({"messages", "prompt", "model", *native.OWN_KEYS})


def _chat_or_prompt(document: Mapping[str, Any]) -> Dialect:
    ours = not native.OWN_KEYS.isdisjoint(document)
    if ours or (_PARAMETERS.isdisjoint(document) and "system" not in document):
        return NATIVE
    return OPENAI


def _is_responses(document: Mapping[str, Any]) -> bool:
    return "input" in document and "model" in document
