"""Frozen values that are made as quickly as open ones.

The ``__init__`` of a frozen dataclass sets every field by a call of ``object.__setattr__``. A record of the worker's
path is a dozen such values of up to thirty fields, and making them took a fifth of its Python. Here the fields
are set as those of an open twin, which has the same slots; only then does it become what it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import update_wrapper
from typing import Any, Final, TypeVar

Made = TypeVar("Made")

_TWICE: Final = "a quickly made value has no subclasses: its __init__ makes it what it is"


def quickly_made(cls: type[Made]) -> type[Made]:
    """Give a dataclass (``frozen=True, slots=True, kw_only=True``, no base) an ``__init__`` that does the same sooner.

    All else stays the dataclass's own: fields, equality, ``replace``, pickling, and the refusal of changes.
    Raises `TypeError` for another kind of class, and later for a subclass.
    """
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    names = tuple(field.name for field in fields)
    own = cls.__dict__.get("__slots__")
    usual = all(f.init and f.kw_only and not f.name.startswith("_") for f in fields)
    if cls.__bases__ != (object,) or own != names or not usual:
        raise TypeError(
            f"{cls.__name__}: expected public fields in slots, keyword-only, and no base"
        )
    scope: dict[str, Any] = {
        "_set": object.__setattr__,
        "_twin": type(cls.__name__, (), {"__slots__": names}),
        "_cls": cls,
    }
    exec(_source(fields, scope, checked=hasattr(cls, "__post_init__")), scope)  # noqa: S102 - as dataclasses do
    made: Callable[..., None] = scope["__init__"]
    setattr(cls, "__init__", update_wrapper(made, cls.__init__))  # noqa: B010 - mypy minds an assignment
    setattr(cls, "__init_subclass__", classmethod(_refuse))  # noqa: B010
    return cls


def _source(
    fields: tuple[dataclasses.Field[Any], ...], scope: dict[str, Any], *, checked: bool
) -> str:
    """The text of ``__init__``. What it needs beside its arguments goes into ``scope``, under names that no field has."""
    given, body = [], []
    for field in fields:
        name, value = field.name, field.name
        if field.default is not dataclasses.MISSING:
            scope[f"_default_{name}"] = field.default
            given.append(f"{name}=_default_{name}")
        elif field.default_factory is not dataclasses.MISSING:
            scope[f"_new_{name}"], scope["_absent"] = field.default_factory, dataclasses.MISSING
            given.append(f"{name}=_absent")
            value = f"_new_{name}() if {name} is _absent else {name}"
        else:
            given.append(name)
        body.append(f"self.{name} = {value}")
    lines = [
        "_set(self, '__class__', _twin)",
        *body,
        "self.__class__ = _cls",
        *(["self.__post_init__()"] if checked else []),
    ]
    return "\n    ".join([f"def __init__(self, *, {', '.join(given)}):", *lines])


def _refuse(cls: type, /, **_: object) -> None:
    raise TypeError(f"{cls.__name__}: {_TWICE}")
