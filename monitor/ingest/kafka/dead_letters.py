"""Dead letters as records of a topic of their own, beside the table, for whoever mends the producer."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final, Self

import orjson
from kafka import KafkaProducer
from kafka.errors import AuthorizationError, KafkaError

from monitor.errors import BrokerUnavailable, ConfigurationError
from monitor.ingest.kafka.connection import Line, open_client
from monitor.ingest.kafka.options import client_options, refusal
from monitor.settings import KafkaSettings
from monitor.values.prompts import DeadLetter

FLUSH_SECONDS: Final = 30.0
MAX_CONTENT_BYTES: Final = 512 * 1024
"""Longer content is left out: brokers refuse records above 1 MiB by default."""


class DeadLetterProducer:
    """Announces dead letters at least once. Connects on first use; a context manager."""

    def __init__(self, settings: KafkaSettings, line: Line | None = None) -> None:
        if settings.dead_letter_topic is None:
            raise ConfigurationError("kafka.dead_letter_topic is null: there is nothing to send to")
        self._settings = settings
        self._line = line or Line()
        self._topic = settings.dead_letter_topic
        self._producer: KafkaProducer | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def send(self, letters: Sequence[DeadLetter]) -> None:
        """Send all and wait until every replica in sync has them.

        May block for `FLUSH_SECONDS` beyond connecting. Raises `BrokerUnavailable` when the broker
        did not take them in time (some may have arrived: send them all again) and
        `ConfigurationError` when it refuses them for good.
        """
        if not letters:
            return
        try:
            self._producer = self._producer or open_client(
                KafkaProducer, self._settings, _producer_options(self._settings), self._line
            )
            sent = [
                self._producer.send(
                    self._topic,
                    key=f"{letter.key.topic}/{letter.key.partition}".encode(),
                    value=_value(letter),
                    headers=_headers(letter),
                )
                for letter in letters
            ]
            self._producer.flush(FLUSH_SECONDS)
            for future in sent:
                future.get(timeout=0)
        except (KafkaError, OSError) as error:
            # The next attempt starts clean, with secrets read anew.
            self.close()
            # Who may write to no topic at all is refused a producer's id, in an error of no kind.
            if isinstance(error, AuthorizationError) or "AuthorizationFailedError" in str(error):
                raise ConfigurationError(
                    f"Kafka at {self._settings.bootstrap_servers}: {error}",
                    hint=f"Allow this principal to WRITE and DESCRIBE the topic {self._topic}, or set "
                    "kafka.dead_letter_topic: null (the table has them).",
                ) from None
            raise refusal(error, self._settings) or BrokerUnavailable(
                f"the dead-letter topic {self._topic} did not take records (is it there?): {error}",
                hint="Create the topic, or set kafka.dead_letter_topic: null (the table has them).",
            ) from None

    def close(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            with contextlib.suppress(KafkaError, OSError):
                producer.close(timeout=0 if self._line.is_cut else 5)


def _producer_options(settings: KafkaSettings) -> dict[str, Any]:
    known = KafkaProducer.DEFAULT_CONFIG.keys() & settings.client_options.keys()
    return {
        **client_options(settings),
        **{name: settings.client_options[name] for name in known},
        "acks": "all",
        "enable_idempotence": True,
        "max_block_ms": FLUSH_SECONDS * 1_000,
        "delivery_timeout_ms": max(int(FLUSH_SECONDS * 1_000), settings.request_timeout_ms + 1_000),
    }


def _value(letter: DeadLetter) -> bytes:
    told: dict[str, Any] = {
        "topic": letter.key.topic,
        "partition": letter.key.partition,
        "offset": letter.key.offset,
        "index": letter.key.index,
        "reason": letter.reason.value,
        "detail": letter.detail,
        "recorded_at": letter.recorded_at,
    }
    if letter.content is not None and len(letter.content) <= MAX_CONTENT_BYTES:
        told["content"] = base64.b64encode(letter.content).decode()
    elif letter.content is not None:
        told["content_bytes"] = len(letter.content)
    return orjson.dumps(told)


def _headers(letter: DeadLetter) -> list[tuple[str, bytes]]:
    return [
        ("monitor.reason", letter.reason.value.encode()),
        ("monitor.topic", letter.key.topic.encode()),
        ("monitor.partition", str(letter.key.partition).encode()),
        ("monitor.offset", str(letter.key.offset).encode()),
        ("monitor.index", str(letter.key.index).encode()),
    ]
