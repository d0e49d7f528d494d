"""Whether served answers are what the copy would have said, and what is told when they are not."""

from __future__ import annotations

import math
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from monitor.settings.section import Section
from monitor.values.alerts import Severity
from monitor.values.prompts import EVERYTHING


class IdentityRule(Section):
    """The alert that another model answers. Its bound is that of ``drift.average_run_length``."""

    severity: Severity = "critical"
    segments: tuple[str, ...] = Field(
        (EVERYTHING,), min_length=1, description="all, or globs of key=value"
    )
    hold_for: timedelta = Field(
        timedelta(minutes=2),
        alias="for",
        description="how long it must hold before it fires, and be gone before it resolves",
    )
    cooldown: timedelta = Field(
        timedelta(minutes=30),
        description="how long it stays quiet after it resolved, unless it comes back graver",
    )
    reminder: timedelta | None = Field(
        timedelta(hours=4),
        description="how often a firing alert is told again until acknowledged; null: never",
    )

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class SteerSettings(Section):
    """The copy, turned along a feature of the pack."""

    feature: str = Field(min_length=1, description="a feature of the pack")
    strength: float = Field(
        description="how far, in typical lengths of the residual stream at its site, as `monitor steer` has it; below "
        "0: away from the persona"
    )

    @field_validator("strength")
    @classmethod
    def _turns(cls, strength: float) -> float:
        if not math.isfinite(strength) or strength == 0.0:
            raise ValueError("must be a finite number other than 0, or it is the copy itself")
        return strength


class AlternativeSettings(Section):
    """A model that may be the one that speaks: one of ``adapter``, ``model`` and ``steer``."""

    name: str = Field(min_length=1, max_length=100, description="how it is told of")
    adapter: Path | None = Field(
        None,
        description="folder of a LoRA adapter (as peft saves it) beside the copy's own weights",
    )
    model: Path | None = Field(
        None,
        description="folder of another whole model with the copy's tokenizer; takes as much memory as the copy",
    )
    steer: SteerSettings | None = Field(None, description="the copy, turned along a feature")

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        given = [name for name in ("adapter", "model", "steer") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"{self.name}: give one of adapter, model and steer, not {' and '.join(given) or 'none'}"
            )
        return self


MOST_ALTERNATIVES = 8


class IdentitySettings(Section):
    """Whether served answers are what the copy would have said."""

    share: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="share of the conversations whose logged answers the whole copy weighs; above 0 the "
        "whole model is loaded (backend vllm: its server must run the whole one)",
    )
    temperature: float | None = Field(
        None,
        ge=0.0,
        description="temperature of answers whose records do not say theirs; null: these are not weighed",
    )
    top_p: float | None = Field(
        None, gt=0.0, le=1.0, description="top_p of answers whose records do not say theirs"
    )
    tolerance: float = Field(
        0.02,
        ge=0.0,
        description="nats a token by which the server's log-probabilities may always lie off the copy's in the "
        "mean: precision and kernels; more is allowed for where the approved baseline measured it",
    )
    vouch_within: float = Field(
        0.15,
        gt=0.0,
        description="nats a token: identity vouches for the served model while the mean surprise of a "
        "window's answers is sure to be less than this off",
    )
    alternatives: tuple[AlternativeSettings, ...] = Field(
        (),
        max_length=MOST_ALTERNATIVES,
        description="models that may be the one that speaks, to be named when they do; each takes one pass more "
        "through the model for every weighed answer; backend torch alone",
    )
    rule: IdentityRule | None = Field(
        IdentityRule(), description="the alert that another model answers; null: none"
    )

    @field_validator("alternatives")
    @classmethod
    def _told_apart(
        cls, alternatives: tuple[AlternativeSettings, ...]
    ) -> tuple[AlternativeSettings, ...]:
        counts = Counter(one.name for one in alternatives)
        if twice := [name for name, count in counts.items() if count > 1]:
            raise ValueError(f"{', '.join(twice)} stands there twice; each needs a name of its own")
        return alternatives
