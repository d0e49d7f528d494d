"""Modules of a model that give their places to others for a while."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True, slots=True)
class Place:
    """A module of the model under its parent, and what may stand there instead."""

    parent: nn.Module
    name: str
    plain: nn.Module
    other: nn.Module


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
