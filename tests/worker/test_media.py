"""Exchanges with images, from the topic to the buckets: read without them, and counted apart."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from monitor.instrument import build_instrument
from monitor.score.pack import save_pack
from monitor.settings import PackSettings, ReplaySettings, Settings
from monitor.store.database import transaction
from tests.scenes.models import CHATML, normal_weights, save_tiny
from tests.scenes.packs import drawn, feature, pack_of
from tests.worker.working import run_until, send, settings_for, working

SEEN = "SELECT coalesce(sum(n), 0) FROM monitor_data.ingest_counts"
BUCKETS = """
    SELECT segment, sum(n)::int AS n FROM monitor_data.buckets WHERE feature = 0 GROUP BY segment
"""
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


@pytest.fixture
def configured(kafka_bootstrap: str, topic: str, tmp_path: Path) -> Callable[..., Settings]:
    def build(**replay: Any) -> Settings:
        model = save_tiny(
            tmp_path / "model",
            seed=7,
            template=CHATML,
            weights=normal_weights(lambda _, size: size**-0.5),
            bos_token_id=None,
            eos_token_id=1,
        )
        save_pack(pack_of(model, [feature("seen", drawn(1), region="all")]), tmp_path / "pack")
        settings = settings_for(kafka_bootstrap, topic, segment_keys=("tenant",))
        return settings.model_copy(
            update={
                "replay": ReplaySettings(**({"model": model, "device": "cpu"} | replay)),
                "pack": PackSettings(path=tmp_path / "pack"),
            }
        )

    return build


def exchange(number: int, *parts: Any, answer: str | None = "a heron") -> bytes:
    asked = [{"role": "user", "content": [{"type": "text", "text": f"what {number}?"}, *parts]}]
    said = {} if answer is None else {"response": answer}
    return json.dumps(
        {"id": f"p{number}", "messages": asked, "segment": {"tenant": "t"}} | said
    ).encode()


def worked(database: Engine, settings: Settings, values: list[bytes]) -> dict[str, int]:
    instrument = build_instrument(settings)
    send(settings.kafka.bootstrap_servers, settings.kafka.topics[0], values)
    with working(database, settings, instrument.engine, pack=instrument.pack) as worker:
        run_until(worker, database, SEEN, len(values))
    with transaction(database) as c:
        return {row.segment: row.n for row in c.execute(text(BUCKETS))}


def test_an_exchange_with_an_image_counts_in_a_segment_of_its_own(
    database: Engine, configured: Callable[..., Settings]
) -> None:
    values = [exchange(i) for i in range(3)] + [exchange(i, PICTURE) for i in range(3, 5)]
    counted = worked(database, configured(), values)
    assert counted == {"all": 3, "tenant=t": 3, "media_left_out": 2}


def test_the_copy_answers_no_question_about_an_image(
    database: Engine, configured: Callable[..., Settings]
) -> None:
    settings = configured(mode="generate", generate_tokens=2)
    values = [exchange(0, answer=None), exchange(1, PICTURE, answer=None)]
    counted = worked(database, settings, values)
    assert counted == {"generated": 1}
