"""Kafka: where chunks of sampled prompts come from and where dead letters are announced.

The only package that speaks to the client library; its exceptions end here.
"""

from monitor.ingest.kafka.batches import bound_batches
from monitor.ingest.kafka.codecs import readable_codecs
from monitor.ingest.kafka.dead_letter_topic import DeadLetterTopic
from monitor.ingest.kafka.dead_letters import DeadLetterProducer
from monitor.ingest.kafka.logs_now import LogsNow, group_members, logs_now
from monitor.ingest.kafka.newest import Newest, newest_records
from monitor.ingest.kafka.options import client_options, principal
from monitor.ingest.kafka.placing import ReadingPoints
from monitor.ingest.kafka.report import BrokerReport, describe
from monitor.ingest.kafka.rights import Rights, rights
from monitor.ingest.kafka.source import KafkaSource

__all__ = [
    "BrokerReport",
    "DeadLetterProducer",
    "DeadLetterTopic",
    "KafkaSource",
    "LogsNow",
    "Newest",
    "ReadingPoints",
    "Rights",
    "client_options",
    "describe",
    "group_members",
    "logs_now",
    "newest_records",
    "principal",
    "readable_codecs",
    "rights",
]

bound_batches()
