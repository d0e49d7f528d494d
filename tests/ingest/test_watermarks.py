"""Up to which time a chunk reads its partitions."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from monitor.ingest.formats import parse
from monitor.ingest.watermarks import newest_records
from monitor.settings import IngestSettings
from monitor.values.prompts import RawRecord
from tests.ingest.conftest import APPENDED

Build = Callable[..., RawRecord]
HOUR = timedelta(hours=1)


def newest(*records: RawRecord) -> dict[tuple[str, int], datetime]:
    outcomes = [one for record in records for one in parse(record, IngestSettings())]
    return dict(newest_records(records, outcomes))


def prompt(at: datetime) -> dict[str, str]:
    return {"prompt": "x", "timestamp": at.isoformat()}


def test_the_newest_of_each_partition_by_its_own_time(record: Build) -> None:
    early, late = prompt(APPENDED - 2 * HOUR), prompt(APPENDED - HOUR)
    assert newest(
        record(late, offset=1), record(early, offset=2), record(early, partition=7, offset=3)
    ) == {("prompts", 2): APPENDED - HOUR, ("prompts", 7): APPENDED - 2 * HOUR}


def test_a_sender_whose_clock_is_ahead_does_not_make_a_backlog_look_read(record: Build) -> None:
    assert newest(record(prompt(APPENDED + 5 * HOUR))) == {("prompts", 2): APPENDED}


def test_records_that_are_not_scored_are_read_all_the_same(record: Build) -> None:
    later = APPENDED + HOUR
    assert newest(record(b"{", offset=1), record(None, offset=2, timestamp=later)) == {
        ("prompts", 2): later
    }


def test_implausible_times_tell_nothing(record: Build) -> None:
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    assert newest(record(b"{", timestamp=epoch)) == {}
    own = APPENDED - HOUR
    assert newest(record(prompt(own), timestamp=epoch)) == {("prompts", 2): own}
