"""Looking at the newest records of a topic: bounded, spread over its partitions, leaving no trace."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from kafka import KafkaProducer

from monitor.ingest.kafka import newest_records
from monitor.settings import KafkaSettings


def sent(bootstrap: str, topic: str, counts: dict[int, int], size: int = 10) -> KafkaSettings:
    producer = KafkaProducer(bootstrap_servers=bootstrap, acks="all")
    for partition, count in counts.items():
        for number in range(count):
            producer.send(topic, f"{number}".rjust(size).encode(), partition=partition)
    producer.close()
    return KafkaSettings(bootstrap_servers=bootstrap, topics=(topic,), group_id=topic)


def test_the_newest_of_every_partition_and_the_longest_give_what_the_others_lack(
    kafka_bootstrap: str, make_topic: Callable[..., str]
) -> None:
    settings = sent(kafka_bootstrap, make_topic(partitions=4), {0: 200, 1: 5, 3: 80})
    newest = newest_records(settings, records=100)
    assert Counter(one.partition for one in newest.records) == {1: 5, 3: 47, 0: 48}
    assert newest.partitions == 3
    assert not newest.cut
    last = {one.partition: one.offset for one in newest.records}
    assert last == {0: 199, 1: 4, 3: 79}


def test_more_partitions_than_records_and_nothing_at_all(
    kafka_bootstrap: str, make_topic: Callable[..., str]
) -> None:
    settings = sent(kafka_bootstrap, make_topic(partitions=3), {0: 4, 1: 5, 2: 6})
    assert [one.offset for one in newest_records(settings, records=2).records] == [4, 5]
    empty = newest_records(sent(kafka_bootstrap, make_topic(), {}))
    assert (empty.records, empty.partitions, empty.cut) == ((), 0, False)


def test_bytes_end_the_look(kafka_bootstrap: str, topic: str) -> None:
    settings = sent(kafka_bootstrap, topic, {0: 60}, size=50_000)
    newest = newest_records(settings, records=60, most_bytes=200_000)
    assert newest.cut
    assert 1 <= len(newest.records) < 60
