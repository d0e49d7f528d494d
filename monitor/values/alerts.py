"""Conditions, alerts, and what endpoints are told about them."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from monitor.values.checks import frozen

Severity = Literal["info", "warning", "critical"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One thing that a rule says about now: it holds (``active``), or it does not."""

    dedupe_key: str
    rule: str
    kind: Literal["drift", "silence"]
    severity: Severity
    active: bool
    summary: str
    labels: Mapping[str, str]
    """What identifies the alert (feature, segment, window, rule …); never a measured value."""
    details: Mapping[str, Any]
    """Figures for a person: JSON values only."""
    hold_for: timedelta = timedelta(0)
    cooldown: timedelta = timedelta(0)
    reminder: timedelta | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", frozen(self.labels))


class AlertState(enum.StrEnum):
    PENDING = "pending"
    FIRING = "firing"
    RESOLVED = "resolved"
    UNWATCHED = "unwatched"
    """Ended because nothing watches it any more, not because it was seen to be over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """A condition that held, and its life: pending → firing → resolved or unwatched."""

    alert_id: str
    dedupe_key: str
    rule: str
    kind: Literal["drift", "silence"]
    severity: Severity
    state: AlertState
    summary: str
    labels: Mapping[str, str]
    details: Mapping[str, Any]
    pending_since: datetime
    last_active_at: datetime
    fired_at: datetime | None = None
    resolved_at: datetime | None = None
    acknowledged_at: datetime | None = None
    acknowledged_by: str | None = None
    last_announced_at: datetime | None = None
    sequence: int = 0
    """Number of events announced so far; orders them for receivers."""
    unwatched_at: datetime | None = None

    @property
    def ended_at(self) -> datetime | None:
        """When it resolved, or was no longer watched; None while it is open."""
        return self.resolved_at or self.unwatched_at


@dataclass(frozen=True, slots=True, kw_only=True)
class Silence:
    """No event is announced for alerts whose labels match, between the two times."""

    silence_id: str
    matchers: Mapping[str, str]
    """label → glob pattern; all must match."""
    starts_at: datetime
    ends_at: datetime
    created_by: str
    comment: str = ""


EventType = Literal["drift.detected", "drift.reminder", "drift.resolved", "drift.unwatched",
                    "silence.detected", "silence.reminder", "silence.resolved",
                    "silence.unwatched", "monitor.test"]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One row of the outbox: what all endpoints are told, rendered per endpoint at sending."""

    event_id: str
    """Constant across retries: the ``webhook-id``. Never holds a dot."""
    alert_id: str
    type: EventType
    sequence: int
    created_at: datetime
    alert: Alert


@dataclass(frozen=True, slots=True, kw_only=True)
class UnreadableEvent:
    """A row of the outbox whose alert this release cannot read, and why: nobody can be told about it."""

    event_id: str
    alert_id: str
    type: str
    sequence: int
    created_at: datetime
    reason: str


class DeliveryState(enum.StrEnum):
    WAITING = "waiting"
    DELIVERED = "delivered"
    GIVEN_UP = "given_up"


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One event for one endpoint, and how often it was tried."""

    delivery_id: int
    endpoint: str
    event: Event | UnreadableEvent
    state: DeliveryState
    attempts: int
    next_attempt_at: datetime


class Outcome(enum.StrEnum):
    DELIVERED = "delivered"
    RETRY = "retry"
    SLOW_DOWN = "slow_down"
    REFUSED = "refused"
    """The endpoint will never take this event (400 and the like), or it cannot be rendered: no further try."""
    GONE = "gone"
    """410: the endpoint is disabled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What came of one attempt. ``error`` never holds a secret or the endpoint's response body."""

    attempted_at: datetime
    outcome: Outcome
    status: int | None
    latency_seconds: float
    error: str = ""
    retry_after_seconds: float | None = None
