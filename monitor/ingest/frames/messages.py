"""Protobuf messages of a schema that the registry holds, as JSON types.

The registry gives a schema as a serialised FileDescriptorProto (``format=serialized``), so that no
``.proto`` text is parsed here. A frame names its message by indexes into the file's messages, zigzag
varints behind the schema's id, where a single 0 stands for ``[0]`` (Confluent's wire format).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from google.protobuf import (
    any_pb2,
    descriptor_pb2,
    duration_pb2,
    empty_pb2,
    json_format,
    message_factory,
    struct_pb2,
    timestamp_pb2,
    wrappers_pb2,
)
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError, Message

from monitor.ingest import fields
from monitor.ingest.frames.values import VALUES, finite, readable, unfit, zigzag

_DEEPEST_INDEXES: Final = 32
_KNOWN: Final = (
    *(any_pb2, descriptor_pb2, duration_pb2, empty_pb2, struct_pb2, timestamp_pb2, wrappers_pb2),
)


class Schema:
    """The messages of a file, with the files that it imports first. Raises `ValueError`."""

    def __init__(self, files: Iterable[bytes]) -> None:
        self._pool = DescriptorPool()
        for known in _KNOWN:
            self._pool.AddSerializedFile(known.DESCRIPTOR.serialized_pb)
        name = ""
        try:
            for content in files:
                file = descriptor_pb2.FileDescriptorProto.FromString(content)
                name = file.name
                self._pool.AddSerializedFile(content)
            self._messages = list(self._pool.FindFileByName(name).message_types_by_name.values())
        except (DecodeError, TypeError, KeyError) as error:
            raise ValueError(str(error)) from None

    def read(self, body: bytes, max_nesting: int) -> Any:
        """The message behind its indexes. Refuses what does not fit the schema."""
        indexes, at = _indexes(body)
        made = message_factory.GetMessageClass(self._message(indexes))()
        try:
            made.ParseFromString(body[at:])
        except DecodeError:
            raise unfit() from None
        return _Reading(max_nesting).message(made, 0)

    def _message(self, indexes: list[int]) -> Descriptor:
        among, found = self._messages, None
        for index in indexes:
            if not 0 <= index < len(among):
                raise unfit()
            found = among[index]
            among = list(found.nested_types)
        if found is None:
            raise unfit()
        return found


class _Reading:
    def __init__(self, max_nesting: int) -> None:
        self._max_nesting = max_nesting
        self._values = 0

    def message(self, message: Message, depth: int) -> Any:
        """Fields that are set, by the schema's own names; numbers stay numbers."""
        if depth > self._max_nesting:
            raise fields.too_deep("record", f"more than {self._max_nesting} levels")
        if message.DESCRIPTOR.full_name.startswith("google.protobuf."):
            try:
                return json_format.MessageToDict(message)
            except (json_format.Error, ValueError, TypeError):
                raise unfit() from None
        return {
            field.name: self._field(field, value, depth) for field, value in message.ListFields()
        }

    def _field(self, field: FieldDescriptor, value: Any, depth: int) -> Any:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            of = field.message_type.fields_by_name["value"]
            return {str(key): self._one(of, value[key], depth) for key in value}
        if field.is_repeated:
            return [self._one(field, one, depth) for one in value]
        return self._one(field, value, depth)

    def _one(self, field: FieldDescriptor, value: Any, depth: int) -> Any:
        self._values += 1
        fields.within(self._values, VALUES, "record", "values")
        match value:
            case Message():
                return self.message(value, depth + 1)
            case bytes():
                return readable(value)
            case float():
                return finite(value)
            case int() if field.enum_type is not None:
                named = field.enum_type.values_by_number.get(value)
                return named.name if named else value
        return value


def _indexes(body: bytes) -> tuple[list[int], int]:
    """The path to the message, and where the message begins."""
    count, at = zigzag(body, 0)
    if count == 0:
        return [0], at
    if not 0 < count <= _DEEPEST_INDEXES:
        raise unfit()
    found = []
    for _ in range(count):
        index, at = zigzag(body, at)
        found.append(index)
    return found, at
