"""Made-up chunks of scores, baselines, drift and alerts, for the store's tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
from sqlalchemy import Connection, Engine

from monitor.settings import IdentitySettings, Settings
from monitor.store.chunks import store_chunk
from monitor.store.database import transaction
from monitor.store.ingest import add_counts
from monitor.store.packs import register_pack
from monitor.values.alerts import Alert, AlertState, Event, EventType
from monitor.values.drift import Baseline, BaselineStatus, BaselineStream, Bound, Drift, Window
from monitor.values.features import Calibration, Feature
from monitor.values.identity import BaselineFingerprint, Copy
from monitor.values.likeness import CAPS, Likened
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
from monitor.values.surprise import TILTS, Surprise
from monitor.values.witnesses import Cause
from monitor.weighing import Weighing

NOON = datetime(2026, 3, 14, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
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


def surprise(excess: float = 0.0) -> Surprise:
    return Surprise(
        law="sampled",
        tokens=20,
        excess=excess,
        variance=40.0,
        peak=1.0,
        off_support=0,
        given_away=0,
        log_bets=np.array(TILTS) * excess - np.array(TILTS) ** 2 * 20.0,
        likened={
            "revision-b": Likened(tokens=20, gain=excess, log_bets=np.full(len(CAPS), excess - 1))
        },
    )


def records_until(database: Engine, moment: datetime) -> None:
    """A record at ``moment`` that was not scored: retention counts back from the newest."""
    with transaction(database) as c:
        count = IngestCount(
            bucket_start=moment, source="prompts/9", outcome="skipped:not_sampled", n=1
        )
        add_counts(c, "monitor", [count])


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
    weighing = Weighing(Settings(identity=IdentitySettings(share=1.0)))
    apart = [replace(row, scores=row.twin) for row in rows if isinstance(row.twin, np.ndarray)]
    return ChunkResult(
        twins=buckets_of(apart),
        identity=weighing.buckets(rows),
        likenesses=weighing.likenesses(rows),
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


def baseline(name: str, *, pack_id: str = PACK) -> Baseline:
    streams = {
        (feature, segment): BaselineStream(
            window=Window(
                feature=feature,
                segment=segment,
                start=NOON - HOUR,
                end=NOON,
                n=1_000,
                total=12.5,
                total_squares=990.0,
                histogram=np.arange(SCORE_BINS),
                tail_count=4,
            ),
            design_effect=1.5,
            tail_design_effect=1.25,
        )
        for feature in range(3)
        for segment in ("all", "route=/chat")
    }
    return Baseline(
        baseline_id=name,
        pack_id=pack_id,
        name=f"{name} of March",
        status=BaselineStatus.DRAFT,
        created_at=NOON,
        window_start=NOON - HOUR,
        window_end=NOON,
        n=1_000,
        fingerprint=BaselineFingerprint(
            copies=(Copy("0123456789ab", "float32"),),
            served_models=("served@1",),
            facts={"pack": pack_id},
        ),
        streams=streams,
    )


def drift(feature: str = "toxic", **changes: object) -> Drift:
    made = Drift(
        baseline_id="b1",
        pack_id=PACK,
        feature=feature,
        segment="all",
        window_start=NOON - HOUR,
        window_end=NOON,
        n=500,
        baseline_n=1_000,
        pooled_baseline=False,
        mean=0.5,
        baseline_mean=0.01,
        shift=Bound(value=0.5, low=0.3, high=0.7),
        psi=float("nan"),
        ks=0.2,
        tail_rate=0.02,
        baseline_tail_rate=0.004,
        tail_ratio=Bound(value=5.0, low=2.0, high=float("inf")),
        evidence=1.5,
        cause=Cause.INPUT_SHIFT,
        evaluated_at=NOON,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def alert(number: int = 1, *, key: str = "pack/toxic/all", sequence: int = 0) -> Alert:
    return Alert(
        alert_id=f"alert-{number}",
        dedupe_key=key,
        rule="persona-drift",
        kind="drift",
        severity="warning",
        state=AlertState.FIRING if sequence else AlertState.PENDING,
        summary="toxic drifted",
        labels={"feature": "toxic", "segment": "all"},
        details={"shift": {"value": 0.5, "high": float("inf")}, "note": "nul\0"},
        pending_since=NOON,
        last_active_at=NOON,
        fired_at=NOON if sequence else None,
        last_announced_at=NOON if sequence else None,
        sequence=sequence,
    )


def event(of: Alert, event_type: EventType = "drift.detected") -> Event:
    return Event(
        event_id=f"evt_{of.alert_id}_{of.sequence}",
        alert_id=of.alert_id,
        type=event_type,
        sequence=of.sequence,
        created_at=NOON + of.sequence * MINUTE,
        alert=of,
    )
