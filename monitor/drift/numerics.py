"""How far apart may served model and copy compute? Measured on the answers of a baseline.

A bet of tilt λ gains λ times the mean centred surprise a token by numerics, to first order (`monitor.drift.identity`), so this mean
is what must be allowed for, and its upper bound is on the safe side. Given what was asked and said before, a token's centred
surprise has mean 0 and a known variance while the served model is the copy: the sum over a baseline is a martingale, and no
independence of prompts is assumed. The normal bound is the one that vouches for windows, too.

Text that is split otherwise than it was drawn is more surprising: +0.05 nats a token in the mean of the small model's own answers, which
the price of odd tokens covers already. So only answers count of which the server counted as many tokens. A baseline that
is too far off, or too small to tell, sets nothing: another model's answers are not numerics.
"""

from __future__ import annotations

from typing import Final

from monitor.drift.identity import mean_surprise
from monitor.drift.sequential import BASELINE_RISK
from monitor.values.numerics import Numerics
from monitor.values.surprise import Tally

_CONFIDENCE: Final = 1.0 - 2.0 * BASELINE_RISK
"""Of the two-sided bounds: the upper one alone holds with 1 - `BASELINE_RISK`."""


def measured(tally: Tally, within: float) -> Numerics | None:
    """Of all answers of a baseline; None where none was drawn by a law above temperature 0.

    ``within`` (``identity.vouch_within``, nats a token): what would not be vouched for is not allowed for either.
    """
    if tally.tokens == 0:
        return None
    sums = tally.counted_excess, tally.counted_variance, tally.counted_tokens
    if tally.counted_tokens == 0:
        sums = tally.excess, tally.variance, tally.tokens
    found = mean_surprise(*sums, _CONFIDENCE)
    reason = ""
    if found.low > within:
        reason = (
            f"too much for numerics (identity.vouch_within allows {within:g}). Another model, chat template or "
            "system prompt than the copy's may have given these answers"
        )
    elif tally.counted_tokens == 0:
        reason = (
            "the records hold no token counts of the server, so that what numerics do and what text does that is "
            "split otherwise than it was drawn cannot be told apart"
        )
    elif found.high > within:
        reason = (
            f"not known well enough (identity.vouch_within allows {within:g}); more weighed answers would "
            "tell"
        )
    return Numerics(surprise=found.value, bound=found.high, tokens=sums[2], reason=reason)
