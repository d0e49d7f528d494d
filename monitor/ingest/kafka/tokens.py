"""Bearer tokens for SASL OAUTHBEARER: from a file that somebody renews, or by client credentials.

The client library asks for a token at every connection and every re-authentication, from its own
network thread; both providers answer from memory as long as they can.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final
from urllib.parse import urlencode

import httpx
from kafka.net.sasl.oauth import AbstractTokenProvider

from monitor.calling import Answer, Caller
from monitor.errors import BrokerUnavailable, ConfigurationError

REQUEST_SECONDS: Final = 10.0
"""For the whole request, whatever the endpoint sends meanwhile."""
LARGEST_ANSWER: Final = 262_144
"""Bytes of an answer that are read; a token is a few thousand."""
RENEW_BEFORE: Final = 0.2
"""Share of a token's life that is left when a new one is fetched."""
DEFAULT_LIFE_SECONDS: Final = 300.0
"""Life assumed when the token endpoint does not say ``expires_in``."""


class FileToken(AbstractTokenProvider):
    """A token from a file, read again at every connection: a rotated token needs no restart."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def token(self) -> str:
        """The file's content, stripped; `ConfigurationError` when unreadable or empty."""
        try:
            token = self._path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(
                f"kafka.oauth_token_file: cannot read {self._path}: {error}"
            ) from None
        if not token:
            raise ConfigurationError(f"kafka.oauth_token_file: {self._path} is empty")
        return token


class ClientCredentials(AbstractTokenProvider):
    """A token by the client credentials grant (RFC 6749 §4.4), kept until it is about to expire.

    ``secret`` is called for every request, so a secret file that was rotated is read again.
    ``clock`` counts seconds and never goes back.
    """

    def __init__(
        self,
        endpoint: str,
        client_id: str,
        secret: Callable[[], str | None],
        *,
        scope: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._endpoint = endpoint
        self._client_id = client_id
        self._secret = secret
        self._scope = scope
        self._clock = clock
        self._lock = threading.Lock()
        self._token = ""
        self._renew_at = float("-inf")

    def token(self) -> str:
        """May block for `REQUEST_SECONDS`.

        Raises `ConfigurationError` when the endpoint refuses the client (4xx), `BrokerUnavailable`
        when it does not answer or answers with a server error.
        """
        with self._lock:
            if self._clock() >= self._renew_at:
                self._token, life = self._request()
                self._renew_at = self._clock() + life * (1.0 - RENEW_BEFORE)
            return self._token

    def _request(self) -> tuple[str, float]:
        form = {"grant_type": "client_credentials"}
        if self._scope:
            form["scope"] = self._scope
        try:
            with Caller() as caller:
                answer = caller.call(
                    "POST",
                    self._endpoint,
                    content=urlencode(form).encode(),
                    headers={"content-type": "application/x-www-form-urlencoded"},
                    auth=httpx.BasicAuth(self._client_id, self._secret() or ""),
                    seconds=REQUEST_SECONDS,
                    keep_bytes=LARGEST_ANSWER,
                )
        except httpx.HTTPError as error:
            raise BrokerUnavailable(
                f"the token endpoint {self._endpoint} does not answer: {type(error).__name__}"
            ) from None
        if answer.status >= 500 or answer.status == httpx.codes.TOO_MANY_REQUESTS:
            raise BrokerUnavailable(f"the token endpoint {self._endpoint} answered {answer.status}")
        return self._read(answer)

    def _read(self, answer: Answer) -> tuple[str, float]:
        if not 200 <= answer.status < 300:
            raise ConfigurationError(
                f"the token endpoint {self._endpoint} refused the client "
                f"{self._client_id!r}: {answer.status}",
                hint="Check kafka.oauth_client_id, oauth_client_secret and oauth_scope.",
            )
        try:
            given = json.loads(answer.body)
            return str(given["access_token"]), float(
                given.get("expires_in") or DEFAULT_LIFE_SECONDS
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise ConfigurationError(
                f"the token endpoint {self._endpoint} answered without an access_token",
                hint="kafka.oauth_token_endpoint must be the OAuth 2 token URL itself.",
            ) from None
