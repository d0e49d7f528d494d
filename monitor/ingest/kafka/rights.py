"""What the brokers let us do, asked before the first record: the probe of ``monitor doctor``."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from kafka import KafkaAdminClient
from kafka.errors import (
    AuthorizationError,
    CoordinatorLoadInProgressError,
    CoordinatorNotAvailableError,
    GroupAuthorizationFailedError,
    KafkaError,
    NotCoordinatorError,
    TopicAuthorizationFailedError,
    for_code,
)
from kafka.protocol.consumer import HeartbeatRequest

from monitor.ingest.kafka.connection import open_client
from monitor.ingest.kafka.options import client_options, failure, principal
from monitor.settings import KafkaSettings

COORDINATOR_SECONDS: Final = 5.0
"""How long a group's coordinator is looked for: the first group of a cluster makes its topic first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Right:
    """An operation on a topic or a group that the monitor needs."""

    operation: str
    kind: str
    """``topic`` or ``group``, as Kafka's own command spells it."""
    name: str

    def __str__(self) -> str:
        return f"{self.operation} on the {self.kind} {self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rights:
    """Which of the rights that the monitor needs are there."""

    principal: str
    granted: tuple[Right, ...]
    missing: tuple[Right, ...]
    untold: tuple[Right, ...]
    """What the broker does not tell: it has no such answer, or the topic is not there."""

    def commands(self, bootstrap_servers: str) -> str:
        """Kafka's own commands that grant what is missing."""
        who = self.principal if self.principal.startswith("User:") else "User:…"
        return "; ".join(
            f"kafka-acls.sh --bootstrap-server {bootstrap_servers} --add --allow-principal {who} "
            f"--operation {right.operation.capitalize()} --{right.kind} {right.name}"
            for right in self.missing
        )


def needed(settings: KafkaSettings) -> Iterator[Right]:
    """Every right that the monitor uses; READ and WRITE include DESCRIBE."""
    for topic in settings.topics:
        yield Right(operation="READ", kind="topic", name=topic)
    yield Right(operation="READ", kind="group", name=settings.group_id)
    if settings.dead_letter_topic:
        yield Right(operation="WRITE", kind="topic", name=settings.dead_letter_topic)


def rights(settings: KafkaSettings) -> Rights:
    """Ask the brokers which of the rights in `needed` we have; nothing is read, written or joined.

    May block for half a minute. Raises `BrokerUnavailable` or `ConfigurationError` when no broker answers.
    """
    known = KafkaAdminClient.DEFAULT_CONFIG.keys()
    options = {name: it for name, it in client_options(settings).items() if name in known}
    admin = open_client(KafkaAdminClient, settings, options)
    found: dict[bool | None, list[Right]] = {True: [], False: [], None: []}
    try:
        topics = {one["name"]: one for one in admin.describe_topics(_topics(settings))}
        for right in needed(settings):
            if right.kind == "group":
                found[_may_read(admin, right.name)].append(right)
            else:
                found[_may(topics.get(right.name, {}), right.operation)].append(right)
    except KafkaError as error:
        raise failure(error, settings) from None
    finally:
        admin.close()
    return Rights(
        principal=principal(settings),
        granted=tuple(found[True]),
        missing=tuple(found[False]),
        untold=tuple(found[None]),
    )


def _topics(settings: KafkaSettings) -> list[str]:
    return [right.name for right in needed(settings) if right.kind == "topic"]


def _may(topic: dict[str, Any], operation: str) -> bool | None:
    """Whether the operation is among those that the broker names; None when it names none."""
    if topic.get("error_code") == TopicAuthorizationFailedError.errno:
        return False  # of a topic that is not there, too, if we may not describe it
    operations = topic.get("authorized_operations")
    return operation in operations if operations and not topic.get("error_code") else None


def _may_read(admin: KafkaAdminClient, group: str) -> bool | None:
    """Whether we may READ the group, which need not exist yet; None when no coordinator is found.

    Kafka names the operations of existing groups alone. So its coordinator gets the heartbeat of a member that
    nobody knows: refused for lack of the right, or else for being unknown.
    """

    async def beat() -> Any:
        coordinator = await admin._find_coordinator_id(group)
        request = HeartbeatRequest(group_id=group, generation_id=-1, member_id="monitor-doctor")
        return await admin._manager.send(request, node_id=coordinator)

    deadline = time.monotonic() + COORDINATOR_SECONDS
    while True:
        try:
            answer = for_code(admin._manager.run(beat).error_code)
        except GroupAuthorizationFailedError:
            return False
        except (CoordinatorNotAvailableError, AuthorizationError):
            answer = CoordinatorNotAvailableError
        passing = (
            CoordinatorNotAvailableError,
            CoordinatorLoadInProgressError,
            NotCoordinatorError,
        )
        if answer not in passing:
            return answer is not GroupAuthorizationFailedError
        if time.monotonic() > deadline:
            return None
        time.sleep(0.5)
