"""What a sample of the topic holds: formats, answers, tools, what is skipped and why. Never any text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final

from monitor.ingest.fields import EARLIEST
from monitor.ingest.joining import Joins
from monitor.settings import IngestSettings
from monitor.unanswered import Unanswered
from monitor.values.prompts import (
    Chunk,
    DeadLetter,
    Parsed,
    Prompt,
    RawRecord,
    Sampling,
    Skip,
    SkipReason,
)

MOST: Final = 0.5
"""From this share on what is lost for one cause makes the sample unwell."""
_UNASKED: Final = frozenset({"finish_reason"})
"""Of `Sampling`: what the server says, not how it was asked to draw."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """Counts over a sample. ``skipped`` and ``dead`` are by reason, ``details`` a dead letter's own words.

    ``answered`` and the counts behind it are of ``prompts``; ``unread`` prompts have no answer, and the pack
    reads nothing else.
    """

    records: int = 0
    exchanges: int = 0
    """Prompts, skips and dead letters: one record may hold several."""
    prompts: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    dead: Counter[str] = field(default_factory=Counter)
    details: dict[str, str] = field(default_factory=dict)
    answered: int = 0
    with_tools: int = 0
    with_sampling: int = 0
    with_counts: int = 0
    with_model: int = 0
    unread: int = 0

    @property
    def figures(self) -> dict[str, Any]:
        """The counts as JSON types."""
        return {
            one.name: dict(value) if isinstance(value, dict) else value
            for one in fields(self)
            for value in (getattr(self, one.name),)
        }

    @property
    def dead_share(self) -> float:
        return self.dead.total() / max(self.exchanges, 1)

    def sentence(self) -> str:
        """What was found, for people."""
        if not self.records:
            return "no records yet"
        parts = [f"{self.prompts} prompts in {self.records} records"]
        if self.prompts:
            parts[0] += f" ({_told(self.formats, self.prompts)})"
            parts.append(
                ", ".join(
                    f"{_share(count, self.prompts)} {what}"
                    for count, what in (
                        (self.answered, "with an answer"),
                        (self.with_tools, "with tools"),
                        (self.with_sampling, "with sampling parameters"),
                        (self.with_counts, "with the server's token counts"),
                        (self.with_model, "name their model"),
                    )
                )
            )
        if self.skipped:
            parts.append(f"skipped: {_told(self.skipped, self.exchanges)}")
        if self.dead:
            parts.append(f"cannot be read: {_told(self.dead, self.exchanges)}")
        return "; ".join(parts)


def outcomes_of(records: Sequence[RawRecord], ingest: IngestSettings) -> list[Parsed]:
    """What the worker would make of ``records``, before any sampling.

    Parts of exchanges whose rest is not among them are skips.
    """
    joins = Joins(ingest)
    now = max((record.timestamp for record in records), default=EARLIEST)
    read = joins.read(Chunk(records=tuple(records), spans=()), now=now)
    return [*read.outcomes, *joins.end()]


def survey(records: int, outcomes: Sequence[Parsed], unanswered: Unanswered | None) -> Survey:
    """Count the ``outcomes`` of so many ``records``.

    ``unanswered`` is None where the pack is not known: nothing then counts as unread.
    """
    prompts = [outcome for outcome in outcomes if isinstance(outcome, Prompt)]
    letters = [outcome for outcome in outcomes if isinstance(outcome, DeadLetter)]
    return Survey(
        records=records,
        exchanges=len(outcomes),
        prompts=len(prompts),
        formats=Counter(prompt.source_format for prompt in prompts),
        skipped=Counter(one.reason.value for one in outcomes if isinstance(one, Skip)),
        dead=Counter(letter.reason.value for letter in letters),
        details={letter.reason.value: letter.detail for letter in letters if letter.detail},
        answered=sum(prompt.answered for prompt in prompts),
        with_tools=sum(bool(prompt.tools) for prompt in prompts),
        with_sampling=sum(_sampled(prompt.sampling) for prompt in prompts),
        with_counts=sum(prompt.served is not None for prompt in prompts),
        with_model=sum(prompt.model is not None for prompt in prompts),
        unread=len(unanswered.wanted(prompts).skipped) if unanswered else 0,
    )


def mends(seen: Survey, unanswered: Unanswered | None, dead_limit: float) -> list[str]:
    """What helps against what the survey saw; empty when nothing needs to be done.

    ``dead_limit`` is the share of dead letters from which on they are worth a word.
    """
    if not seen.exchanges:
        return []
    found = []
    if seen.dead_share > dead_limit:
        reason, _ = seen.dead.most_common(1)[0]
        detail = seen.details.get(reason, "")
        found.append(
            f"Most of what cannot be read is {reason}{detail and f' ({detail})'}: docs/records.md says "
            "what to do; ingest.format reads every record as one format."
        )
    if seen.skipped and not seen.prompts:
        reason, _ = seen.skipped.most_common(1)[0]
        found.append(
            {
                SkipReason.OTHER_MODEL.value: "Look at ingest.models: it leaves out what is here.",
                SkipReason.CONTENT_REDACTED.value: "Let the sender log the content: it is left out.",
            }.get(reason, f"Look at kafka.topics: nothing here is a prompt, most is {reason}.")
        )
    if unanswered and seen.unread > MOST * seen.prompts:
        found.append(f"Most prompts have no answer: {unanswered.mend}.")
    return found


def _sampled(sampling: Sampling | None) -> bool:
    if sampling is None:
        return False
    asked = (getattr(sampling, one.name) for one in fields(sampling) if one.name not in _UNASKED)
    return any(value not in (None, ()) for value in asked)


def _told(counts: Counter[str], of: int) -> str:
    return ", ".join(f"{name} {_share(count, of)}" for name, count in counts.most_common())


def _share(count: int, of: int) -> str:
    return (
        f"{count / of:.0%}"
        if count in (0, of) or 0.01 <= count / of <= 0.99
        else f"{count} of {of}"
    )
