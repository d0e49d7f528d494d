"""What steering found, kept on the disk direction by direction, so that a judgement that was killed goes on.

Steering takes most of a judgement's time. Nothing of it depends on the order of the directions: each has
its own generator, and answers are greedy.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from monitor.errors import BadInput
from monitor.research.journal import HINT, Journal, journal
from monitor.research.judge.control import Control, Given
from monitor.research.judge.verdict import Steering
from monitor.research.steering.experiment import Dose
from monitor.values.drift import Bound


class Kept:
    """Figures of features by name, those of earlier runs and of this one. Make one with `kept`."""

    def __init__(self, rows: Journal) -> None:
        """Raises `BadInput` for rows that are none."""
        self._rows = rows
        self._found: dict[str, Control] = {}
        for row in rows.rows:
            try:
                self._found |= {name: _control(one) for name, one in row["controls"].items()}
            except (TypeError, KeyError, AttributeError) as error:
                raise BadInput(
                    f"a row of the work folder is no direction's figures: {error}", hint=HINT
                ) from None

    def of(self, names: Sequence[str]) -> list[Control] | None:
        """The figures of the features ``names``, which are steered together; None if they are not all there."""
        found = [self._found[name] for name in names if name in self._found]
        return found if len(found) == len(names) else None

    def keep(self, found: Mapping[str, Control]) -> None:
        """Write the figures of one direction through to the disk."""
        self._rows.append([{"controls": {name: _plain(asdict(c)) for name, c in found.items()}}])
        self._found |= found


@contextmanager
def kept(work: Path | None, header: Mapping[str, Any]) -> Iterator[Kept]:
    """What ``work`` holds of the judgement that ``header`` describes; each has a file of its own there.

    Without a folder nothing is kept. Raises `BadInput` for a file that was changed, or that another run writes.
    """
    file = None
    if work is not None:
        content = orjson.dumps(header, option=orjson.OPT_SORT_KEYS)
        file = work / f"steering-{hashlib.sha256(content).hexdigest()[:12]}.jsonl"
    with journal(file, {"kind": "steering", **header}) as rows:
        yield Kept(rows)


def _plain(value: Any) -> Any:
    """As JSON has it: numbers without numpy, and null for what is no number."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if value is None or isinstance(value, bool):
        return value
    return bool(value) if type(value).__name__.startswith("bool") else float(value)


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _bound(given: Mapping[str, Any]) -> Bound:
    return Bound(**{name: _number(value) for name, value in given.items()})


def _control(given: Mapping[str, Any]) -> Control:
    steering = given["steering"]
    return Control(
        doses=tuple(map(_given, given["doses"])),
        steering=steering
        and Steering(
            share=_number(steering["share"]),
            up=_bound(steering["up"]),
            down=_bound(steering["down"]),
            controls=tuple(map(_number, steering["controls"])),
        ),
    )


def _given(given: Mapping[str, Any]) -> Given:
    dose = given["dose"]
    return Given(
        dose=Dose(
            strength=_number(dose["strength"]),
            effect=_bound(dose["effect"]),
            incoherent=_number(dose["incoherent"]),
            coherent=bool(dose["coherent"]),
        ),
        score=_number(given["score"]),
        perplexity=_number(given["perplexity"]),
        repetition=_number(given["repetition"]),
    )
