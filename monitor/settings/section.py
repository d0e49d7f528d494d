"""What every section of the configuration is made of."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict


def _positive(value: timedelta) -> timedelta:
    if value <= timedelta(0):
        raise ValueError("must be longer than zero")
    return value


Duration = Annotated[timedelta, AfterValidator(_positive)]
"""Seconds as a number, or ISO 8601 (``PT15M``), or ``HH:MM:SS``."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
