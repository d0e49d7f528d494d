"""Frames of Avro and Protobuf, by the schemas of a registry that answers over HTTP."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fastavro
import pytest
from google.protobuf import descriptor_pb2, message_factory, timestamp_pb2
from google.protobuf.descriptor_pool import DescriptorPool
from hypothesis import given
from hypothesis import strategies as st

from monitor.errors import ConfigurationError, RegistryUnavailable
from monitor.ingest.fields import Unreadable
from monitor.ingest.formats import parse
from monitor.ingest.frames import avro
from monitor.ingest.frames.registry import Registry, frames
from monitor.settings import IngestSettings, RegistrySettings
from monitor.values.prompts import DeadLetter, DeadReason, Half, Parsed, Prompt
from tests.ingest.halves import ANSWER, QUESTION, raw
from tests.ingest.registry import Registered, SchemaRegistry, framed, serving

TURN = {
    "type": "record",
    "name": "Turn",
    "namespace": "chat",
    "fields": [
        {"name": "role", "type": {"type": "enum", "name": "Role", "symbols": ["user", "system"]}},
        {"name": "content", "type": ["null", "string"]},
    ],
}
EXCHANGE = {
    "type": "record",
    "name": "Exchange",
    "namespace": "chat",
    "fields": [
        {"name": "messages", "type": {"type": "array", "items": "Turn"}},
        {"name": "response", "type": ["null", "string"]},
        {"name": "timestamp", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "segment", "type": {"type": "map", "values": "string"}},
    ],
}
WHOLE = {**EXCHANGE, "fields": [{"name": "messages", "type": {"type": "array", "items": TURN}}, *EXCHANGE["fields"][1:]]}  # fmt: skip
MOMENT = datetime(2026, 3, 1, 11, tzinfo=UTC)


@pytest.fixture
def registry() -> Iterator[SchemaRegistry]:
    with serving(SchemaRegistry()) as server:
        yield server


def settings_for(registry: SchemaRegistry, **more: Any) -> IngestSettings:
    return IngestSettings(
        segment_keys=("route",), registry=RegistrySettings(url=registry.url, timeout=2, **more)
    )


def read(registry: SchemaRegistry, value: bytes, **more: Any) -> Parsed | Half:
    settings = settings_for(registry, **more)
    (parsed,) = parse(raw(value), settings, frames(settings))
    return parsed


def the_exchange(parsed: Parsed | Half) -> Prompt:
    assert isinstance(parsed, Prompt), parsed
    assert (parsed.messages[-1].content, parsed.response) == (QUESTION, ANSWER)
    return parsed


def avro_body(schema: Any, value: Any) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema), value)
    return out.getvalue()


def exchange() -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": QUESTION}],
        "response": ANSWER,
        "timestamp": MOMENT,
        "segment": {"route": "/chat"},
    }


def test_avro_is_read_by_the_schema_of_its_frame(registry: SchemaRegistry) -> None:
    registry.by_id[7] = Registered("AVRO", json.dumps(WHOLE))
    prompt = the_exchange(read(registry, framed(7, avro_body(WHOLE, exchange()))))
    assert (prompt.recorded_at, prompt.segment) == (MOMENT, {"route": "/chat"})


def test_avro_types_of_another_subject(registry: SchemaRegistry) -> None:
    registry.by_subject["turn", 3] = Registered("AVRO", json.dumps(TURN))
    registry.by_id[8] = Registered(
        "AVRO", json.dumps(EXCHANGE), references=(("chat.Turn", "turn", 3),)
    )
    the_exchange(read(registry, framed(8, avro_body(WHOLE, exchange()))))


def file_of(name: str, **more: Any) -> descriptor_pb2.FileDescriptorProto:
    return descriptor_pb2.FileDescriptorProto(name=name, syntax="proto3", **more)


def field(number: int, name: str, kind: int, of: str | None = None, *, many: bool = False) -> Any:
    return descriptor_pb2.FieldDescriptorProto(
        name=name, number=number, type=kind, type_name=of, label=3 if many else 1
    )


TEXT, MESSAGE, ENUM = 9, 11, 14
TURN_FILE = file_of(
    "turn.proto",
    package="chat",
    message_type=[
        descriptor_pb2.DescriptorProto(
            name="Turn",
            field=[field(1, "role", ENUM, ".chat.Role"), field(2, "content", TEXT)],
        )
    ],
    enum_type=[
        descriptor_pb2.EnumDescriptorProto(
            name="Role",
            value=[
                descriptor_pb2.EnumValueDescriptorProto(name="system", number=0),
                descriptor_pb2.EnumValueDescriptorProto(name="user", number=1),
            ],
        )
    ],
)
EXCHANGE_FILE = file_of(
    "exchange.proto",
    package="chat",
    dependency=["turn.proto", "google/protobuf/timestamp.proto"],
    message_type=[
        descriptor_pb2.DescriptorProto(name="Other"),
        descriptor_pb2.DescriptorProto(
            name="Log",
            nested_type=[
                descriptor_pb2.DescriptorProto(
                    name="Exchange",
                    field=[
                        field(1, "messages", MESSAGE, ".chat.Turn", many=True),
                        field(2, "response", TEXT),
                        field(3, "timestamp", MESSAGE, ".google.protobuf.Timestamp"),
                        field(4, "segment", MESSAGE, ".chat.Log.Exchange.SegmentEntry", many=True),
                    ],
                    nested_type=[
                        descriptor_pb2.DescriptorProto(
                            name="SegmentEntry",
                            field=[field(1, "key", TEXT), field(2, "value", TEXT)],
                            options=descriptor_pb2.MessageOptions(map_entry=True),
                        )
                    ],
                )
            ],
        ),
    ],
)


def protobuf_body() -> bytes:
    pool = DescriptorPool()
    pool.AddSerializedFile(timestamp_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(TURN_FILE)
    pool.Add(EXCHANGE_FILE)
    made = message_factory.GetMessageClass(pool.FindMessageTypeByName("chat.Log.Exchange"))()
    made.messages.add(role=1, content=QUESTION)
    made.response = ANSWER
    made.timestamp.FromDatetime(MOMENT)
    made.segment["route"] = "/chat"
    return made.SerializeToString()


def registered_protobuf(registry: SchemaRegistry, number: int) -> None:
    registry.by_subject["turn", 1] = Registered("PROTOBUF", "…", TURN_FILE.SerializeToString())
    registry.by_id[number] = Registered(
        "PROTOBUF",
        "…",
        EXCHANGE_FILE.SerializeToString(),
        references=(("turn.proto", "turn", 1),),
    )


def test_protobuf_is_read_by_the_schema_and_the_message_of_its_frame(
    registry: SchemaRegistry,
) -> None:
    registered_protobuf(registry, 9)
    prompt = the_exchange(read(registry, framed(9, b"\x04\x02\x00" + protobuf_body())))
    assert (prompt.recorded_at, prompt.segment) == (MOMENT, {"route": "/chat"})


@pytest.mark.parametrize(
    "indexes", [b"", b"\x02", b"\x02\x7f", b"\x04\x02\x02", b"\x01", b"\xff\xff\xff\xff\x7f"]
)
def test_protobuf_of_a_message_that_the_schema_has_not(
    registry: SchemaRegistry, indexes: bytes
) -> None:
    registered_protobuf(registry, 9)
    letter = read(registry, framed(9, indexes))
    assert isinstance(letter, DeadLetter)


def test_without_the_setting_the_refusal_names_it() -> None:
    (letter,) = parse(raw(framed(7, b"\x02abc")), IngestSettings())
    assert isinstance(letter, DeadLetter)
    assert letter.reason is DeadReason.DIALECT_NOT_READ
    assert "ingest.registry.url" in letter.detail


def test_without_the_extra_the_start_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "confluent_kafka.schema_registry", None)
    with pytest.raises(ConfigurationError, match=r"ingest\.registry\.url") as refused:
        frames(IngestSettings(registry=RegistrySettings(url="http://127.0.0.1:1")))
    assert "'.[registry]'" in refused.value.hint


def test_an_unknown_id_is_a_dead_letter_and_is_asked_for_again_later(
    registry: SchemaRegistry,
) -> None:
    now = [0.0]
    reader = Registry(RegistrySettings(url=registry.url), 64, clock=lambda: now[0])
    for _ in range(3):
        with pytest.raises(Unreadable, match="not in the registry"):
            reader.read(7, b"\x00")
    assert len(registry.asked) == 1
    registry.by_id[7] = Registered("AVRO", '"string"')
    now[0] = 61.0
    assert reader.read(7, b"\x02a") == "a"


@pytest.mark.parametrize("status", [500, 503, 429, 401, 403])
def test_a_registry_that_does_not_answer_loses_no_record(
    registry: SchemaRegistry, status: int
) -> None:
    registry.by_id[7] = Registered("AVRO", json.dumps(WHOLE))
    registry.status = status
    settings = settings_for(registry)
    reader = frames(settings)
    record = raw(framed(7, avro_body(WHOLE, exchange())))
    with pytest.raises(RegistryUnavailable, match=str(status)):
        parse(record, settings, reader)
    registry.status = 200
    (parsed,) = parse(record, settings, reader)
    the_exchange(parsed)
    registry.status = status
    (parsed,) = parse(record, settings, reader)  # known by now
    the_exchange(parsed)


def test_a_registry_that_is_not_there_loses_no_record() -> None:
    with serving(SchemaRegistry()) as gone:
        pass
    settings = settings_for(gone)
    with pytest.raises(RegistryUnavailable, match=r"ingest\.registry\.url"):
        parse(raw(framed(7, b"\x00")), settings, frames(settings))


def test_a_password_that_is_renewed_is_read_again(registry: SchemaRegistry, tmp_path: Path) -> None:
    registry.by_id[7] = Registered("AVRO", '"string"')
    registry.user = "monitor:new"
    file = tmp_path / "password"
    file.write_text("old")
    reader = Registry(
        RegistrySettings(url=registry.url, username="monitor", password_file=file), 64
    )
    with pytest.raises(RegistryUnavailable, match="401"):
        reader.read(7, b"\x02a")
    file.write_text("new\n")
    assert reader.read(7, b"\x02a") == "a"


def test_what_is_kept_is_bounded(registry: SchemaRegistry) -> None:
    registry.by_id |= {n: Registered("AVRO", '"string"') for n in range(10)}
    reader = Registry(RegistrySettings(url=registry.url, schemas=3), 64)
    for number in range(30):
        try:
            reader.read(number, b"\x02a")
        except Unreadable:
            assert number >= 10
    assert (len(reader._schemas), len(reader._unknown)) == (3, 3)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("AVRO", "no JSON"),
        ("AVRO", '{"type": "record"}'),
        ("AVRO", '"Unknown"'),
        ("AVRO", '{"type": "enum", "name": "E"}'),
        ("PROTOBUF", "syntax = 'proto3';"),
        ("OTHER", "{}"),
    ],
)
def test_a_schema_that_cannot_be_read_is_a_dead_letter(
    registry: SchemaRegistry, kind: str, text: str
) -> None:
    registry.by_id[7] = Registered(kind, text)
    letter = read(registry, framed(7, b"\x00"))
    assert isinstance(letter, DeadLetter)
    assert letter.reason is DeadReason.DIALECT_NOT_READ


NODE = {"type": "record", "name": "N", "fields": [{"name": "n", "type": ["null", "N"]}]}


@pytest.mark.parametrize(
    ("schema", "body", "reason"),
    [
        (NODE, b"\x02" * 3_000_000, DeadReason.TOO_DEEP),
        ({"type": "record", "name": "N", "fields": [{"name": "n", "type": "N"}]}, b"", DeadReason.TOO_DEEP),
        ({"type": "array", "items": "null"}, b"\x80\xc2\xd7\x2f\x00", DeadReason.OVERSIZE),
        ("string", b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f", DeadReason.INVALID_FIELD),
        ("string", b"\x03", DeadReason.INVALID_FIELD),
        ("string", b"\x04\xff\xff", DeadReason.NOT_UTF8),
        ("bytes", b"\x7f", DeadReason.INVALID_FIELD),
        (["null", "int"], b"\x04", DeadReason.INVALID_FIELD),
        ("long", b"\xff" * 40, DeadReason.INVALID_FIELD),
        ("double", b"\x00", DeadReason.INVALID_FIELD),
        ({"type": "long", "logicalType": "timestamp-millis"}, b"\xfe" + b"\xff" * 8 + b"\x01", DeadReason.INVALID_FIELD),
        (WHOLE, b"", DeadReason.INVALID_FIELD),
        (WHOLE, avro_body(WHOLE, exchange()) + b"\x00", DeadReason.INVALID_FIELD),
    ],
)  # fmt: skip
def test_hostile_avro_is_refused(schema: Any, body: bytes, reason: DeadReason) -> None:
    with pytest.raises(Unreadable) as refused:
        avro.Schema(schema).read(body, 64)
    assert refused.value.reason is reason


def any_type() -> st.SearchStrategy[tuple[Any, Any]]:
    """A schema, and a value that it describes."""
    plain = st.one_of(
        st.tuples(st.just("null"), st.none()),
        st.tuples(st.just("boolean"), st.booleans()),
        st.tuples(st.just("long"), st.integers(-(2**63), 2**63 - 1)),
        st.tuples(st.just("double"), st.floats(allow_nan=False, allow_infinity=False)),
        st.tuples(st.just("string"), st.text()),
    )

    def nested(inner: st.SearchStrategy[tuple[Any, Any]]) -> st.SearchStrategy[tuple[Any, Any]]:
        return st.one_of(
            inner.map(lambda of: ({"type": "array", "items": of[0]}, [of[1]] * 3)),
            inner.map(lambda of: ({"type": "map", "values": of[0]}, {"a": of[1], "ä": of[1]})),
            inner.filter(lambda of: of[0] != "null" and not isinstance(of[0], list)).map(
                lambda of: (["null", of[0]], of[1])
            ),
        )

    return st.recursive(plain, nested, max_leaves=4)


@given(any_type())
def test_avro_as_another_library_writes_it(written: tuple[Any, Any]) -> None:
    schema, value = written
    assert avro.Schema(schema).read(avro_body(schema, value), 64) == value


@given(st.binary(max_size=60))
def test_whatever_the_bytes_they_are_read_or_refused(body: bytes) -> None:
    try:
        avro.Schema(WHOLE).read(body, 64)
    except Unreadable as refusal:
        assert refusal.detail.startswith("record")  # noqa: PT017
