"""Whether served answers are what the copy would have said, and what is told when they are not."""

from __future__ import annotations

from datetime import timedelta

from pydantic import ConfigDict, Field

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


class IdentitySettings(Section):
    """Whether served answers are what the copy would have said."""

    share: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="share of the conversations whose logged answers the whole copy weighs; above 0 the "
        "whole model is loaded",
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
        description="nats a token by which the server's log-probabilities may lie off the copy's in the "
        "mean: precision and kernels",
    )
    vouch_within: float = Field(
        0.15,
        gt=0.0,
        description="nats a token: identity vouches for the served model while the mean surprise of a "
        "window's answers is sure to be less than this off",
    )
    rule: IdentityRule | None = Field(
        IdentityRule(), description="the alert that another model answers; null: none"
    )
