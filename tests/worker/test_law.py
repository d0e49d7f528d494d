"""What a baseline measures of weighed answers, and later ones are weighed by: their law where nobody says it, and numerics."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from sqlalchemy import Engine, text

from monitor import operate
from monitor.instrument import build_instrument
from monitor.replay.model import load_model
from monitor.replay.twin import Draw, answers_of
from monitor.score.pack import save_pack
from monitor.settings import (
    AlternativeSettings,
    DriftSettings,
    IdentitySettings,
    PackSettings,
    ReplaySettings,
    Settings,
)
from monitor.store.baselines import approve_baseline
from monitor.store.database import transaction
from monitor.store.laws import law_in_force, likelihoods_between, numerics_in_force
from monitor.values.likelihood import EstimatedLaw, NoLaw
from monitor.values.prompts import Sampling
from tests.scenes.adapters import save_adapter
from tests.scenes.models import changed_model, save_lettered
from tests.scenes.packs import drawn, feature, pack_of
from tests.worker.working import run_until, send, settings_for, working

pytestmark = pytest.mark.slow

SEEN = "SELECT coalesce(sum(n), 0) FROM monitor_data.ingest_counts"
TOKENS = 24


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_lettered(tmp_path_factory.mktemp("lettered"), heat=3.0)


@pytest.fixture(scope="module")
def other(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with another head: it has the name, and says something else."""

    def change(weights: dict[str, Any]) -> None:
        head = weights["lm_head.weight"]
        generator = torch.Generator().manual_seed(3)
        head[:, 1:] = torch.randn(head[:, 1:].shape, generator=generator) * 0.35

    return changed_model(model, tmp_path_factory.mktemp("other") / "model", change)


def records(
    folder: Path, count: int, *, begin: int = 0, law: Sampling, told: Sampling | None = None
) -> list[bytes]:
    """Records that say nothing of ``law``, which their answers were drawn by, or ``told``, and token counts with it."""
    loaded = load_model(ReplaySettings(model=folder, device="cpu", dtype="float32"), 3, full=True)
    tokenizer = loaded.tokenizer
    asked = [f"question {begin + number}: " for number in range(count)]
    draws = [
        Draw(tuple(tokenizer(one, add_special_tokens=False)["input_ids"]), law, TOKENS, begin + n)
        for n, one in enumerate(asked)
    ]
    return [
        json.dumps(
            {
                "id": one,
                "prompt": one,
                "response": {"choices": [{"text": text_of, "finish_reason": "length"}]},
                "model": "tiny",
                **({"temperature": told.temperature, "usage": usage(draw, ids)} if told else {}),
            }
        ).encode()
        for one, draw, ids in zip(asked, draws, answers_of(loaded, draws), strict=True)
        for text_of in [tokenizer.decode(ids)]
    ]


def usage(draw: Draw, said: Sequence[int]) -> dict[str, int]:
    return {"prompt_tokens": len(draw.ids), "completion_tokens": len(said)}


@pytest.fixture
def settings(kafka_bootstrap: str, topic: str, model: Path, tmp_path: Path) -> Settings:
    folder = tmp_path / "pack"
    save_pack(pack_of(model, [feature("said", drawn(1))]), folder)
    return settings_for(kafka_bootstrap, topic).model_copy(
        update={
            "replay": ReplaySettings(model=model, device="cpu", dtype="float32"),
            "pack": PackSettings(path=folder),
            "identity": IdentitySettings(share=1.0),
            "drift": DriftSettings(min_baseline_n=50),
        }
    )


def worked(database: Engine, settings: Settings, values: list[bytes], seen: int) -> str:
    instrument = build_instrument(settings)
    send(settings.kafka.bootstrap_servers, settings.kafka.topics[0], values)
    with working(database, settings, instrument.engine, pack=instrument.pack) as worker:
        run_until(worker, database, SEEN, seen)
    return instrument.pack.pack_id


def outcomes(database: Engine) -> Counter[str]:
    with transaction(database) as c:
        return Counter(c.scalars(text("SELECT weighing FROM monitor.weighed_answers")))


def captured(database: Engine, settings: Settings) -> Any:
    now = datetime.now(UTC)
    with transaction(database) as c:
        return operate.capture_baseline(
            c,
            settings,
            name="normal",
            start=now - timedelta(hours=1),
            end=now + timedelta(minutes=2),
            now=now + timedelta(minutes=2),
        )


SUMS = """
    SELECT sum(n)::int AS n, sum(excess) / sum(tokens) AS nats, sum(excess) / sqrt(sum(variance)) AS z, sum(wagers[5]) AS boldest
    FROM monitor_data.identity_buckets WHERE segment = 'all' AND n > 0
"""


