"""Chunks of made-up scores, for the store's tests and benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
from sqlalchemy import Connection, Engine

from monitor.store.chunks import store_chunk
from monitor.store.database import transaction
from monitor.store.packs import register_pack
from monitor.values.features import Calibration, Feature
from monitor.values.prompts import DeadLetter, OffsetSpan, RecordKey
from monitor.values.scores import (
    SCORE_BIN_EDGES,
    SCORE_BINS,
    Bucket,
    ChunkResult,
    IngestCount,
    Lineage,
    ScoredPrompt,
)

NOON = datetime(2026, 3, 14, 12, tzinfo=UTC)
PACK = "pack-1"
LINEAGE = Lineage(
    pack_id=PACK,
    model_id="tiny",
    model_hash="0" * 64,
    dtype="float32",
    attention="sdpa",
    device="cpu",
    engine="1",
    rules="{}",
)


def feature(name: str, *, expected: str = "rises") -> Feature:
    return Feature(
        name=name,
        kind="direction",
        site=1,
        region="all",
        pooling="mean",
        weight=np.ones(4, dtype=np.float32),
        calibration=Calibration(tokens=(1.0,), means=(0.0,), deviations=(1.0,)),
        expected="falls" if expected == "falls" else "rises",
        tags=("persona",),
        description=f"what {name} means",
    )


FEATURES = (feature("toxic"), feature("deceptive"), feature("assistant", expected="falls"))


def register(c: Connection, pack_id: str = PACK, features: Sequence[Feature] = FEATURES) -> None:
    register_pack(c, pack_id, "small", {"model": "tiny"}, features)


def known_pack(database: Engine) -> None:
    with transaction(database) as c:
        register(c)


def scored(
    offset: int,
    scores: Sequence[float],
    *,
    at: datetime = NOON,
    topic: str = "prompts",
    partition: int = 0,
    index: int = 0,
    segments: Sequence[str] = ("all",),
    prompt_id: str | None = None,
    conversation: bytes | None = None,
) -> ScoredPrompt:
    values = np.array(scores, dtype=np.float32)
    return ScoredPrompt(
        key=RecordKey(topic=topic, partition=partition, offset=offset, index=index),
        recorded_at=at,
        prompt_id=f"prompt-{offset}" if prompt_id is None else prompt_id,
        content_hash=offset.to_bytes(8, "big"),
        conversation_hash=conversation,
        segments=tuple(segments),
        model="served",
        model_revision=None,
        prompt_tokens=10,
        response_tokens=20,
        cut=False,
        generated=False,
        inclusion_probability=0.5,
        readings=values * 2,
        scores=values,
    )


def buckets_of(rows: Sequence[ScoredPrompt]) -> tuple[Bucket, ...]:
    """Minute buckets, counted one score at a time: the plain way, for comparison."""
    kept: dict[tuple[datetime, int, str, str], list[float]] = {}
    for row in rows:
        start = row.recorded_at.replace(second=0, microsecond=0)
        for segment in row.segments:
            for number, score in enumerate(row.scores.tolist()):
                if not np.isnan(score):
                    source = f"{row.key.topic}/{row.key.partition}"
                    kept.setdefault((start, number, segment, source), []).append(score)
    return tuple(
        Bucket(
            bucket_start=start,
            bucket_seconds=60,
            feature=number,
            segment=segment,
            source=source,
            n=len(values),
            total=float(sum(values)),
            total_squares=float(sum(value * value for value in values)),
            histogram=histogram_of(values),
            tail_count=int(FEATURES[number].in_tail(np.array(values)).sum()),
        )
        for (start, number, segment, source), values in kept.items()
    )


def histogram_of(values: Sequence[float]) -> np.ndarray:
    bins = np.searchsorted(np.array(SCORE_BIN_EDGES), np.array(values), side="right")
    return np.bincount(bins, minlength=SCORE_BINS)


def chunk(
    rows: Sequence[ScoredPrompt],
    *,
    start: int,
    end: int,
    topic: str = "prompts",
    partition: int = 0,
    letters: Sequence[DeadLetter] = (),
    lineage: Lineage = LINEAGE,
    log_end: int | None = None,
    worker: str = "worker-1",
    group: str = "monitor",
) -> ChunkResult:
    return ChunkResult(
        group_id=group,
        worker_id=worker,
        spans=(
            OffsetSpan(topic=topic, partition=partition, start=start, end=end, log_end=log_end),
        ),
        lineage=lineage,
        scored=tuple(rows),
        buckets=buckets_of(rows),
        dead_letters=tuple(letters),
        counts=tuple(
            IngestCount(
                bucket_start=row.recorded_at.replace(second=0, microsecond=0),
                source=f"{topic}/{partition}",
                outcome="scored",
                n=1,
            )
            for row in rows
        )
        + tuple(
            IngestCount(
                bucket_start=letter.recorded_at.replace(second=0, microsecond=0),
                source=f"{topic}/{partition}",
                outcome=f"dead:{letter.reason.value}",
                n=1,
            )
            for letter in letters
        ),
    )


def keep(database: Engine, *results: ChunkResult) -> None:
    for result in results:
        with transaction(database) as c:
            store_chunk(c, result)


def series(
    count: int,
    *,
    start: int = 0,
    at: datetime = NOON,
    step: timedelta = timedelta(seconds=7),
    seed: int = 0,
    **kwargs: object,
) -> list[ScoredPrompt]:
    """``count`` prompts with normal scores; some have no response, so their second score is absent."""
    generator = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        scores = generator.normal(size=len(FEATURES)).tolist()
        if generator.random() < 0.2:
            scores[1] = float("nan")
        rows.append(scored(start + number, scores, at=at + number * step, **kwargs))  # type: ignore[arg-type]
    return rows
