"""A validation error as lines that name the field and the nearest known key."""

from __future__ import annotations

import difflib
import re
from typing import Any

from pydantic import BaseModel, ValidationError

from monitor.settings.whole import Settings


def _known_keys(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    for step in location:
        field = model.model_fields.get(step) if isinstance(step, str) else None
        annotation = field.annotation if field else None
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        nested = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if nested:
            model = nested[0]
    return [f.alias or name for name, f in model.model_fields.items()]


_NAME = re.compile(r"[\w./ -]{1,80}")


def _step(step: int | str) -> str:
    """A key as it may be named: one that ran into its value (``key:value``) may hold a secret."""
    return str(step) if _NAME.fullmatch(str(step)) else "(a key that is no name)"


def explained(error: ValidationError, under: tuple[str, ...] = ()) -> str:
    """A line for each field; ``under`` is the section whose own values were refused."""
    lines = []
    for item in error.errors(include_url=False, include_input=False):
        location = (*under, *item["loc"])
        where = ".".join(_step(step) for step in location) or "(top)"
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            known = _known_keys(Settings, location[:-1])
            near = difflib.get_close_matches(str(item["loc"][-1]), known, n=1)
            message = "unknown key" + (
                f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
            )
        lines.append(f"  {where}: {message}")
    return "\n".join(lines)
