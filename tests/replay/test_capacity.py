"""How many exchanges a second a worker reads: the range, what fits of a rate, and the finding of doctor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from monitor.capacity import Capacity, capacity, reads
from monitor.instrument import Instrument, build_instrument
from monitor.score.pack import save_pack
from monitor.settings import IngestSettings, ReplaySettings, Settings
from tests.scenes.packs import drawn, feature, pack_of

HERE = Capacity(
    prompts=200,
    tokens=300.0,
    tokens_run=250.0,
    flops=2e10,
    product_rate=1e11,
    shares=(0.4, 0.8),
    threads=2,
)


def test_the_estimate_is_a_range_and_fits_at_its_slow_end() -> None:
    assert (HERE.slow, HERE.fast) == (2.0, 4.0)
    assert HERE.fitting(100.0) == pytest.approx(0.02)
    assert HERE.fitting(1.0) == 1.0
    assert [HERE.needed(rate) for rate in (0.1, 2.0, 2.1, 20.0)] == [1, 1, 2, 10]
    assert "an estimate: one worker here reads 2 to 4 exchanges a second" in HERE.sentence
    assert "300 tokens (mean of 200 of the newest), 250 of them run" in HERE.sentence
    assert "assumed" in replace(HERE, prompts=0).sentence
    assert HERE.figures["exchanges_per_second"] == [2.0, 4.0]


@pytest.fixture
def instrument(llama_folder: Path, tmp_path: Path) -> Instrument:
    save_pack(pack_of(llama_folder, [feature("said", drawn(1))]), tmp_path / "pack")
    replay = {"model": llama_folder, "device": "cpu", "dtype": "float32", "min_shared_tokens": 8}
    return build_instrument(
        Settings(replay=ReplaySettings.model_validate(replay), pack={"path": tmp_path / "pack"})  # type: ignore[arg-type]
    )


def test_a_sample_costs_what_is_run_of_it(
    instrument: Instrument, chat: Callable[..., Any], words: list[str]
) -> None:
    system = ("system", " ".join(words))
    prompts = [chat(system, ("user", text), response="yes") for text in ("a heron", "two fish")]
    together = capacity(instrument, prompts, chunk=2)
    apart = capacity(instrument, prompts, chunk=1)
    assert together is not None
    assert apart is not None
    assert together.prompts == apart.prompts == 2
    assert together.tokens == apart.tokens == apart.tokens_run > together.tokens_run
    assert together.flops < apart.flops
    none = capacity(instrument, [], chunk=2)
    assert none is not None
    assert (none.prompts, none.tokens) == (0, 240.0)


def test_a_rate_that_cannot_be_read_is_not_well_and_says_what_fits(instrument: Instrument) -> None:
    ingest = IngestSettings(sampling_rate=0.5)
    (asked,) = reads(instrument, [], ingest, None)
    assert asked.well
    assert "--rate" in asked.seen
    slow, fast = asked.figures["exchanges_per_second"]
    assert slow < fast
    (well,) = reads(instrument, [], ingest, slow / 1e3)
    assert well.well
    assert well.figures["sampling_rate_that_fits"] == 1.0
    (ill,) = reads(instrument, [], ingest, fast * 1e3)
    assert not ill.well
    assert "Set ingest.sampling_rate to" in ill.mend
    assert ill.figures["sampling_rate_that_fits"] < 0.01


def test_a_copy_that_another_server_runs_is_not_estimated(instrument: Instrument) -> None:
    elsewhere: Any = object()
    away = replace(instrument, engine=elsewhere)
    assert list(reads(away, [], IngestSettings(), 5.0)) == []
