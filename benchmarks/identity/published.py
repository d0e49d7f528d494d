"""A published way to tell another model from its answers, as far as it can be computed on the same pools.

*Token-DiFR* (arXiv 2511.20621) at temperature 0: the margin by which a token lies below the copy's most likely one,
averaged over tokens, against that of an honest server of another precision (bfloat16). Margins are summed over an
answer here, not clipped token by token. With a shared seed it also covers drawn answers, which needs the server's help.
It is held to a risk of 10⁻³ at *one* look, where the e-process may be looked at after every answer.

*Model equality testing* needs several answers to each question, which these pools do not hold: see `equality`.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from benchmarks.identity.pools import Pool
from monitor.values.arrays import Doubles

RISK: Final = 1e-3


def margin_test(honest: Pool, other: Pool, generator: np.random.Generator) -> dict[str, Any]:
    """Tokens until the mean margin of half of all samples is above that of all but 10⁻³ of honest ones."""
    for answers in (1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377, 610, 987):
        theirs = _means(other, answers, 1_000, generator)
        limit = float(np.quantile(_means(honest, answers, 20_000, generator), 1 - RISK))
        if float(np.median(theirs)) > limit:
            return {"tokens": answers * float(other.tokens.mean()), "answers": answers}
    return {"tokens": None, "answers": None}


def _means(pool: Pool, answers: int, draws: int, generator: np.random.Generator) -> Doubles:
    chosen = generator.integers(len(pool), size=(draws, answers))
    found: Doubles = pool.excess[chosen].sum(axis=1) / pool.tokens[chosen].sum(axis=1)
    return found
