"""Secrets of an endpoint, read anew for every attempt, so a rotated file needs no restart."""

from __future__ import annotations

import base64
from typing import Final

from monitor.errors import ConfigurationError
from monitor.settings import Endpoint, secret

PREFIX: Final = "whsec_"
SHORTEST, LONGEST = 24, 64
"""Bytes of a signing key, by Standard Webhooks 1.0.0."""
_NEW_KEY: Final = "Make one with: python -c \"import base64,os;print('whsec_'+base64.b64encode(os.urandom(32)).decode())\""


def signing_keys(endpoint: Endpoint) -> tuple[bytes, ...]:
    """The keys to sign with, in the order given; none when the endpoint has no secret.

    Raises `ConfigurationError`, naming the endpoint and never the value, when one is not ``whsec_``
    with the base64 of 24 to 64 bytes.
    """
    return tuple(_key(endpoint.name, value) for value in _values(endpoint))


def routing_key(endpoint: Endpoint) -> str:
    """PagerDuty's routing key: the first value given."""
    values = _values(endpoint)
    if not values:
        raise ConfigurationError(
            f"endpoint {endpoint.name}: secret holds no routing key",
            hint="Give the integration key of the PagerDuty service.",
        )
    return values[0]


def require_keys(endpoint: Endpoint) -> None:
    """`ConfigurationError` when what the endpoint is sent could not be signed or authorised now."""
    if endpoint.format == "pagerduty":
        routing_key(endpoint)
    elif not signing_keys(endpoint) and endpoint.format == "standard":
        raise ConfigurationError(
            f"endpoint {endpoint.name}: secret is empty; nothing to sign with", hint=_NEW_KEY
        )


def private_values(endpoint: Endpoint) -> tuple[str, ...]:
    """Every text that must never reach a log or a table: secrets, header values, the URL's path."""
    host_end = endpoint.url.find("/", endpoint.url.find("://") + 3)
    path = endpoint.url[host_end:] if host_end >= 0 else ""
    before_host, found, _ = endpoint.url.removesuffix(path).partition("@")
    user = before_host.partition("://")[2] if found else ""
    headers = (value.get_secret_value() for value in endpoint.headers.values())
    try:
        values = _values(endpoint)
    except ConfigurationError:
        values = ()
    return tuple(text for text in (path, user, *headers, *values) if len(text) > 1)


def _values(endpoint: Endpoint) -> tuple[str, ...]:
    name = f"endpoint {endpoint.name}: secret"
    given = secret(endpoint.secret, endpoint.secret_file, name) or ""
    return tuple(value.strip() for value in given.split(",") if value.strip())


def _key(name: str, value: str) -> bytes:
    fault = f"endpoint {name}: a signing secret must be {PREFIX} and base64 of 24 to 64 bytes"
    if not value.startswith(PREFIX):
        raise ConfigurationError(f"{fault}; it does not begin with {PREFIX}", hint=_NEW_KEY)
    text = value.removeprefix(PREFIX)
    try:
        key = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError:
        raise ConfigurationError(f"{fault}; it is not base64", hint=_NEW_KEY) from None
    if not SHORTEST <= len(key) <= LONGEST:
        raise ConfigurationError(f"{fault}; it holds {len(key)} bytes", hint=_NEW_KEY)
    return key
