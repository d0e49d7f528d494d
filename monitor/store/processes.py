"""E-processes, in the rows of the detectors that they stand beside."""

from __future__ import annotations

from typing import Any, Final

from monitor.values.checks import utc
from monitor.values.evidence import EProcess

PROCESS: Final = ("process_since", "process_steps", "process_values", "log_e")
"""Columns of every table of detectors; null in rows that a release without them began."""
PROCESS_PLACES: Final = ", ".join(f":{name}" for name in PROCESS)
PROCESS_SET: Final = ", ".join(f"{name} = excluded.{name}" for name in PROCESS)


def process_of(row: Any) -> EProcess | None:
    """``row`` by column."""
    if row["process_since"] is None:
        return None
    return EProcess(
        since=utc(row["process_since"]),
        steps=row["process_steps"],
        log_values=tuple(row["process_values"]),
        log_e=row["log_e"],
    )


def process_row(process: EProcess | None) -> dict[str, Any]:
    """By column."""
    if process is None:
        return dict.fromkeys(PROCESS)
    return {
        "process_since": process.since,
        "process_steps": process.steps,
        "process_values": [float(value) for value in process.log_values],
        "log_e": process.log_e,
    }
