"""What changed: the users, the served model, or our own instrument?"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from monitor.values.drift import Cause
from monitor.values.scores import CanaryRun

UNLABELLED = "@"
"""How a served model is written that its records do not name: ``model@revision``, both empty."""


def cause_of(
    canaries: Sequence[CanaryRun], served: Collection[str], served_before: Collection[str]
) -> Cause:
    """The cause that every drift of one evaluation carries, by the first line that applies.

    ``canaries`` are the recent runs of the workers that are alive, ``served`` and ``served_before``
    the models that records named (``model@revision``) now and in the baseline's interval.

    1. no recent run: `Cause.UNKNOWN`. Nothing vouches for the instrument.
    2. a run that did not reproduce its recorded readings: `Cause.INSTRUMENT_SHIFT`. Our copy,
       its device or its numerics changed, and every score is in doubt.
    3. a served model that the baseline did not know, while the baseline's records were labelled:
       `Cause.MODEL_SHIFT`. The copy reads as ever, but what it reads was answered by another model.
    4. else `Cause.INPUT_SHIFT`: same instrument, and as far as the records tell the same served
       model, so what is asked and answered changed. Records without a model label cannot tell a
       silently replaced model from changed users.
    """
    if not canaries:
        return Cause.UNKNOWN
    if not all(run.reproduced for run in canaries):
        return Cause.INSTRUMENT_SHIFT
    known = set(served_before) - {UNLABELLED}
    if known and set(served) - {UNLABELLED} - known:
        return Cause.MODEL_SHIFT
    return Cause.INPUT_SHIFT
