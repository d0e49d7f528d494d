"""Minutes of synthetic traffic of one pack's worker, stored the way a worker stores them."""

from __future__ import annotations

from copy import copy, deepcopy
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
from sqlalchemy import text

from monitor import operate
from monitor.drift.histogram import bucket_scores, floor_time
from monitor.settings import (
    AlertSettings,
    DriftSettings,
    Endpoint,
    IdentitySettings,
    Settings,
    TwinSettings,
)
from monitor.store.baselines import approve_baseline
from monitor.store.chunks import store_chunk
from monitor.store.database import transaction
from monitor.store.packs import register_pack
from monitor.store.workers import heartbeat, record_canary_run
from monitor.values.features import Calibration, Feature
from monitor.values.prompts import OffsetSpan, RecordKey
from monitor.values.scores import CanaryRun, ChunkResult, IngestCount, Lineage, ScoredPrompt

MINUTE = timedelta(minutes=1)
PACK = "pack-1"
LINEAGE = Lineage(
    pack_id=PACK,
    model_id="tiny",
    model_hash="0123456789abcdef",
    dtype="float32",
    attention="sdpa",
    device="cpu",
    engine="1",
    rules="{}",
)


def feature(name, expected="rises"):
    return Feature(
        name=name,
        kind="direction",
        site=3,
        region="response",
        pooling="mean",
        weight=np.ones(4, dtype=np.float32),
        calibration=Calibration(tokens=(1,), means=(0,), deviations=(1,)),
        expected=expected,
        tail_threshold=3.0,
        description=f"what {name} means",
    )


FEATURES = (feature("toxic"), feature("assistant", "falls"))


def settings_of(*, identity=None, twin=None, **drift):
    drift = {
        "windows": {"15m": 15 * MINUTE, "1h": 60 * MINUTE},
        "settle": timedelta(seconds=30),
        "min_baseline_n": 1_000,
        **drift,
    }
    return Settings(
        identity=identity or IdentitySettings(),
        twin=twin or TwinSettings(),
        drift=DriftSettings(**drift),
        alerts=AlertSettings(
            endpoints=(Endpoint(name="ops", url="https://example.org/hook", format="slack"),)
        ),
    )


class Traffic:
    """Minutes of synthetic traffic, and a clock that stands a little after the last one.

    Every pack has a worker and a partition of its own.
    """

    features = FEATURES

    def __init__(self, database, *, seed=1, pack=PACK, worker="w1", partition=0):
        self.database = database
        self.pack = pack
        self.worker = worker
        self.partition = partition
        self.lineage = replace(LINEAGE, pack_id=pack)
        self.random = np.random.default_rng(seed)
        self.minute = floor_time(datetime.now(UTC), MINUTE) - timedelta(hours=5)
        self.offset = 0
        self.canaries = True
        self.model = "served"
        self.likenesses = ()
        with transaction(database) as c:
            register_pack(c, pack, "test pack", {}, self.features)

    def resumed(self, database):
        """The same traffic on a copy of its database: what comes next is the same there."""
        other = copy(self)
        other.database = database
        other.random = deepcopy(self.random)
        return other

    @property
    def template(self):
        """Name of its database, for copies."""
        return self.database.url.database

    def now(self):
        return self.minute + timedelta(seconds=40)

    def minutes(
        self,
        n,
        *,
        shift=(0.0, 0.0),
        rare=0.0,
        per_minute=60,
        segment=None,
        generated=False,
        watcher=None,
    ):
        """Store n minutes; after each one step the watcher, whose evaluations are returned.

        ``generated``: of prompts without a response, which the copy answered.
        """
        seen = []
        for _ in range(n):
            self._store(per_minute, shift, rare, "generated" if generated else segment)
            self.minute += MINUTE
            self.alive()
            if watcher:
                seen.append(watcher.step())
        return seen

    def scores(self, per_minute, shift, rare):
        scores = self.random.normal(size=(per_minute, 2)) + np.array(shift)
        scores[:, 0] = np.where(self.random.random(per_minute) < rare, 5.0, scores[:, 0])
        return scores

    def adjusted(self, prompts):
        """The prompts as stored, and what `ChunkResult` says of their scores given the prompt."""
        return prompts, {}

    def weighed(self, prompts):
        """The prompts with what was weighed of their answers, and what that adds up to."""
        return prompts, ()

    def twinned(self, prompts):
        """The prompts with their differences to twins, and what those add up to."""
        return prompts, ()

    def _store(self, per_minute, shift, rare, segment):
        scores = self.scores(per_minute, shift, rare)
        prompts = [
            ScoredPrompt(
                key=RecordKey(topic="prompts", partition=self.partition, offset=self.offset + i),
                recorded_at=self.minute + i * MINUTE / per_minute,
                prompt_id=f"prompt-{self.offset + i}",
                content_hash=f"hash-{self.offset + i}".encode(),
                conversation_hash=None,
                segments=("all", segment) if segment else ("all",),
                model=self.model,
                model_revision="1",
                prompt_tokens=10,
                response_tokens=10,
                cut=False,
                generated=segment == "generated",
                inclusion_probability=1.0,
                readings=row.astype(np.float32),
                scores=row.astype(np.float32),
            )
            for i, row in enumerate(scores)
        ]
        prompts, given_the_prompt = self.adjusted(prompts)
        prompts, identity = self.weighed(prompts)
        prompts, twins = self.twinned(prompts)
        with transaction(self.database) as c:
            store_chunk(
                c,
                ChunkResult(
                    group_id="monitor",
                    worker_id=self.worker,
                    spans=(
                        OffsetSpan(
                            topic="prompts",
                            partition=self.partition,
                            start=self.offset,
                            end=self.offset + per_minute,
                            log_end=self.offset + per_minute,
                        ),
                    ),
                    lineage=self.lineage,
                    scored=tuple(prompts),
                    buckets=bucket_scores(prompts, self.features, bucket=MINUTE),
                    **given_the_prompt,
                    identity=identity,
                    likenesses=self.likenesses,
                    twins=twins,
                    dead_letters=(),
                    counts=(
                        IngestCount(
                            bucket_start=self.minute,
                            source=f"prompts/{self.partition}",
                            outcome="scored",
                            n=per_minute,
                        ),
                    ),
                ),
            )
        self.offset += per_minute

    def alive(self, state="running"):
        """The worker shows its presence, and its canaries when they are due."""
        with transaction(self.database) as c:
            heartbeat(c, self.worker, "monitor", self.pack, state, self.now())
            if self.minute.minute % 15 == 0:
                self.run_canaries(c)

    def run_canaries(self, c):
        record_canary_run(
            c,
            CanaryRun(
                worker_id=self.worker,
                ran_at=self.now(),
                lineage=self.lineage,
                largest_deviation=0.0 if self.canaries else 4.0,
                noise_floor=0.05,
                reproduced=self.canaries,
            ),
        )

    def approve(self, settings, *, last=60 * MINUTE):
        with transaction(self.database) as c:
            self.run_canaries(c)
            made = operate.capture_baseline(
                c,
                settings,
                name="normal",
                pack=self.pack,
                start=self.minute - last,
                end=self.minute,
                now=self.now(),
            )
            approve_baseline(c, made.baseline_id, "a person", self.now())
        return made


def counted_by_the_release_before(database):
    """What is stored so far, as it looks after the upgrade: see `monitor.store.buckets`."""
    with database.begin() as c:
        c.execute(text("UPDATE monitor_data.buckets SET tail_n = NULL"))
