"""Modules of a model that give their places to others for a while."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import nn


@dataclass(frozen=True, slots=True)
class Place:
    """A module of the model under its parent, and what may stand there instead."""

    parent: nn.Module
    name: str
    plain: nn.Module
    other: nn.Module
    _parts: tuple[nn.Module, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_parts", tuple(self.plain.modules()))

    @property
    def untouched(self) -> bool:
        """Whether the module stands in its place with the parts that it had, and nothing listens to one.

        Tuning wraps modules and steering hooks them: what computes from the old parts would pass that over, and
        putting the plain module back would undo it.
        """
        parts = tuple(self.plain.modules())
        return (
            getattr(self.parent, self.name) is self.plain
            and len(parts) == len(self._parts)
            and all(one is other for one, other in zip(parts, self._parts, strict=True))
            and not any(part._forward_hooks or part._forward_pre_hooks for part in parts)
        )


@contextmanager
def swapped(places: Sequence[Place]) -> Iterator[None]:
    """Within the context the others stand in the ``places``, whatever happens in it."""
    try:
        for place in places:
            setattr(place.parent, place.name, place.other)
        yield
    finally:
        for place in places:
            setattr(place.parent, place.name, place.plain)
