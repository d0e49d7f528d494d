"""Who leads what only one process may do: a lease in a table that only the monitor's role can write.

A lease ends by itself. Whoever takes it next gets a higher token, and `confirm` holds a transaction of
the one before to his token: so what a leader writes after he lost his lease, without having noticed, is
rolled back. All times are the database's.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Connection, text

from monitor.errors import StaleLease
from monitor.values.checks import utc

WATCHER: Final = "watcher"
"""The lease of the process that evaluates."""
LOCK_SECONDS: Final = 5
"""Longest wait for the row of a lease: a leader locks it only while it commits."""
COMMIT_SECONDS: Final = 10
"""A leader that stands still between its last statement and its commit keeps its successor waiting for so
long; then the server ends its session."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A right to lead. It is lost once somebody else has a higher token."""

    name: str
    token: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Leadership:
    """Who leads, as anybody may ask."""

    at: datetime
    """When this was asked."""
    holder: str | None
    """None: nobody."""
    worked_at: datetime | None
    """When a leader last finished what it leads for; None: never yet."""


def take(c: Connection, name: str, holder: str, length: timedelta) -> Lease | None:
    """The lease ``name`` for ``length``; None while somebody has it."""
    _bounded(c)
    token = c.scalar(
        text("""
            INSERT INTO monitor_data.leadership AS kept (name, token, holder, taken_at, expires_at)
            VALUES (:name, 1, :holder, clock_timestamp(), clock_timestamp() + :length)
            ON CONFLICT (name) DO UPDATE SET
                token = kept.token + 1, holder = excluded.holder, taken_at = excluded.taken_at,
                expires_at = clock_timestamp() + :length
            WHERE kept.expires_at <= clock_timestamp()
            RETURNING token
        """),
        {"name": name, "holder": holder, "length": length},
    )
    return None if token is None else Lease(name=name, token=token)


def renew(c: Connection, lease: Lease, length: timedelta) -> bool:
    """Have the lease for ``length`` from now; False when it is another's by now."""
    _bounded(c)
    kept = c.execute(
        text("""
            UPDATE monitor_data.leadership SET expires_at = clock_timestamp() + :length
            WHERE name = :name AND token = :token
        """),
        {"name": lease.name, "token": lease.token, "length": length},
    )
    return bool(kept.rowcount)


def release(c: Connection, lease: Lease) -> None:
    """Give the lease back before it ends; nothing when it is another's by now."""
    renew(c, lease, timedelta(0))


def confirm(c: Connection, lease: Lease, *, worked: bool = False) -> None:
    """Let the transaction be stored only while the lease is ours; the last statement before its commit.

    ``worked``: what the leader leads for is done with it. Raises `StaleLease`, and the transaction must be
    rolled back, when somebody else leads.
    """
    _bounded(c)
    c.execute(text(f"SET LOCAL idle_in_transaction_session_timeout = '{COMMIT_SECONDS}s'"))
    ours = c.execute(
        text("""
            UPDATE monitor_data.leadership
            SET worked_at = CASE WHEN :worked THEN clock_timestamp() ELSE worked_at END
            WHERE name = :name AND token = :token
        """),
        {"name": lease.name, "token": lease.token, "worked": worked},
    )
    if not ours.rowcount:
        raise StaleLease(f"another process leads the {lease.name} by now: nothing is stored")


def leadership(c: Connection, name: str) -> Leadership:
    """Who leads ``name`` now."""
    row = c.execute(
        text("""
            SELECT clock_timestamp() AS at, holder, worked_at,
                expires_at > clock_timestamp() AS led
            FROM (SELECT CAST(:name AS text) AS name) AS asked
            LEFT JOIN monitor_data.leadership USING (name)
        """),
        {"name": name},
    ).one()
    return Leadership(
        at=utc(row.at),
        holder=row.holder if row.led else None,
        worked_at=utc(row.worked_at) if row.worked_at else None,
    )


def _bounded(c: Connection) -> None:
    c.execute(text(f"SET LOCAL lock_timeout = '{LOCK_SECONDS}s'"))