def test_a_baseline_estimates_the_law_and_later_answers_are_weighed_by_it(
    database: Engine, settings: Settings, model: Path
) -> None:
    law = Sampling(temperature=0.7, top_p=0.9)
    pack = worked(database, settings, records(model, 100, law=law), 100)
    assert outcomes(database) == {"sampling_unknown": 100}
    now = datetime.now(UTC)
    with transaction(database) as c:
        sums = likelihoods_between(c, pack, now - timedelta(hours=1), now + timedelta(hours=1))
    assert (sums.n, sums.tokens) == (100, 100 * TOKENS)
    made = captured(database, settings)
    assert isinstance(made.law, EstimatedLaw)
    assert made.law.low <= 0.7 <= made.law.high
    assert made.law.temperature == pytest.approx(0.7, abs=0.05)
    assert made.law.top_p == pytest.approx(0.9, abs=0.03)
    with transaction(database) as c:
        assert law_in_force(c, pack) is None, "a draft is in force for nobody"
        approve_baseline(c, made.baseline_id, "a person", now)
        assert law_in_force(c, pack) == made.law
        (shown,) = c.execute(text("SELECT * FROM monitor.baseline_laws")).mappings()
    assert (shown["temperature"], shown["top_p_high"]) == (
        made.law.temperature,
        made.law.top_p_high,
    )
    worked(database, settings, records(model, 40, begin=100, law=law), 140)
    assert outcomes(database) == {"sampling_unknown": 100, "sampled_estimated": 40}
    with transaction(database) as c:
        own = c.execute(text(SUMS)).one()
    assert own.n == 40
    assert abs(own.nats) < IdentitySettings().vouch_within
    assert own.boldest < 0.0
    again = captured(database, settings)
    assert isinstance(again.law, EstimatedLaw), "the next baseline has an estimate too"
    assert again.law.n == 140


def test_another_model_is_found_under_the_estimate(
    database: Engine, settings: Settings, model: Path, other: Path
) -> None:
    law = Sampling(temperature=0.7, top_p=0.9)
    worked(database, settings, records(model, 100, law=law), 100)
    made = captured(database, settings)
    with transaction(database) as c:
        approve_baseline(c, made.baseline_id, "a person", datetime.now(UTC))
    worked(database, settings, records(other, 20, begin=100, law=law), 120)
    with transaction(database) as c:
        theirs = c.execute(text(SUMS)).one()
    assert theirs.n == 20
    assert theirs.z > 5.0
    assert theirs.boldest > 20.0


def test_answers_of_several_laws_leave_a_sentence(
    database: Engine, settings: Settings, model: Path
) -> None:
    hot, cold = Sampling(temperature=1.4), Sampling(temperature=0.5)
    values = [*records(model, 60, law=cold), *records(model, 60, begin=60, law=hot)]
    pack = worked(database, settings, values, 120)
    made = captured(database, settings)
    assert isinstance(made.law, NoLaw)
    assert "several laws" in made.law.reason
    assert "not weighed" in operate.law_told(made)
    with transaction(database) as c:
        approve_baseline(c, made.baseline_id, "a person", datetime.now(UTC))
        assert law_in_force(c, pack) is None
    worked(database, settings, records(model, 5, begin=200, law=cold), 125)
    assert outcomes(database) == {"sampling_unknown": 125}


def test_settings_win_and_nothing_is_estimated(
    database: Engine, settings: Settings, model: Path
) -> None:
    told = settings.model_copy(update={"identity": IdentitySettings(share=1.0, temperature=0.7)})
    worked(database, told, records(model, 60, law=Sampling(temperature=0.7)), 60)
    assert outcomes(database) == {"sampled_assumed": 60}
    assert captured(database, told).law is None


TALLIED = """
    SELECT sum(counted_tokens)::int AS tokens, sum(counted_excess) AS excess,
        sum(wagers[5]) FILTER (WHERE n > 0) AS boldest
    FROM monitor_data.identity_buckets WHERE segment = 'all'
"""
LIKENED = "SELECT sum(wagers[5]) FROM monitor_data.alternative_buckets WHERE segment = 'all'"


def test_a_baseline_measures_numerics_and_later_answers_are_allowed_for_them(
    database: Engine, settings: Settings, model: Path, tmp_path: Path
) -> None:
    """A server whose law is a little hotter than what its records say stands for other kernels."""
    hotter, said = Sampling(temperature=1.15), Sampling(temperature=1.0)
    other = AlternativeSettings(name="revision-b", adapter=save_adapter(model, tmp_path / "b", 0))
    settings = settings.model_copy(
        update={
            "identity": IdentitySettings(share=1.0, vouch_within=0.5, alternatives=(other,)),
        }
    )
    sent = records(model, 100, law=hotter, told=said)
    pack = worked(database, settings, sent, 100)
    assert outcomes(database) == {"sampled": 100}
    with transaction(database) as c:
        before = c.execute(text(TALLIED)).one()
        likened = c.execute(text(LIKENED)).scalar_one()
    assert before.tokens == 100 * TOKENS
    made = captured(database, settings)
    assert made.numerics is not None
    assert made.numerics.surprise == pytest.approx(before.excess / before.tokens)
    assert made.numerics.bound > settings.identity.tolerance
    assert "allowed for" in operate.numerics_told(made, settings.identity.tolerance)
    with transaction(database) as c:
        assert numerics_in_force(c, pack) is None, "a draft is in force for nobody"
        approve_baseline(c, made.baseline_id, "a person", datetime.now(UTC))
        assert numerics_in_force(c, pack) == made.numerics
        (shown,) = c.execute(text("SELECT * FROM monitor.baseline_numerics")).mappings()
    assert (shown["surprise_high"], shown["reason"]) == (made.numerics.bound, None)
    # The very same answers once more gain less now, and would gain the same without an allowance.
    worked(database, settings, sent, 200)
    with transaction(database) as c:
        after = c.execute(text(TALLIED)).one()
        likened_after = c.execute(text(LIKENED)).scalar_one()
    assert after.tokens == 2 * before.tokens
    assert after.boldest - before.boldest < before.boldest - 1.0
    assert likened_after - likened < likened - 1.0, "what speaks for another model, too"
