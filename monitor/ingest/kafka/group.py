"""The consumer group: what it decides is passed on, and while it decides we poll differently."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from kafka import ConsumerRebalanceListener, KafkaConsumer, TopicPartition
from kafka.structs import MemberState

from monitor.ingest.kafka.holdings import Holdings
from monitor.ingest.kafka.natives import key_of, names_of, native
from monitor.logs import get_logger
from monitor.metrics import METRICS
from monitor.settings import KafkaSettings

log = get_logger(__name__)

POLL_SECONDS: Final = 0.02
JOIN_POLL_SECONDS: Final = 1.0
JOIN_SECONDS: Final = 60.0
"""The group lets a worker in within seconds. After so long it is said that it has not."""


class Listener(ConsumerRebalanceListener):
    """Passes on what the group decided. Never blocks: heartbeats run on the same thread."""

    def __init__(self, holdings: Holdings, consumer: KafkaConsumer) -> None:
        self._holdings = holdings
        self._consumer = consumer

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """The rebalance is over. Called from within `KafkaConsumer.poll`, on its network thread."""
        owned = frozenset(map(key_of, assigned))
        gone, new = self._holdings.assign(owned)
        if gone or new:
            METRICS.rebalances.inc()
        # A position of any kind keeps the library from looking for one; paused, it is not used.
        self._consumer.pause(*map(native, new))
        for partition in new:
            self._consumer.seek(native(partition), 0)
        log.info(
            "kafka.rebalanced", gone=names_of(gone), new=names_of(new), kept=names_of(owned - new)
        )

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        self._holdings.suspend(list(map(key_of, revoked)))

    def on_partitions_lost(self, lost: Iterable[TopicPartition]) -> None:
        partitions = list(map(key_of, lost))
        self._holdings.lose(partitions)
        log.warning("kafka.membership_lost", partitions=names_of(partitions))


class Joining:
    """How long the group has been dividing its partitions, without one of them for us."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._since: float | None = None

    def look(self, stable: bool, now: float) -> str:
        """Why we may have been waiting for `JOIN_SECONDS`; empty while we are in, or have just begun to wait."""
        if stable:
            self._since = None
        elif self._since is None:
            self._since = now
        if self._since is None or now - self._since < JOIN_SECONDS:
            return ""
        return (
            f"the group {self._settings.group_id} has not let this worker in for more than a minute: it waits "
            "for a member that was killed (for kafka.session_timeout_ms) or is busy (for kafka.max_poll_interval_ms), "
            "or the broker that leads the group cannot be reached from here"
        )


def is_stable(consumer: KafkaConsumer) -> bool:
    """No rebalance is going on."""
    return bool(consumer.group_metadata().state == MemberState.STABLE)


def finish_join(consumer: KafkaConsumer) -> None:
    """See to it that the next poll finishes a join that was begun.

    When the partitions of a topic are what changed, the library (3.0.12) forgets that it must join as soon as
    it has divided the new ones. Where that happens between two polls it never takes its own
    assignment, sends no heartbeats, and every partition is silent for good.
    """
    coordinator = consumer._coordinator
    if coordinator.rejoining:
        coordinator.rejoin_needed = True


def poll_ms(consumer: KafkaConsumer) -> float:
    """How long one poll may block.

    While the group rebalances we must be inside of `KafkaConsumer.poll`: the library throws away an
    assignment that arrives between two polls and joins again, which two short-polling members can
    go on doing to each other for ever.
    """
    return 1_000 * (POLL_SECONDS if is_stable(consumer) else JOIN_POLL_SECONDS)
