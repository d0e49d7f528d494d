"""What became of records, and how many came to nothing: of those read, and of the prompts replayed.

An outcome is ``scored``, ``dead:<reason>`` or ``skipped:<reason>``, as SQL counts it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from monitor.values.prompts import DeadLetter, DeadReason, Skip, SkipReason

SCORED: Final = "scored"


def outcome_of(lost: DeadLetter | Skip) -> str:
    return f"{'dead' if isinstance(lost, DeadLetter) else 'skipped'}:{lost.reason.value}"


REPLAYED: Final = frozenset(
    {
        SCORED,
        f"skipped:{SkipReason.NOTHING_TO_READ.value}",
        *(
            f"dead:{reason.value}"
            for reason in (
                DeadReason.TEMPLATE_REFUSED,
                DeadReason.NO_TOKENS,
                DeadReason.NON_FINITE,
                DeadReason.OUT_OF_MEMORY,
            )
        ),
    }
)
"""Outcomes of prompts that were read, belong to the sample, and came before the model."""
PASSED_OVER: Final = frozenset(
    f"skipped:{reason.value}" for reason in (SkipReason.SAMPLED_OUT, SkipReason.SERVER_CANARY)
)
NOT_OURS: Final = frozenset(
    f"skipped:{reason.value}" for reason in (SkipReason.OTHER_MODEL, SkipReason.NO_ANSWER)
)
"""Could be read, and a setting leaves them out: ``ingest.models``, ``replay.answer_share``."""
READ: Final = REPLAYED | PASSED_OVER | NOT_OURS
"""Outcomes of records that could be read."""
EMPTY: Final = frozenset({f"skipped:{SkipReason.TOMBSTONE.value}"})
TELEMETRY: Final = frozenset({f"skipped:{SkipReason.NOT_A_PROMPT.value}"})
"""Stands beside prompts in many topics, and says nothing of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """How many of ``n`` came to nothing, by outcome."""

    n: int
    reasons: Mapping[str, int] = field(default_factory=dict)

    @property
    def share(self) -> float:
        return sum(self.reasons.values()) / self.n if self.n else 0.0

    def told(self) -> str:
        """The outcomes, the commonest first: ``skipped:content_redacted 940, dead:empty 12``."""
        ranked = sorted(self.reasons.items(), key=lambda item: (-item[1], item[0]))
        return ", ".join(f"{outcome} {n}" for outcome, n in ranked)


def of_reading(outcomes: Mapping[str, int]) -> Losses:
    """Of the exchanges, those that gave no prompt; telemetry and tombstones are none."""
    return _losses(outcomes, good=READ, beside=TELEMETRY | EMPTY)


def of_replaying(outcomes: Mapping[str, int]) -> Losses:
    """Of the prompts of the sample, those that gave no score."""
    return _losses({key: n for key, n in outcomes.items() if key in REPLAYED}, good={SCORED})


def of_everything(outcomes: Mapping[str, int]) -> Losses:
    """All records where none was scored, also telemetry, other models' and prompts that a setting leaves
    out: a topic of nothing else."""
    if outcomes.get(SCORED):
        return Losses(n=0)
    return _losses(outcomes, good=frozenset(), beside=PASSED_OVER | EMPTY)


def _losses(
    outcomes: Mapping[str, int],
    *,
    good: frozenset[str] | set[str],
    beside: frozenset[str] = frozenset(),
) -> Losses:
    counted = {key: n for key, n in outcomes.items() if key not in beside and n}
    return Losses(
        n=sum(counted.values()),
        reasons={key: n for key, n in counted.items() if key not in good},
    )
