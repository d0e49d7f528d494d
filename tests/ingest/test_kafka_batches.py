"""Batches that are small on the broker and vast once decompressed: memory is bounded, nothing is lost silently."""

from __future__ import annotations

import tracemalloc
from datetime import timedelta

import pytest
from kafka import KafkaProducer
from kafka.record.default_records import DefaultRecordBatchBuilder
from kafka.record.memory_records import MemoryRecords

from monitor.ingest.formats import parse
from monitor.ingest.kafka import KafkaSource
from monitor.settings import IngestSettings
from monitor.values.prompts import BATCH_BYTES, DeadLetter, DeadReason, Prompt
from tests.scenes.kafka_source import Offsets, drain, settings

MEGABYTE = 2**20
CODECS = {"gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
SMALL = b'{"prompt": "a", "response": "b"}'


def batch(codec: int, values: list[bytes], base: int = 40) -> bytes:
    builder = DefaultRecordBatchBuilder(2, codec, False, -1, -1, -1, 2**30)
    for number, value in enumerate(values):
        builder.append(number, 1_772_366_400_000, None, value, [])
    made = builder.build()
    made[0:8] = base.to_bytes(8, "big")
    return bytes(made)


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_an_ordinary_batch_is_read_as_it_was(codec: int) -> None:
    values = [b"%d" % number * 1_000 for number in range(50)]
    read = MemoryRecords(batch(codec, values)).next_batch()
    assert [(one.offset, one.value) for one in read] == list(enumerate(values, start=40))


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_a_vast_batch_is_one_stand_in_at_its_last_offset(codec: int) -> None:
    values = [b" " * MEGABYTE] * (BATCH_BYTES // MEGABYTE + 8)
    packed = batch(codec, values)
    tracemalloc.start()
    try:
        (only,) = MemoryRecords(packed).next_batch()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert only.offset == 40 + len(values) - 1
    assert only.value.first == 40
    assert peak < 2.5 * BATCH_BYTES


def test_what_is_no_compressed_data_is_an_error_of_the_library_as_before() -> None:
    whole = bytearray(batch(1, [b"x" * 1_000] * 10))
    whole[70:] = b"\0" * len(whole[70:])
    with pytest.raises(Exception, match=r"."):
        list(MemoryRecords(bytes(whole)).next_batch())


@pytest.mark.slow
def test_the_worker_passes_over_a_vast_batch_and_says_so(kafka_bootstrap: str, topic: str) -> None:
    producer = KafkaProducer(
        bootstrap_servers=kafka_bootstrap,
        compression_type="gzip",
        max_request_size=2**30,
        batch_size=2**30,
        linger_ms=20_000,
    )

    def send(value: bytes) -> None:
        producer.send(topic, value=value, partition=0)

    send(SMALL)
    producer.flush(30)
    for _ in range(BATCH_BYTES // (3 * MEGABYTE) + 2):
        send(b" " * 3 * MEGABYTE)
    producer.flush(60)
    send(SMALL)
    producer.flush(30)
    producer.close()
    ingest = IngestSettings(chunk_records=50, chunk_wait=timedelta(seconds=0.2))
    with KafkaSource(settings(kafka_bootstrap, topic), ingest, Offsets()) as source:
        chunks = drain(source, lambda got: sum(len(c.records) for c in got) >= 3)
    records = [record for chunk in chunks for record in chunk.records]
    first, vast, last = [one for record in records for one in parse(record, ingest)]
    assert isinstance(first, Prompt)
    assert isinstance(last, Prompt)
    assert isinstance(vast, DeadLetter)
    assert vast.reason is DeadReason.OVERSIZE
    assert vast.detail.startswith(
        f"record: offsets 1 to {last.key.offset - 1}: a batch of more than"
    )
    assert vast.key.offset == last.key.offset - 1
    assert chunks[-1].spans[0].end == last.key.offset + 1
