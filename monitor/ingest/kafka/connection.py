"""Making a client that works, or saying why none can be made.

While it starts up the client library retries everything for as long as it may, a refused password
as well as a broker that is away, and then reports a timeout. Its log names the cause; so we listen.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

from kafka import KafkaConsumer
from kafka.errors import KafkaError
from kafka.net.compat import KafkaNetClient

from monitor.errors import BrokerUnavailable, ConfigurationError
from monitor.ingest.kafka import last_words
from monitor.ingest.kafka.listener import Address, mismatch
from monitor.ingest.kafka.options import consumer_options, principal, refusal
from monitor.settings import KafkaSettings

CONNECT_SECONDS: Final = 3.0
BOOTSTRAP_SECONDS: Final = 15.0
TOPIC_SECONDS: Final = 5.0
"""How long a topic may be missing before it counts as unknown: a new leader takes a moment."""

REACH: Final = (
    "Mend kafka.bootstrap_servers and kafka.security_protocol, start the broker, or let this host "
    "reach it: DNS, firewall, the network policy's ports."
)
LISTENER: Final = (
    "Mend kafka.security_protocol or the certificate, or name another listener's port in "
    "kafka.bootstrap_servers."
)


def connect(settings: KafkaSettings) -> KafkaConsumer:
    """A consumer that has reached the cluster and has found its topics; not yet subscribed.

    May block for about half a minute. Raises `BrokerUnavailable` when no broker answers and
    `ConfigurationError` when the cluster refuses us or does not know a topic.
    """
    consumer = open_client(KafkaConsumer, settings, consumer_options(settings))
    try:
        missing = missing_topics(consumer, settings.topics, TOPIC_SECONDS)
    except KafkaError as error:
        close(consumer)
        raise refusal(error, settings) or BrokerUnavailable(f"Kafka: {error}") from None
    if missing:
        close(consumer)
        raise ConfigurationError(
            f"kafka.topics: {', '.join(missing)} not found at {settings.bootstrap_servers}, or "
            f"{principal(settings)} may not DESCRIBE it: brokers do not tell which",
            hint="Create the topic, mend the name, or allow this principal to READ it.",
        )
    return consumer


def open_client(kind: type, settings: KafkaSettings, options: Mapping[str, Any]) -> Any:
    """A `KafkaConsumer` or `KafkaProducer` that has reached the cluster; errors as `connect`."""
    if not {"proxy_url", "socks5_proxy"} & options.keys():
        said = mismatch(_require_listener(options["bootstrap_servers"]), options)
        if said:
            raise BrokerUnavailable(said, hint=LISTENER)
    clients: list[KafkaNetClient] = []

    def refused(error: BaseException) -> object:
        return refusal(error, settings)

    def remembered(**configs: Any) -> KafkaNetClient:
        clients.append(last_words.heard(KafkaNetClient(**configs), refused))
        return clients[-1]

    defaults = {"bootstrap_timeout_ms": BOOTSTRAP_SECONDS * 1_000, "kafka_client": remembered}
    with _causes() as causes:
        try:
            return kind(**{**defaults, **options})
        except (KafkaError, OSError, ValueError) as error:
            # The constructor leaves its network thread behind when it fails.
            for client in clients:
                with suppress(KafkaError, OSError):
                    client.close()
            for cause in (error, *causes):
                if found := refusal(cause, settings):
                    raise found from None
            because = causes[-1] if causes else error
            raise BrokerUnavailable(
                f"Kafka at {settings.bootstrap_servers} cannot be used: {because}", hint=REACH
            ) from None


def missing_topics(
    consumer: KafkaConsumer, topics: Sequence[str], patience_seconds: float
) -> list[str]:
    """The topics that the cluster does not know (or hides from us) for ``patience_seconds``."""
    deadline = time.monotonic() + patience_seconds
    while True:
        missing = [topic for topic in topics if not consumer.partitions_for_topic(topic)]
        if not missing or time.monotonic() > deadline:
            return missing
        time.sleep(0.5)


def close(consumer: KafkaConsumer) -> None:
    """Leave the group and let go of every connection, within a few seconds, whatever happens."""
    with suppress(KafkaError, OSError):
        consumer.close(autocommit=False, timeout_ms=5_000)


def _require_listener(servers: Sequence[str]) -> Address:
    """The first of the addresses at which something listens; fails at once, and cheaply, if none is."""
    problems = []
    for server in servers:
        host, _, port = server.rpartition(":") if ":" in server else (server, "", "9092")
        try:
            address = host.strip("[]"), int(port)
            socket.create_connection(address, CONNECT_SECONDS).close()
        except ValueError:
            raise ConfigurationError(
                f"kafka.bootstrap_servers: {server!r} is not host:port"
            ) from None
        except OSError as error:
            problems.append(f"{server}: {error.strerror or error}")
        else:
            return address
    raise BrokerUnavailable(f"no Kafka broker answers ({'; '.join(problems)})", hint=REACH)


@contextmanager
def _causes() -> Iterator[list[BaseException]]:
    """Exceptions that the library's network layer logs meanwhile, oldest first."""
    heard: list[BaseException] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            arguments = record.args if isinstance(record.args, tuple) else ()
            heard.extend(item for item in arguments if isinstance(item, BaseException))

    listener = Listener(logging.WARNING)
    logger = logging.getLogger("kafka.net")
    logger.addHandler(listener)
    try:
        yield heard
    finally:
        logger.removeHandler(listener)
