"""Who is told, and what the process says of itself."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, field_validator, model_validator

from monitor.redaction import without_secrets
from monitor.settings.section import Duration, Section
from monitor.values.alerts import Severity


class Endpoint(Section):
    """Who is told. A signing key is ``whsec_…``; several (comma-separated) while one is rotated."""

    name: str = Field(min_length=1, pattern=r"^[a-zA-Z0-9_-]+$")
    url: str = Field(pattern=r"^https?://")
    format: Literal[
        "standard", "alertmanager", "alertmanager_api", "pagerduty", "slack", "cloudevents"
    ] = "standard"
    secret: SecretStr | None = Field(
        None, description="the signing key; pagerduty: its routing key; slack: not used"
    )
    secret_file: Path | None = None
    min_severity: Severity = Field(
        "info", description="told of alerts that reached it, and of their end"
    )
    timeout: Duration = timedelta(seconds=20)
    headers: dict[str, SecretStr] = Field(default_factory=dict)
    rate_per_minute: int = Field(60, ge=1)

    @model_validator(mode="after")
    def _signed(self) -> Endpoint:
        if self.format in ("standard", "pagerduty") and not (self.secret or self.secret_file):
            raise ValueError(
                f"endpoint {self.name}: format {self.format} needs secret or secret_file"
            )
        return self


class AlertSettings(Section):
    endpoints: tuple[Endpoint, ...] = ()
    retry_delays: tuple[timedelta, ...] = tuple(
        timedelta(seconds=seconds)
        for seconds in (0, 5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)
    )
    poll_every: Duration = timedelta(seconds=1)
    external_url: str = Field("", description="base of links in alerts, e.g. the dashboard's URL")
    pulse_url: SecretStr | None = Field(
        None,
        description="what pages when we stop (healthchecks.io, Dead Man's Snitch, Opsgenie heartbeats ...): "
        "posted to while drift is evaluated and the courier goes round",
    )
    pulse_url_file: Path | None = None
    pulse_every: Duration = timedelta(seconds=60)

    @field_validator("external_url")
    @classmethod
    def _without_user(cls, url: str) -> str:
        if without_secrets(url) != url:
            raise ValueError(
                "it goes into alerts, which many read: leave user, password and keys out"
            )
        return url

    @model_validator(mode="after")
    def _distinct(self) -> AlertSettings:
        names = [endpoint.name for endpoint in self.endpoints]
        if len(set(names)) != len(names):
            raise ValueError("alerts.endpoints: names must differ")
        return self


class WebSettings(Section):
    host: str = Field(
        "127.0.0.1",
        description="where the face listens; it has no log-in, so this machine alone unless told otherwise",
    )
    port: int = Field(8080, ge=0, le=65_535)
    # It shows neither traffic nor scores, and is for those who ask from outside.
    health_host: str = Field("0.0.0.0", description="where web.health_port listens")  # noqa: S104
    health_port: int | None = Field(
        None,
        ge=0,
        le=65_535,
        description="a second listener, in a thread of its own, with /livez, /readyz and /metrics alone: for "
        "probes and scrapes from outside while web.host is loopback; null: none",
    )
    live_within: Duration = Field(
        timedelta(minutes=10), description="a loop silent for longer fails /livez"
    )


class LogSettings(Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "console"] = "json"


class PrivacySettings(Section):
    """Content never leaves the process but as a keyed hash."""

    hash_key: SecretStr | None = Field(
        None,
        description="HMAC key of content and conversation hashes; null: made anew at each start",
    )
    hash_key_file: Path | None = None
