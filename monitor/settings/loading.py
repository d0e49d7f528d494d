"""From a file, the environment and overrides to `Settings`.

The environment is read in this folder alone.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_settings import SettingsError

from monitor.errors import ConfigurationError
from monitor.redaction import know_only
from monitor.settings.explaining import explained
from monitor.settings.section import Section
from monitor.settings.showing import secrets_of
from monitor.settings.whole import Settings


def load(path: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Settings:
    """The settings from ``path`` (or ``MONITOR_CONFIG``), under the environment, under ``overrides``.

    Raises `ConfigurationError` naming every wrong field, with the nearest known key for unknown ones.
    """
    path = path or (
        Path(os.environ["MONITOR_CONFIG"]) if os.environ.get("MONITOR_CONFIG") else None
    )
    content = _read(path) if path else {}
    try:
        settings = Settings(**content)
        if overrides:
            settings = _overridden(settings, overrides)
    except SettingsError as error:
        # Its own cause, the parser's error, holds the text.
        raise ConfigurationError(
            f"the environment is not valid: {error}",
            hint="Lists and mappings are given as JSON: MONITOR_KAFKA__TOPICS='[\"prompts\"]'.",
        ) from None
    except ValidationError as error:
        where = f" in {path}" if path else ""
        raise ConfigurationError(
            f"the configuration{where} is not valid:\n{explained(error)}",
            hint="`monitor config schema` prints every key; the environment wins over the file.",
        ) from None
    _refuse_unknown_environment()
    know_only(secrets_of(settings))
    return settings


def laid_over(settings: Settings, path: Path, sections: Collection[str]) -> Settings:
    """The settings with those of a file on top, which may hold ``sections`` alone.

    A list in the file stands in place of the one that is there. Raises `ConfigurationError` naming the field.
    """
    content = _read(path)
    for name, values in content.items():
        if name not in sections:
            near = difflib.get_close_matches(str(name), sorted(sections), n=1)
            raise ConfigurationError(
                f"{path}: {name}: unknown section"
                + (f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(sections)}")
            )
        if not isinstance(values, dict):
            raise ConfigurationError(f"{path}: {name} must hold a mapping of keys")
        try:
            settings = _overridden(settings, {name: values})
        except ValidationError as error:
            raise ConfigurationError(
                f"{path} is not valid:\n{explained(error, (str(name),))}",
                hint="`monitor config schema` prints every key.",
            ) from None
    return settings


def _overridden(settings: Settings, overrides: Mapping[str, Any]) -> Settings:
    """Section by section, as validating the whole again would read the environment on top."""
    changed = {}
    for name, values in overrides.items():
        section: Section = getattr(settings, name)
        changed[name] = type(section).model_validate(_merged(section.model_dump(), values))
    return settings.model_copy(update=changed)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path} is not UTF-8 text: byte {error.start}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigurationError(f"{path} is not YAML{_place(error)}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigurationError(
            f"{path} must hold a mapping of sections, found {type(content).__name__}"
        )
    return content


def _place(error: Exception) -> str:
    """Where a file is wrong, in words that hold nothing of it: its lines may be secrets."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        mark = error.problem_mark
        return f": line {mark.line + 1}, column {mark.column + 1}: {type(error).__name__}"
    if isinstance(error, yaml.reader.ReaderError):
        return f": character {error.position} (U+{_code(error.character):04X}), line unknown"
    return f": {type(error).__name__}"


def _code(character: object) -> int:
    return character if isinstance(character, int) else ord(str(character)[:1] or "\0")


def _merged(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(below)
    for key, value in above.items():
        if isinstance(value, Mapping) and isinstance(result.get(key), dict):
            result[key] = _merged(result[key], value)
        else:
            result[key] = value
    return result


OTHER_ENVIRONMENT = frozenset({"MONITOR_CONFIG", "MONITOR_JUDGE_KEY", "MONITOR_SERVER_KEY"})


def _refuse_unknown_environment() -> None:
    """pydantic-settings passes over unknown variables; a mistyped one must not be silent."""
    known = {f"MONITOR_{name.upper()}" for name in Settings.model_fields} | OTHER_ENVIRONMENT
    for variable in os.environ:
        if not variable.startswith("MONITOR_") or variable.startswith("MONITOR_TEST_"):
            continue
        if variable.split("__", 1)[0] not in known:
            near = difflib.get_close_matches(variable, sorted(known), n=1)
            raise ConfigurationError(
                f"environment variable {variable} is no setting"
                + (f"; did you mean {near[0]}__…?" if near else "")
            )
