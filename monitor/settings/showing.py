"""The configuration as it may be shown, and the secrets that it holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, SecretStr

from monitor.redaction import TELLING, without_secrets
from monitor.settings.whole import Settings

_HIDDEN: Final = "**********"
"""As pydantic puts a secret field."""


def shown(settings: Settings) -> dict[str, Any]:
    """Every key with its value, as JSON has it; secrets are hidden, and so is what may hold one.

    Texts of ``kafka.client_options`` are hidden whatever their names: the library decides what they
    mean. An endpoint's URL is shown up to its path.
    """
    content = settings.model_dump(mode="json", by_alias=True)
    options = content["kafka"]["client_options"]
    content["kafka"]["client_options"] = {
        name: value if isinstance(value, bool | int | float) or value is None else _HIDDEN
        for name, value in options.items()
    }
    for endpoint in content["alerts"]["endpoints"]:
        scheme, _, rest = endpoint["url"].partition("://")
        host, slash, _ = rest.rpartition("@")[2].partition("/")
        endpoint["url"] = f"{scheme}://{host}{slash}{_HIDDEN if slash else ''}"
    cleaned: dict[str, Any] = _cleaned(content)
    return cleaned


def _cleaned(value: Any) -> Any:
    if isinstance(value, str):
        return without_secrets(value)
    if isinstance(value, dict):
        return {name: _cleaned(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_cleaned(item) for item in value]
    return value


def secrets_of(settings: BaseModel) -> Iterator[str]:
    """Every text in the settings that must be shown nowhere."""
    for name in type(settings).model_fields:
        yield from _secrets(getattr(settings, name), name)


def _secrets(value: Any, name: str) -> Iterator[str]:
    if isinstance(value, BaseModel):
        yield from secrets_of(value)
    elif isinstance(value, SecretStr):
        given = value.get_secret_value()
        if "://" in given:
            yield from _in_url(given)
        else:
            yield from (given, *given.split(","), *given.split())
    elif isinstance(value, str):
        if "://" in value:
            yield from _in_url(value)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if name == "client_options" and isinstance(item, str) and TELLING.search(str(key)):
                yield item
            yield from _secrets(item, str(key))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _secrets(item, name)


def _in_url(text: str) -> Iterator[str]:
    try:
        parts = urlsplit(text)
    except ValueError:
        return
    given = [parts.password or "", *([] if parts.password else [parts.username or ""])]
    for pair in parts.query.split("&"):
        name, _, value = pair.partition("=")
        if TELLING.search(name):
            given.append(value)
    for one in given:
        yield from (one, unquote(one))
