"""Canaries to the served model itself: whom to ask, how often, and what is told when it changed."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Final

from pydantic import ConfigDict, Field, field_validator, model_validator

from monitor.settings.section import Duration, Section, bare_url
from monitor.values.alerts import Severity

DAY: Final = timedelta(days=1)


class ServerRule(Section):
    """The alert that the served model is another one. Its risk of a false alarm is ``server_canaries.risk``."""

    severity: Severity = "critical"
    hold_for: timedelta = Field(
        timedelta(0),
        alias="for",
        description="how long it must hold before it fires, and be gone before it resolves; rounds are "
        "rare, so at once",
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


class ServerCanarySettings(Section):
    """Fixed questions to the served endpoint itself, held against the copy; off without ``url``."""

    url: str | None = Field(
        None,
        description="base of the served model's OpenAI-compatible endpoint, http://host:8000/v1; null: off. "
        "With it the whole model is loaded",
    )
    model: str | None = Field(None, description="name to ask for; needed with url")
    key_file: Path | None = Field(
        None, description="file with the endpoint's key; else MONITOR_SERVER_KEY, else none is sent"
    )
    every: Duration = Field(timedelta(hours=1), description="time from one round to the next")
    calls_a_day: int = Field(
        200, ge=1, le=100_000, description="most calls within 24 hours, failed ones too"
    )
    questions: int = Field(
        32, ge=8, le=200, description="questions in all; half of them nearly tie at the first token"
    )
    max_tokens: int = Field(16, ge=1, le=256, description="most tokens of an answer")
    log_probs: bool = Field(
        True, description="ask for log-probabilities; a server that refuses is asked without them"
    )
    timeout: Duration = Field(timedelta(seconds=20), description="of one call, in all")
    numerics: float = Field(
        1.0,
        gt=0.0,
        le=100.0,
        description="how coarse the server computes beside bfloat16 on the copy's weights: differences up to "
        "there are none. FP8 or a quantised server that is meant to be: 8",
    )
    risk: float = Field(
        0.01,
        gt=0.0,
        lt=1.0,
        description="chance of any false alarm within drift.average_run_length while the server is the copy",
    )
    rule: ServerRule | None = Field(
        ServerRule(), description="the alert that the served model is another one; null: none"
    )

    @field_validator("url")
    @classmethod
    def _bare(cls, url: str | None) -> str | None:
        named = "key_file or MONITOR_SERVER_KEY"
        return None if url is None else bare_url(url, "http://host:8000/v1", named)

    @model_validator(mode="after")
    def _complete(self) -> ServerCanarySettings:
        if self.url is not None and not self.model:
            raise ValueError("server_canaries.url needs server_canaries.model: the name to ask for")
        return self

    @property
    def on(self) -> bool:
        return self.url is not None

    @property
    def calls_a_round(self) -> int:
        """So many that the rounds of a day keep within ``calls_a_day``."""
        return max(1, min(self.questions, int(self.calls_a_day * min(self.every / DAY, 1.0))))

    @property
    def vouches_for(self) -> timedelta:
        """How long an answer counts: two rounds longer than it takes to ask everything once."""
        rounds = -(-self.questions // self.calls_a_round) + 2
        return rounds * self.every
