"""Whether the copy answers some prompts too, and what is told when both answers read differently."""

from __future__ import annotations

from pydantic import Field

from monitor.settings.identity import IdentityRule
from monitor.settings.section import Section


class TwinSettings(Section):
    """The copy's own answers beside the served ones."""

    share: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="share of the conversations whose answered prompts the copy answers too; above 0 the "
        "whole model is loaded",
    )
    tokens: int = Field(
        48,
        ge=1,
        le=1024,
        description="tokens that are read of either answer, from its beginning; the twin is not decoded further",
    )
    tolerance: float = Field(
        0.1,
        ge=0.0,
        description="deviations of a score by which the answers of server and copy may differ in the mean: "
        "precision and kernels",
    )
    rule: IdentityRule | None = Field(
        IdentityRule(), description="the alert that served answers read otherwise; null: none"
    )
