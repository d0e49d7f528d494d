"""Secrets: inline, from a file, or from the environment."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import SecretStr

from monitor.errors import ConfigurationError
from monitor.redaction import know


def secret(value: SecretStr | None, file: Path | None, name: str) -> str | None:
    """The secret given inline or in a file (the file wins); None when neither is set."""
    if file is None:
        return value.get_secret_value() if value else None
    try:
        found = file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigurationError(
            f"{name}_file: cannot read {file}: {error.strerror}",
            hint=f"Mount the file, or mend {name}_file.",
        ) from None
    except UnicodeError:
        raise ConfigurationError(
            f"{name}_file: {file} is not UTF-8 text", hint="Write the secret anew, as text."
        ) from None
    know(found, *found.split(","))
    return found


def judge_key(file: Path | None = None) -> SecretStr | None:
    """The key of a judge's endpoint: from ``file``, else from ``MONITOR_JUDGE_KEY``; None without one.

    Raises `ConfigurationError`, never naming the value, when it cannot stand in a header.
    """
    return _endpoint_key(file, "MONITOR_JUDGE_KEY", "judge_key", "the judge's key")


def server_key(file: Path | None = None) -> SecretStr | None:
    """The served endpoint's key: from ``file``, else from ``MONITOR_SERVER_KEY``; as `judge_key`."""
    name = "server_canaries.key"
    return _endpoint_key(file, "MONITOR_SERVER_KEY", name, "the served endpoint's key")


def _endpoint_key(file: Path | None, variable: str, name: str, told: str) -> SecretStr | None:
    given = os.environ.get(variable, "")
    key = (secret(SecretStr(given), file, name) or "").strip()
    if not key:
        return None
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ConfigurationError(f"{told} must be one word of ASCII letters and signs")
    know(key)
    return SecretStr(key)
