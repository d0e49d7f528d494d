"""Up to which time a chunk reads its partitions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from monitor.ingest.fields import EARLIEST, LATEST
from monitor.values.prompts import Half, Parsed, RawRecord


def newest_records(
    records: Sequence[RawRecord], outcomes: Iterable[Parsed | Half]
) -> Mapping[tuple[str, int], datetime]:
    """The time of the newest record of each (topic, partition), whatever became of the record.

    A record is as old as it says itself, and no younger than the time at which it was appended: a
    sender whose clock is ahead must not make a backlog look read. Implausible times tell nothing.
    """
    appended = {(r.topic, r.partition, r.offset): r.timestamp for r in records}
    newest: dict[tuple[str, int], datetime] = {}
    for outcome in outcomes:
        key = outcome.key
        said, came = outcome.recorded_at, appended[key.topic, key.partition, key.offset]
        earlier, later = (said, came) if said <= came else (came, said)
        at = earlier if earlier >= EARLIEST else later
        if not EARLIEST <= at <= LATEST:
            continue
        partition = (key.topic, key.partition)
        known = newest.get(partition)
        if known is None or known < at:
            newest[partition] = at
    return newest
