"""Which model speaks, of those that were registered? Likelihood-ratio bets between the copy and alternatives.

For an answer y let G be log q(y)/p(y), q an alternative's law and p the copy's (`monitor.values.likeness`). While the
copy answers, E[e^G | all before] = 1, so for every share ε

    Π ((1 - ε) + ε e^G)

is a test martingale, whatever is asked (Ville), and a mixture over a few ε is one too. The e-detector of
`monitor.drift.identity` runs on it, one stream for each alternative beside the one that bets on nobody by name, in the
same budget: so a named alternative is seen at smaller shares and distances, and which one it was is known.

**Named, and not named.** That the copy is refuted in favour of B does not say that B speaks: any third model that
is nearer to B than to the copy does the same. B is named only

* when the answers are `LEAD` times likelier under it, at its best share, than under every other alternative at its
  own, beyond what numerics explain (``tolerance`` nats a token), and
* while what is nearer to B than to the copy is what B would say: its centred surprise under B's own law, 0 in the
  mean for B's answers, is not surely beyond a stated distance.

Array legend: c = caps, s = `SHARES`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from monitor.drift.identity import bounded, mean_surprise
from monitor.values.arrays import Doubles
from monitor.values.drift import Bound
from monitor.values.likeness import SHARES, Likened, Likeness
from monitor.values.surprise import IdentityState

LEAD: Final = 100.0
"""Likelihood ratio from which on two alternatives are told apart."""


def likeness_of(likened: Likened, tolerance: float, *, unchecked: bool = False) -> Likeness:
    """One answer's; ``tolerance`` in nats a token is taken off what is staked, as from the bets on nobody by name.

    What an ``unchecked`` answer wins is `bounded` as theirs is.
    """
    off = tolerance * likened.tokens if likened.drawn else 0.0
    staked = np.logaddexp.reduce(likened.log_bets - off) - math.log(len(likened.log_bets))
    nearer = likened.gain > 0.0
    counted = nearer and likened.drawn
    return Likeness(
        n=1,
        nearer=int(nearer),
        tokens=likened.tokens if counted else 0,
        excess=likened.excess if counted else 0.0,
        variance=likened.variance if counted else 0.0,
        likelihoods=_mixed(likened.gain),
        wagers=_mixed(bounded(float(staked)) if unchecked else float(staked)),
    )


def _mixed(gain: float) -> Doubles:
    shares = np.array(SHARES)
    mixed: Doubles = np.logaddexp(np.log1p(-shares), np.log(shares) + gain)
    return mixed


@dataclass(frozen=True, slots=True, kw_only=True)
class Nearest:
    """The alternative that is likeliest to speak, where the copy is refuted in favour of one."""

    name: str
    served: str
    """What its answers are served as, as records name it."""
    evidence: float
    limit: float
    answers: int
    share: float | None
    """Of the window's answers that come from it, by maximum likelihood among `SHARES`; None: no answers."""
    gain: float | None
    """Nats an answer by which they are likelier at that share than under the copy alone."""
    surprise: Bound | None
    """Mean centred surprise, under its own law, of the answers nearer to it; nats a token."""
    fits: bool
    """They may be what it would say."""
    rivals: tuple[str, ...]
    """Alternatives that the answers do not tell from it."""

    @property
    def told(self) -> str:
        """A clause, of "answers"."""
        if self.rivals:
            names = " or ".join((self.name, *self.rivals))
            return f"they look like {names}, which they do not tell apart"
        if not self.fits:
            return f"they are nearer to {self.name} than to the copy, and are not what it would say"
        if self.gain is None or self.share is None:
            return f"they look like {self.name}"
        return (
            f"they look like {self.name}: {self.gain:.2g} nats an answer likelier with a share of about"
            f" {self.share:.0%} from it"
        )

    @property
    def named(self) -> str | None:
        return self.name if self.fits and not self.rivals else None

    def figures(self) -> dict[str, Any]:
        """As JSON."""
        bound = self.surprise
        return {
            "name": self.named,
            "nearest": self.name,
            "rivals": list(self.rivals),
            "gain": _figure(self.gain),
            "share": _figure(self.share),
            "answers": self.answers,
            "evidence": _figure(self.evidence),
            "limit": _figure(self.limit),
            "surprise": None
            if bound is None
            else {key: _figure(getattr(bound, key)) for key in ("value", "low", "high")},
        }


def nearest(
    states: Sequence[IdentityState],
    likenesses: Mapping[str, Likeness],
    *,
    tolerance: float,
    within: float,
    confidence: float,
) -> Nearest | None:
    """Who speaks, by the tests of a segment and what a window's answers say for each alternative.

    None while no test of an alternative has reached its limit. ``tolerance`` and ``within`` in nats a token.
    """
    crossed = {
        state.alternative: state
        for state in sorted(states, key=lambda one: one.evidence)
        if state.alternative and state.crossed
    }
    if not crossed:
        return None
    order = sorted(
        crossed,
        key=lambda name: (_best(likenesses.get(name)), crossed[name].evidence),
        reverse=True,
    )
    name, state = order[0], crossed[order[0]]
    found = likenesses.get(name)
    if found is None or found.n == 0:
        share, gain, surprise = None, None, None
        rivals = tuple(order[1:])
    else:
        share = SHARES[int(found.likelihoods.argmax())]
        gain = _best(found) / found.n
        surprise = None
        if found.tokens:
            surprise = mean_surprise(found.excess, found.variance, found.tokens, confidence)
        enough = _best(found) - math.log(LEAD) - tolerance * found.tokens
        rivals = tuple(
            other
            for other, its in sorted(likenesses.items())
            if other != name and its.n and _best(its) > enough
        )
    return Nearest(
        name=name,
        served=state.served,
        evidence=state.evidence,
        limit=state.limit,
        answers=found.n if found is not None else 0,
        share=share,
        gain=gain,
        surprise=surprise,
        fits=surprise is None or surprise.low <= within,
        rivals=rivals,
    )


def _best(likeness: Likeness | None) -> float:
    """Log-likelihood ratio to the copy at the share that makes it largest; 0 where none is better."""
    return max(0.0, float(likeness.likelihoods.max())) if likeness is not None else 0.0


def _figure(number: float | None) -> float | None:
    """JSON has no infinity and no NaN."""
    return float(f"{number:.6g}") if number is not None and math.isfinite(number) else None
