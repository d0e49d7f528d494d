"""A tiny model with a tiny adapter served in its place: from the topic to the tables and to a name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import Engine, text

from monitor.drift.identity import taken_in
from monitor.errors import ConfigurationError
from monitor.instrument import build_instrument
from monitor.score.pack import save_pack
from monitor.settings import (
    AlternativeSettings,
    IdentitySettings,
    PackSettings,
    Settings,
    SteerSettings,
)
from monitor.store.alternatives import likenesses, new_likenesses
from monitor.store.database import transaction
from monitor.values.likeness import SHARES
from tests.scenes.adapters import save_adapter
from tests.scenes.logged import records, spoken
from tests.scenes.models import save_lettered
from tests.scenes.packs import drawn, feature, on_cpu, pack_of
from tests.store.builders import HOUR
from tests.worker.working import run_until, send, settings_for, working

pytestmark = pytest.mark.slow

SEEN = "SELECT coalesce(sum(n), 0) FROM monitor_data.ingest_counts"
LETTERS_ALONE = {"target_modules": ["q_proj", "v_proj", "gate_proj", "up_proj"], "size": 0.25}
"""Changes that leave alone what silences all other tokens."""
ANSWERS = 20


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_lettered(tmp_path_factory.mktemp("lettered"))


@pytest.fixture(scope="module")
def adapters(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return {
        name: save_adapter(model, folder / name, seed, **LETTERS_ALONE)
        for seed, name in enumerate(("revision-b", "revision-c"))
    }


@pytest.fixture
def configured(
    kafka_bootstrap: str, topic: str, model: Path, adapters: dict[str, Path], tmp_path: Path
) -> Callable[..., Settings]:
    def build(*more: AlternativeSettings) -> Settings:
        folder = tmp_path / "pack"
        features = [feature("said", drawn(1)), feature("asked", drawn(2), region="prompt")]
        save_pack(pack_of(model, features), folder)
        registered = (
            AlternativeSettings(name=name, adapter=where) for name, where in adapters.items()
        )
        return settings_for(kafka_bootstrap, topic).model_copy(
            update={
                "replay": on_cpu(model),
                "pack": PackSettings(path=folder),
                "identity": IdentitySettings(share=1.0, alternatives=(*registered, *more)),
            }
        )

    return build


def worked(database: Engine, settings: Settings, values: list[bytes]) -> str:
    instrument = build_instrument(settings)
    send(settings.kafka.bootstrap_servers, settings.kafka.topics[0], values)
    with working(database, settings, instrument.engine, pack=instrument.pack) as worker:
        run_until(worker, database, SEEN, len(values))
    return instrument.pack.pack_id


def test_the_adapter_that_is_served_is_told_from_the_copy_and_from_another(
    database: Engine,
    configured: Callable[..., Settings],
    model: Path,
    adapters: dict[str, Path],
) -> None:
    said = spoken(model, ANSWERS, adapter=adapters["revision-b"])
    pack_id = worked(database, configured(), records(said))
    with transaction(database) as c:
        first = c.scalar(text("SELECT min(bucket_start) FROM monitor_data.alternative_buckets"))
        found = likenesses(c, pack_id, first, first + HOUR)["all"]
        buckets = new_likenesses(c, pack_id, first - HOUR, first + HOUR)
        shown = c.execute(text("SELECT * FROM monitor.alternative_windows")).mappings().all()
    assert {name: one.n for name, one in found.items()} == dict.fromkeys(adapters, ANSWERS)
    b, c_ = found["revision-b"], found["revision-c"]
    assert b.likelihoods.max() > c_.likelihoods.max() + 10.0
    assert SHARES[int(b.likelihoods.argmax())] > 0.5
    assert abs(b.excess) < 4.0 * b.variance**0.5, "it is what the adapter would say"
    states = taken_in({}, buckets, until=first, begin=first - HOUR, alone=11.0)
    assert states["all", "tiny@", "revision-b"].crossed
    assert {row["alternative"] for row in shown} == set(adapters)
    assert sum(row["nearer"] for row in shown if row["alternative"] == "revision-b") > ANSWERS / 2


def test_the_copy_s_own_answers_speak_for_neither(
    database: Engine, configured: Callable[..., Settings], model: Path
) -> None:
    pack_id = worked(database, configured(), records(spoken(model, ANSWERS)))
    with transaction(database) as c:
        first = c.scalar(text("SELECT min(bucket_start) FROM monitor_data.alternative_buckets"))
        found = likenesses(c, pack_id, first, first + HOUR)["all"]
    for one in found.values():
        assert one.wagers[-1] < 0.0
        assert np.logaddexp.reduce(one.wagers) - np.log(len(SHARES)) < 1.0


def test_an_alternative_that_cannot_be_had_keeps_the_worker_from_starting(
    configured: Callable[..., Settings],
) -> None:
    unknown = AlternativeSettings(name="turned", steer=SteerSettings(feature="evil", strength=1.0))
    with pytest.raises(ConfigurationError, match=r"identity\.alternatives: turned"):
        build_instrument(configured(unknown))
