"""What changed, as a verdict over witnesses: measured grounds, each with its figures and bounds."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from monitor.values.checks import frozen


class Cause(enum.StrEnum):
    """The verdict; `monitor.drift.cause.verdict` says which witnesses make which."""

    INPUT_SHIFT = "input_shift"
    MODEL_SHIFT = "model_shift"
    INSTRUMENT_SHIFT = "instrument_shift"
    UNDECIDED = "undecided"
    UNKNOWN = "unknown"


UNLABELLED: Final = "@"
"""How a served model is written that its records do not name: ``model@revision``, both empty."""
_HEADS: Final[Mapping[Cause, str]] = {
    Cause.INPUT_SHIFT: "what is asked changed, not the served model",
    Cause.MODEL_SHIFT: "the served model changed",
    Cause.INSTRUMENT_SHIFT: "the monitor's own copy changed: every score is in doubt",
    Cause.UNDECIDED: "whether the served model changed or what is asked is not decided yet",
    Cause.UNKNOWN: "whether the served model, what is asked or the monitor's copy changed is not known",
}

Name = Literal[
    "canaries", "identity", "twin", "server_canaries", "labels", "prompt_side", "own_answers"
]
Finding = Literal["moved", "steady", "unsure", "absent"]
"""``moved``: crossed its bound. ``steady``: within a bound that would have shown it. ``unsure``: too little
data for either. ``absent``: not measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Witness:
    """One measured ground for a cause."""

    name: Name
    finding: Finding
    told: str
    """A clause for people, with the figures that matter."""
    figures: Mapping[str, Any] = field(default_factory=dict)
    """JSON values."""
    needed: int | None = None
    """Prompts more that would make an ``unsure`` one sure, as far as can be told."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "figures", frozen(self.figures))

    def shown(self, *, told: bool) -> dict[str, Any]:
        """As JSON."""
        return {
            "finding": self.finding,
            **({"told": self.told} if told else {}),
            **self.figures,
            **({} if self.needed is None else {"needed": self.needed}),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A cause and the witnesses that were heard."""

    cause: Cause
    witnesses: tuple[Witness, ...]


def sentence(cause: Cause, witnesses: Sequence[Witness]) -> str:
    """The verdict for people, generated from its witnesses."""
    told = "; ".join(witness.told for witness in witnesses)
    return f"{_HEADS[cause]}: {told}" if told else _HEADS[cause]


def named(witnesses: Sequence[Witness]) -> str | None:
    """The registered model that answers look like, where identity names one."""
    looks_like = (one.figures.get("looks_like") for one in witnesses if one.name == "identity")
    found = next((one for one in looks_like if one), None)
    return found["name"] if found else None


def as_json(witnesses: Sequence[Witness], *, told: bool = True) -> dict[str, Any]:
    """By name; ``told``: with the clauses for people, which the figures say too."""
    return {witness.name: witness.shown(told=told) for witness in witnesses}
