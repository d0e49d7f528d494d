"""What the cluster looks like from here: the probe of ``monitor doctor``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kafka import KafkaConsumer
from kafka.errors import KafkaError

from monitor.ingest.kafka.codecs import newest_read
from monitor.ingest.kafka.connection import close, missing_topics, open_client
from monitor.ingest.kafka.options import consumer_options, failure
from monitor.settings import KafkaSettings

PATIENCE_SECONDS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerReport:
    """A cluster that answers, and its view of our topics."""

    bootstrap_servers: str
    broker_version: str
    """The oldest Apache Kafka version with the protocol that the broker speaks."""
    partitions: Mapping[str, int]
    """Partition counts of the topics that are there, the dead-letter topic included."""
    missing_topics: tuple[str, ...]
    dead_letter_topic_missing: bool
    newest_read: int
    """Partitions whose newest batch was read, to see that its compression is known here …"""
    with_records: int
    """… of so many that hold records."""


def describe(settings: KafkaSettings) -> BrokerReport:
    """Connect as the worker would, without joining the group; look at the topics and newest records.

    May block for a minute. Raises `BrokerUnavailable` or `ConfigurationError`; unknown topics
    are reported, not raised.
    """
    consumer = open_client(
        KafkaConsumer, settings, {**consumer_options(settings), "group_id": None}
    )
    dead_letters = [settings.dead_letter_topic] if settings.dead_letter_topic else []
    try:
        missing = missing_topics(consumer, settings.topics, PATIENCE_SECONDS)
        counts = {
            topic: len(consumer.partitions_for_topic(topic))
            for topic in (*settings.topics, *dead_letters)
        }
        read, filled = newest_read(consumer, [t for t in settings.topics if counts[t]])
        version = ".".join(map(str, consumer.config["api_version"]))
    except KafkaError as error:
        raise failure(error, settings) from None
    finally:
        close(consumer)
    return BrokerReport(
        bootstrap_servers=settings.bootstrap_servers,
        broker_version=version,
        partitions={topic: count for topic, count in counts.items() if count},
        missing_topics=tuple(missing),
        dead_letter_topic_missing=any(not counts[topic] for topic in dead_letters),
        newest_read=read,
        with_records=filled,
    )
