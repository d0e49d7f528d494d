"""Confluent's wire frame: a zero byte, the id of a schema in a registry, and a body in Avro or Protobuf.

Schemas come from the registry through Confluent's own client (the extra ``registry``), and are kept, the
least used dropped. A registry that is away, overloaded or refuses our credentials is waited out: it says
nothing about the record, and a dead letter would lose it. An id that the registry does not know is a
dead letter, since one wrong record must not stop the stream; it is remembered for `UNKNOWN_SECONDS`, so
that a schema which was registered late is found.
"""

from __future__ import annotations

import base64
import binascii
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from operator import methodcaller
from typing import Any, Final, Protocol

import orjson

from monitor.errors import ConfigurationError, RegistryUnavailable
from monitor.ingest import fields
from monitor.ingest.fields import Unreadable
from monitor.settings import IngestSettings, RegistrySettings, secret
from monitor.values.prompts import DeadReason

ReadFrame = Callable[[int, bytes], Any]
"""The document in a frame, by the id of its schema and its body.

Raises `fields.Unreadable`, and `RegistryUnavailable` while the registry does not answer.
"""

UNKNOWN_SECONDS: Final = 60.0
REFERENCES: Final = 100
"""Most schemas that one schema refers to, with all that these refer to."""


def no_registry(schema_id: int, body: bytes) -> Any:
    raise fields.not_read(
        "a Confluent frame of Avro or Protobuf without a registry",
        "set ingest.registry.url, or use the JSON Schema serializer",
    )


def frames(settings: IngestSettings) -> ReadFrame:
    """How frames are read by these settings; `ConfigurationError` when the extra is not installed."""
    if settings.registry.url is None:
        return no_registry
    return Registry(settings.registry, settings.max_nesting).read


class _Schema(Protocol):
    def read(self, body: bytes, max_nesting: int) -> Any: ...


class Registry:
    """Reads frames by the schemas of one registry. For one thread."""

    def __init__(
        self,
        settings: RegistrySettings,
        max_nesting: int,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        try:
            import confluent_kafka.schema_registry
        except ImportError:
            raise ConfigurationError(
                "ingest.registry.url is set, and the client of the registry is not installed",
                hint="pip install '.[registry]' in a checkout of the monitor",
            ) from None
        self._client = confluent_kafka.schema_registry
        self._settings = settings
        self._max_nesting = max_nesting
        self._clock = clock
        self._schemas: OrderedDict[int, _Schema | Unreadable] = OrderedDict()
        self._unknown: OrderedDict[int, float] = OrderedDict()
        self._clients: dict[str | None, Any] = {}

    def read(self, schema_id: int, body: bytes) -> Any:
        """See `ReadFrame`."""
        known = self._schemas.get(schema_id)
        if known is None:
            known = self._fetched(schema_id)
        else:
            self._schemas.move_to_end(schema_id)
        if isinstance(known, Unreadable):
            raise known
        return known.read(body, self._max_nesting)

    def _fetched(self, schema_id: int) -> _Schema | Unreadable:
        if self._unknown.get(schema_id, 0.0) > self._clock():
            return _unknown()
        try:
            schema = self._ask(methodcaller("get_schema", schema_id))
            made: _Schema | Unreadable = self._made(schema, schema_id)
        except _NotThere:
            self._unknown[schema_id] = self._clock() + UNKNOWN_SECONDS
            _keep(self._unknown, self._settings.schemas)
            return _unknown()
        except (ValueError, KeyError, TypeError, binascii.Error):
            made = fields.not_read("a schema of this kind", "use Avro, Protobuf or JSON Schema")
        self._schemas[schema_id] = made
        _keep(self._schemas, self._settings.schemas)
        return made

    def _made(self, schema: Any, schema_id: int) -> _Schema:
        if schema.schema_type == "AVRO":
            from monitor.ingest.frames import avro

            named: dict[str, Any] = {}
            for one in self._references(schema, None):
                avro.Schema(orjson.loads(one.schema_str), named)
            return avro.Schema(orjson.loads(schema.schema_str), named)
        if schema.schema_type == "PROTOBUF":
            from monitor.ingest.frames import messages

            whole = self._ask(methodcaller("get_schema", schema_id, fmt="serialized"), "serialized")
            listed = [*self._references(whole, "serialized"), whole]
            return messages.Schema(
                base64.b64decode(one.schema_str, validate=True) for one in listed
            )
        raise ValueError(schema.schema_type)

    def _references(self, schema: Any, fmt: str | None) -> Iterator[Any]:
        """What the schema refers to, each before whoever refers to it, and once."""
        seen: set[tuple[str, int]] = set()

        def walk(one: Any) -> Iterator[Any]:
            for reference in one.references or ():
                place = (reference.subject, reference.version)
                if place in seen:
                    continue
                seen.add(place)
                if len(seen) > REFERENCES:
                    raise ValueError("too many references")
                found = self._ask(methodcaller("get_version", *place, fmt=fmt), fmt)
                yield from walk(found.schema)
                yield found.schema

        yield from walk(schema)

    def _ask(self, question: Callable[[Any], Any], fmt: str | None = None) -> Any:
        """The client keeps a schema under its id whatever the form: so each form has its own."""
        import httpx2

        try:
            if fmt not in self._clients:
                self._clients[fmt] = self._connected()
            return question(self._clients[fmt])
        except self._client.SchemaRegistryError as error:
            if error.http_status_code == 404:
                raise _NotThere from None
            self._clients.clear()  # credentials may have been renewed
            reason = f"HTTP {error.http_status_code}"
        except httpx2.HTTPError as error:
            reason = type(error).__name__
        except OSError as error:
            reason = error.strerror or type(error).__name__
        raise RegistryUnavailable(
            f"the schema registry (ingest.registry.url) does not answer: {reason}"
        )

    def _connected(self) -> Any:
        given = self._settings
        options: dict[str, Any] = {
            "url": given.url,
            "timeout": given.timeout.total_seconds(),
            "max.retries": 0,  # the worker waits, and says so
            "ssl.ca.location": given.ssl_cafile and str(given.ssl_cafile),
            "ssl.certificate.location": given.ssl_certfile and str(given.ssl_certfile),
            "ssl.key.location": given.ssl_keyfile and str(given.ssl_keyfile),
        }
        if given.username is not None:
            password = secret(given.password, given.password_file, "ingest.registry.password")
            options["basic.auth.user.info"] = f"{given.username}:{password or ''}"
        return self._client.SchemaRegistryClient(
            {key: value for key, value in options.items() if value is not None}
        )


class _NotThere(Exception):
    """The registry knows no such schema."""


def _unknown() -> Unreadable:
    return Unreadable(
        DeadReason.DIALECT_NOT_READ,
        "record: the id of its schema is not in the registry; check ingest.registry.url",
    )


def _keep(cache: OrderedDict[int, Any], most: int) -> None:
    while len(cache) > most:
        cache.popitem(last=False)
