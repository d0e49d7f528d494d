"""`monitor doctor`: looks at every part that the loops need, and says what is wrong and how to mend it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import httpx

from monitor.app import build_instrument, pack_path
from monitor.errors import MonitorError
from monitor.ingest.kafka import describe
from monitor.score.pack import load_pack
from monitor.settings import Endpoint, Settings
from monitor.store.database import connect, require_schema, transaction
from monitor.store.drift import load_baseline
from monitor.alert.webhook import secrets_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What was looked at, whether it is well, what was seen, and how to mend it."""

    subject: str
    well: bool
    seen: str
    mend: str = ""


def examine(settings: Settings, *, with_model: bool = True) -> Iterator[Finding]:
    """Look at configuration, pack, model, Postgres, Kafka and endpoints; one failure stops no other.

    ``with_model=False`` leaves out loading the model, which may take minutes.
    """
    yield Finding(subject="configuration", well=True, seen="valid")
    yield from _look("pack", lambda: _pack(settings))
    if with_model:
        yield from _look("model", lambda: _model(settings))
    yield from _look("postgres", lambda: _postgres(settings))
    yield from _look("baseline", lambda: _baseline(settings))
    yield from _look("kafka", lambda: _kafka(settings))
    if not settings.alerts.endpoints:
        yield Finding(
            subject="endpoints",
            well=False,
            seen="nobody is told of alerts",
            mend="Add one under alerts.endpoints.",
        )
    for endpoint in settings.alerts.endpoints:
        yield from _look(f"endpoint {endpoint.name}", lambda endpoint=endpoint: _endpoint(endpoint))


def _look(subject: str, action: Callable[[], str]) -> Iterator[Finding]:
    try:
        yield Finding(subject=subject, well=True, seen=action())
    except MonitorError as error:
        yield Finding(subject=subject, well=False, seen=str(error), mend=error.hint)
