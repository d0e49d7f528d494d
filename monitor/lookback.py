"""The worker's look back: where nearly nothing comes to a score, it stops before the topic is eaten."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Mapping
from typing import Final

from monitor.errors import EverythingUnreadable
from monitor.settings import IngestSettings
from monitor.values.losses import SCORED, Losses, of_reading, of_replaying
from monitor.values.prompts import SKIP_MENDS

_STAGES: Final = (
    (of_reading, "records cannot be read or replayed"),
    (of_replaying, "prompts cannot be replayed"),
)


class Lookback:
    """Two windows of ``ingest.dead_letter_window`` outcomes: of what was read, and of what was replayed.

    Apart, because sampling stands between the two: what the model refuses must not drown in the records
    that the sample passed over.
    """

    def __init__(self, ingest: IngestSettings) -> None:
        self._ingest = ingest
        self._windows = [deque[str](maxlen=ingest.dead_letter_window) for _ in _STAGES]

    def remember(self, outcomes: Mapping[str, int]) -> None:
        """Begin with what became of earlier records: a restart must not forget a bad deploy."""
        for window, (losses_of, _) in zip(self._windows, _STAGES, strict=True):
            found = losses_of(outcomes)
            length = min(found.n, self._ingest.dead_letter_window)
            for outcome, n in found.reasons.items():
                window.extend([outcome] * round(n / found.n * length))
            window.extend([SCORED] * (length - len(window)))

    def take(self, outcomes: Collection[str]) -> None:
        """Look at one chunk's outcomes. Raises `EverythingUnreadable` when nearly all came to nothing."""
        ingest = self._ingest
        for window, (losses_of, what) in zip(self._windows, _STAGES, strict=True):
            belong = {outcome for outcome in set(outcomes) if losses_of({outcome: 1}).n}
            window.extend(outcome for outcome in outcomes if outcome in belong)
            seen, here = losses_of(Counter(window)), losses_of(Counter(outcomes))
            enough = seen.n >= min(ingest.dead_letter_window, ingest.first_chunk_records)
            # The chunk itself must be bad too: after the producer is mended, good ones pass.
            if enough and min(seen.share, here.share) > ingest.dead_letter_limit:
                raise EverythingUnreadable(
                    f"{seen.share:.0%} of the last {seen.n} {what}: {seen.told()} "
                    f"(ingest.dead_letter_limit is {ingest.dead_letter_limit:.0%})",
                    hint=_hint(seen),
                )


def _hint(seen: Losses) -> str:
    mends = [
        f"{reason.value}: {mend}."
        for reason, mend in SKIP_MENDS.items()
        if f"skipped:{reason.value}" in seen.reasons
    ]
    return " ".join(
        [
            "The chunk that showed it was not stored. Look at the newest dead letters, mend the producer "
            "or set ingest.format.",
            *mends,
            "dead_letter_limit: 1.0 lets everything pass.",
        ]
    )
