"""How far a baseline's answers lie off what the copy would have said: what precision and kernels may explain."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Numerics:
    """Measured on answers that were drawn; in nats a token."""

    surprise: float
    """Mean centred surprise; 0 in the mean where the served model computes as the copy does."""
    bound: float
    """Its upper bound."""
    tokens: int
    reason: str = ""
    """A sentence for people: why ``bound`` is not allowed for; empty: it is."""

    def __str__(self) -> str:
        measured = (
            f"{self.surprise:+.3f} nats a token (up to {self.bound:+.3f}) over {self.tokens} tokens"
        )
        return f"{measured}: {self.reason}" if self.reason else measured

    def tolerance(self, least: float) -> float:
        """Nats a token to allow for, where ``least`` always are (``identity.tolerance``)."""
        return least if self.reason else max(least, self.bound)

    def entry(self) -> dict[str, Any]:
        """As the store holds it."""
        return asdict(self)


def tolerance_in_force(numerics: Numerics | None, least: float) -> float:
    """Nats a token: that of the approved baseline, or ``least`` where none was measured."""
    return least if numerics is None else numerics.tolerance(least)
