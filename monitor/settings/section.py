"""What every section of the configuration is made of."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict

from monitor.redaction import without_secrets


def _positive(value: timedelta) -> timedelta:
    if value <= timedelta(0):
        raise ValueError("must be longer than zero")
    return value


Duration = Annotated[timedelta, AfterValidator(_positive)]
"""Seconds as a number, or ISO 8601 (``PT15M``), or ``HH:MM:SS``."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def bare_url(url: str, example: str, secrets: str) -> str:
    """The base of a server's addresses. Raises `ValueError`; ``secrets`` names where its key belongs."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"expected http:// or https:// and a host, like {example}")
    if without_secrets(url) != url or parts.username is not None:
        raise ValueError(f"leave user, password and keys out: {secrets}")
    return url.rstrip("/")
