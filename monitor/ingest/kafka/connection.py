"""Making a client that works, or saying why none can be made.

While it starts up the client library retries everything for as long as it may, a refused password
as well as a broker that is away, and then reports a timeout. Its log names the cause; so we listen.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import threading
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
from monitor.ingest.kafka.options import consumer_options, failure, principal, refusal
from monitor.settings import KafkaSettings

CONNECT_SECONDS: Final = 3.0
KNOCK_MS: Final = 200
CUT_MS: Final = 500
CUT_AGAIN_SECONDS: Final = 0.1
LEAVE_MS: Final = 1_000
BOOTSTRAP_SECONDS: Final = 15.0
TOPIC_SECONDS: Final = 5.0
"""How long a topic may be missing before it counts as unknown: a new leader takes a moment."""

REACH: Final = (
    "Mend kafka.bootstrap_servers and kafka.security_protocol, start the broker, or let this host "
    "reach it: DNS, firewall, the network policy's ports."
)
ADVERTISED: Final = (
    "Mend advertised.listeners of the brokers, name a listener in kafka.bootstrap_servers that is meant "
    "for this host, or let this host resolve and reach that address."
)
LISTENER: Final = (
    "Mend kafka.security_protocol or the certificate, or name another listener's port in "
    "kafka.bootstrap_servers."
)


class Line:
    """The network of clients that are opened one after the other, to be cut by another thread."""

    def __init__(self) -> None:
        self._cut = threading.Event()
        self._client: KafkaNetClient | None = None

    def opened(self, client: KafkaNetClient) -> None:
        self._client = client

    def cut_until_ended(self, thread: threading.Thread, seconds: float) -> None:
        """Cut again and again until ``thread``, which works on the line, has ended; for ``seconds`` at most.

        Once is not enough: a client that is just being made may be missed.
        """
        deadline = time.monotonic() + seconds
        while thread.is_alive() and time.monotonic() < deadline:
            self.cut()
            thread.join(CUT_AGAIN_SECONDS)

    def cut(self) -> None:
        """Whatever waits for an answer on the line fails soon, and so does what is opened on it later."""
        self._cut.set()
        if self._client is not None:
            self._client._net.stop(timeout_ms=CUT_MS)

    @property
    def is_cut(self) -> bool:
        return self._cut.is_set()

    def rest(self, seconds: float) -> None:
        """Wait; at most until the line is cut."""
        self._cut.wait(seconds)

    def require(self) -> None:
        if self.is_cut:
            raise BrokerUnavailable("the line to Kafka was cut")


def connect(settings: KafkaSettings, line: Line | None = None) -> KafkaConsumer:
    """A consumer that has reached the cluster and has found its topics; not yet subscribed.

    May block for about half a minute, unless ``line`` is cut. Raises `BrokerUnavailable` when no broker
    answers and `ConfigurationError` when the cluster refuses us or does not know a topic.
    """
    line = line or Line()
    consumer = open_client(KafkaConsumer, settings, consumer_options(settings), line)
    try:
        missing = missing_topics(consumer, settings.topics, TOPIC_SECONDS, line)
    except KafkaError as error:
        astray = _astray(consumer._client, settings, line)
        close(consumer)
        raise (refusal(error, settings) or astray or failure(error, settings)) from None
    if missing:
        close(consumer)
        raise ConfigurationError(
            f"kafka.topics: {', '.join(missing)} not found at {settings.bootstrap_servers}, or "
            f"{principal(settings)} may not DESCRIBE it: brokers do not tell which",
            hint="Create the topic, mend the name, or allow this principal to READ it.",
        )
    return consumer


def open_client(
    kind: type, settings: KafkaSettings, options: Mapping[str, Any], line: Line | None = None
) -> Any:
    """A `KafkaConsumer` or `KafkaProducer` that has reached the cluster; errors as `connect`."""
    line = line or Line()
    if not {"proxy_url", "socks5_proxy"} & options.keys():
        said = _mismatch(_require_listener(options["bootstrap_servers"], line), options, line)
        if said:
            raise BrokerUnavailable(said, hint=LISTENER)
    clients: list[KafkaNetClient] = []

    def refused(error: BaseException) -> object:
        return refusal(error, settings)

    def remembered(**configs: Any) -> KafkaNetClient:
        line.require()
        clients.append(last_words.heard(KafkaNetClient(**configs), refused))
        line.opened(clients[-1])
        return clients[-1]

    defaults = {"bootstrap_timeout_ms": BOOTSTRAP_SECONDS * 1_000, "kafka_client": remembered}
    with _causes() as causes:
        try:
            return kind(**{**defaults, **options})
        except (KafkaError, OSError, ValueError) as error:
            astray = _astray(clients[-1], settings, line) if clients else None
            # The constructor leaves its network thread behind when it fails.
            for client in clients:
                with suppress(KafkaError, OSError):
                    client.close()
            for cause in (error, *causes):
                if found := refusal(cause, settings):
                    raise found from None
            because = causes[-1] if causes else error
            raise (
                astray
                or BrokerUnavailable(
                    f"Kafka at {settings.bootstrap_servers} cannot be used: {because}", hint=REACH
                )
            ) from None


def missing_topics(
    consumer: KafkaConsumer,
    topics: Sequence[str],
    patience_seconds: float,
    line: Line | None = None,
) -> list[str]:
    """The topics that the cluster does not know (or hides from us) for ``patience_seconds``.

    Raises `BrokerUnavailable` once ``line`` is cut.
    """
    line = line or Line()
    deadline = time.monotonic() + patience_seconds
    while True:
        line.require()
        missing = [topic for topic in topics if not consumer.partitions_for_topic(topic)]
        if not missing or time.monotonic() > deadline:
            return missing
        line.rest(0.5)


def close(consumer: KafkaConsumer) -> None:
    """Leave the group and let go of every connection, within a second or two, whatever happens."""
    with suppress(KafkaError, OSError):
        consumer.close(autocommit=False, timeout_ms=LEAVE_MS)


def _require_listener(servers: Sequence[str], line: Line) -> Address:
    """The first of the addresses at which something listens; fails at once, and cheaply, if none is."""
    problems = []
    for server in servers:
        host, _, port = server.rpartition(":") if ":" in server else (server, "", "9092")
        try:
            address = host.strip("[]"), int(port)
            _knock(*address, line)
        except ValueError:
            raise ConfigurationError(
                f"kafka.bootstrap_servers: {server!r} is not host:port"
            ) from None
        except OSError as error:
            problems.append(f"{server}: {error.strerror or error}")
        else:
            return address
    raise BrokerUnavailable(f"no Kafka broker answers ({'; '.join(problems)})", hint=REACH)


def _astray(
    client: KafkaNetClient, settings: KafkaSettings, line: Line
) -> BrokerUnavailable | None:
    """What is wrong where the brokers send clients on to addresses that cannot be reached from here.

    Brokers that answer tell at which address each of them is to be spoken to; None when nothing was told,
    or every address is well. May block for `CONNECT_SECONDS` for each.
    """
    faults = []
    told = client._manager.cluster
    first = {broker.node_id for broker in told.bootstrap_brokers()}
    for broker in sorted(told.brokers(), key=lambda broker: str(broker.node_id)):
        if broker.node_id not in first and not line.is_cut:
            try:
                _knock(broker.host, broker.port, line)
            except OSError as error:
                faults.append(f"{broker.host}:{broker.port}: {error.strerror or error}")
    if not faults:
        return None
    return BrokerUnavailable(
        f"the brokers at {settings.bootstrap_servers} answer, but send clients on to addresses that cannot "
        f"be reached from here ({'; '.join(faults)})",
        hint=ADVERTISED,
    )


def _mismatch(address: Address, options: Mapping[str, Any], line: Line) -> str:
    """As `mismatch`; once ``line`` is cut its question is left to end by itself, within its own seconds."""
    said: list[str] = []
    asking = threading.Thread(
        target=lambda: said.append(mismatch(address, options)), name="listener", daemon=True
    )
    asking.start()
    while asking.is_alive() and not line.is_cut:
        asking.join(KNOCK_MS / 1_000)
    line.require()
    return said[0] if said else ""


def _knock(host: str, port: int, line: Line) -> None:
    """Connect within `CONNECT_SECONDS` and hang up; `OSError` when nobody answers or ``line`` is cut."""
    failed: OSError = TimeoutError("timed out")
    deadline = time.monotonic() + CONNECT_SECONDS
    for family, kind, protocol, _, address in socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM
    ):
        with socket.socket(family, kind, protocol) as caller:
            caller.setblocking(False)
            caller.connect_ex(address)
            poller = select.poll()
            poller.register(caller, select.POLLOUT)
            answered: list[tuple[int, int]] = []
            while not answered and time.monotonic() < deadline and not line.is_cut:
                answered = poller.poll(KNOCK_MS)
            code = caller.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if answered and code == 0:
            return
        failed = OSError(code, os.strerror(code)) if code else TimeoutError("timed out")
    raise failed


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
