"""Kafka: where chunks of sampled prompts come from and where dead letters are announced.

The only package that speaks to the client library; its exceptions end here.
"""

from monitor.ingest.kafka.codecs import readable_codecs
from monitor.ingest.kafka.dead_letters import DeadLetterProducer
from monitor.ingest.kafka.newest import Newest, newest_records
from monitor.ingest.kafka.options import client_options, principal
from monitor.ingest.kafka.report import BrokerReport, describe
from monitor.ingest.kafka.rights import Rights, rights
from monitor.ingest.kafka.source import KafkaSource

__all__ = [
    "BrokerReport",
    "DeadLetterProducer",
    "KafkaSource",
    "Newest",
    "Rights",
    "client_options",
    "describe",
    "newest_records",
    "principal",
    "readable_codecs",
    "rights",
]
