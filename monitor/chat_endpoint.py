"""The served model's OpenAI-compatible endpoint, asked as a client asks it, one short question at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

import httpx
from pydantic import SecretStr

from monitor.calling import Answer, Caller
from monitor.errors import ServerRefused, ServerUnavailable
from monitor.values.server_canaries import ServedAnswer, ServedToken

KEPT_BYTES: Final = 1 << 20
"""An answer of some tokens with log-probabilities is a few kB."""
TOP: Final = 5
"""Alternatives that are asked for at each token."""
LONGEST_WAIT: Final = 86_400.0


class ChatEndpoint:
    """Asks at temperature 0. One call at a time; what it says is never logged.

    A server that does not take ``logprobs`` (400 or 422) is asked without from then on.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key: SecretStr | None,
        timeout_seconds: float,
        log_probs: bool = True,
    ) -> None:
        """``url`` is the endpoint's base, for example ``http://host:8000/v1``."""
        self._url = f"{url.rstrip('/')}/chat/completions"
        self._where = httpx.URL(url).host
        self._model = model
        self._headers = {"content-type": "application/json"}
        if key is not None:
            self._headers["authorization"] = f"Bearer {key.get_secret_value()}"
        self._timeout = timeout_seconds
        self._log_probs = log_probs
        self._caller = Caller()
        self.calls = 0
        """So far."""

    def close(self) -> None:
        self._caller.close()

    def ask(self, question: str, max_tokens: int) -> ServedAnswer:
        """The answer to one message of a user, in one call; in two where ``logprobs`` is refused.

        Raises `ServerUnavailable` for what passes by itself, else `ServerRefused`.
        """
        answer = self._call(question, max_tokens, log_probs=self._log_probs)
        if answer.status in (400, 422) and self._log_probs:
            answer = self._call(question, max_tokens, log_probs=False)
            # Else it was refused for something else.
            self._log_probs = answer.status != 200
        if answer.status != 200:
            self._raise(answer)
        return _parsed(answer.body, self._where)

    def _call(self, question: str, max_tokens: int, *, log_probs: bool) -> Answer:
        self.calls += 1
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": max_tokens,
            "stream": False,
        }
        if log_probs:
            body |= {"logprobs": True, "top_logprobs": TOP}
        try:
            return self._caller.call(
                "POST",
                self._url,
                seconds=self._timeout,
                headers=self._headers,
                content=json.dumps(body).encode(),
                keep_bytes=KEPT_BYTES,
            )
        except httpx.HTTPError as error:
            said = str(error) or type(error).__name__
            raise ServerUnavailable(
                f"the served endpoint at {self._where} does not answer: {said}"
            ) from None

    def _raise(self, answer: Answer) -> None:
        status = answer.status
        told = f"the served endpoint at {self._where} answers with HTTP {status}"
        if status in (408, 425, 429) or status >= 500:
            raise ServerUnavailable(told, retry_after=_retry_after(answer))
        raise ServerRefused(told, hint=_hint(status))


def _hint(status: int) -> str:
    if status in (401, 403):
        return "set server_canaries.key_file, or MONITOR_SERVER_KEY"
    if status == 404:
        return "is server_canaries.url the base, http://host:8000/v1, and server_canaries.model served there?"
    return "does it take chat completions with temperature 0 and max_tokens?"


def _retry_after(answer: Answer) -> float | None:
    text = answer.headers.get("retry-after", "").strip()
    return min(float(text), LONGEST_WAIT) if text.isascii() and text.isdigit() else None


def _parsed(body: bytes, where: str) -> ServedAnswer:
    """What the answer holds; fields that are not as the API has them count as absent."""
    try:
        found = json.loads(body)
        choice = found["choices"][0]
        message = choice["message"]
        content = message.get("content")
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        raise ServerRefused(
            f"the served endpoint at {where} answers with what is no chat completion",
            hint="is server_canaries.url the base of an OpenAI-compatible API?",
        ) from None
    usage = found.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    return ServedAnswer(
        text=content if isinstance(content, str) else "",
        reasoning=reasoning if isinstance(reasoning, str) and reasoning else None,
        finish_reason=_text(choice.get("finish_reason")),
        prompt_tokens=_count(usage.get("prompt_tokens")),
        completion_tokens=_count(usage.get("completion_tokens")),
        tokens=tuple(_tokens(choice.get("logprobs"))),
    )


def _tokens(given: Any) -> Iterator[ServedToken]:
    """As far as they are whole: what follows a token that is not is left out."""
    content = given.get("content") if isinstance(given, dict) else None
    for one in content if isinstance(content, list) else ():
        pair = _pair(one)
        if pair is None:
            return
        listed = one.get("top_logprobs")
        top = [_pair(other) for other in listed] if isinstance(listed, list) else []
        yield ServedToken(
            text=pair[0], log_prob=pair[1], top=_distinct([other for other in top if other])
        )


def _pair(given: Any) -> tuple[str, float] | None:
    if not isinstance(given, Mapping):
        return None
    text, value = given.get("token"), given.get("logprob")
    if not isinstance(text, str) or isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return (text, float(value)) if math.isfinite(value) else None


def _distinct(pairs: list[tuple[str, float]]) -> dict[str, float]:
    """By text; a text that two tokens share names neither."""
    texts = [text for text, _ in pairs]
    return {text: value for text, value in pairs if texts.count(text) == 1}


def _text(given: Any) -> str | None:
    return given if isinstance(given, str) else None


def _count(given: Any) -> int | None:
    return given if isinstance(given, int) and not isinstance(given, bool) else None
