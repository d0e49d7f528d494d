"""The dtype that ``replay.dtype: auto`` leaves open, found out on a real tiny model and a real database."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine

from monitor.instrument import KnownDtypes, build_instrument, dtypes_before
from monitor.replay import pace
from monitor.replay.pace import Pace, paced
from monitor.score.pack import Pack, load_pack, manifest, save_pack
from monitor.settings import ReplaySettings, Settings
from monitor.store.database import transaction
from monitor.store.packs import register_pack
from monitor.store.workers import record_canary_run
from monitor.values.prompts import Message, Prompt, RecordKey
from monitor.values.scores import CanaryRun, Lineage
from tests.scenes.packs import drawn, feature, pack_of

NOW = datetime(2026, 1, 1, tzinfo=UTC)
FASTER, SLOWER = Pace(float32=2.0, bfloat16=1.0), Pace(float32=1.0, bfloat16=5.0)
GREETING = Prompt(
    key=RecordKey(topic="t", partition=0, offset=0),
    recorded_at=NOW,
    messages=(Message(role="user", content="good morning"),),
    response="to you, too",
)


def nothing(_pack_id: str) -> tuple[str, ...]:
    return ()


@pytest.fixture
def pack(llama_folder: Path, tmp_path: Path) -> Path:
    made = pack_of(llama_folder, [feature("said", drawn(1))], canary=GREETING)
    save_pack(made, tmp_path / "pack")
    return tmp_path / "pack"


def settings(model: Path, pack: Path, *, tolerance: float = 10.0, **replay: object) -> Settings:
    return Settings(
        replay=ReplaySettings.model_validate({"model": model, "device": "cpu", **replay}),
        pack={"path": pack, "canary_tolerance": tolerance},  # type: ignore[arg-type]  # beside the environment's
    )


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Of another CPU's pace: this machine's is none that a test may rely on."""
    return monkeypatch


def test_a_row_is_timed_in_both_dtypes(llama_folder: Path) -> None:
    found = paced(ReplaySettings(model=llama_folder, device="cpu"))
    assert found.float32 > 0.0
    assert found.bfloat16 > 0.0
    assert FASTER.worth
    assert not SLOWER.worth
    assert not Pace(float32=1.2, bfloat16=1.0).worth


@pytest.mark.parametrize(
    ("here", "tolerance", "dtype", "reason"),
    [
        (FASTER, 10.0, "bfloat16", "2.00 times as fast"),
        (FASTER, 1e-9, "float32", "of 1e-09 tolerated"),
        (SLOWER, 10.0, "float32", "less than 1.3"),
    ],
)
def test_bfloat16_is_taken_where_it_is_faster_and_the_canaries_read_as_recorded(
    llama_folder: Path,
    pack: Path,
    on: pytest.MonkeyPatch,
    here: Pace,
    tolerance: float,
    dtype: str,
    reason: str,
) -> None:
    on.setattr(pace, "paced", lambda _settings: here)
    given = settings(llama_folder, pack, tolerance=tolerance)
    made = build_instrument(given, before=nothing)
    assert made.engine.lineage("p").dtype == dtype
    assert reason in made.dtype_reason


def test_a_dtype_that_is_named_is_taken_and_nobody_asks(
    llama_folder: Path, pack: Path, on: pytest.MonkeyPatch
) -> None:
    on.setattr(pace, "paced", lambda _settings: FASTER)
    made = build_instrument(settings(llama_folder, pack, dtype="float32"), before=nothing)
    assert (made.engine.lineage("p").dtype, made.dtype_reason) == ("float32", "")


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule as on a GPU, where nothing is timed; the copy itself is on this machine's CPU."""

    def timed(_settings: ReplaySettings) -> Pace:
        raise AssertionError("nothing is timed on a GPU")

    monkeypatch.setattr(pace, "paced", timed)
    monkeypatch.setattr(pace, "on_cpu", lambda _settings: False)


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize("before", [nothing, None])
@pytest.mark.parametrize(
    ("tolerance", "dtype", "reason"),
    [(10.0, "bfloat16", "of 10 tolerated"), (1e-9, "float32", "of 1e-09 tolerated")],
)
def test_on_a_gpu_bfloat16_is_taken_where_the_canaries_read_as_recorded(
    llama_folder: Path,
    pack: Path,
    before: KnownDtypes | None,
    tolerance: float,
    dtype: str,
    reason: str,
) -> None:
    made = build_instrument(settings(llama_folder, pack, tolerance=tolerance), before=before)
    assert made.engine.lineage("p").dtype == dtype
    assert "on a GPU" in made.dtype_reason
    assert reason in made.dtype_reason


@pytest.mark.usefixtures("on_gpu")
def test_on_a_gpu_a_pack_without_canaries_is_read_in_float32(
    llama_folder: Path, tmp_path: Path
) -> None:
    save_pack(pack_of(llama_folder, [feature("said", drawn(1))]), tmp_path / "bare")
    made = build_instrument(settings(llama_folder, tmp_path / "bare"), before=nothing)
    assert made.engine.lineage("p").dtype == "float32"
    assert "no canaries" in made.dtype_reason


def ran(database: Engine, pack: Path, lineage: Lineage, *, reproduced: bool, hour: int) -> None:
    """A worker's run of the pack's canaries, stored."""
    known: Pack = load_pack(pack)
    with transaction(database) as c:
        register_pack(c, known.pack_id, known.name, manifest(known), known.features)
        record_canary_run(
            c,
            CanaryRun(
                worker_id=f"w{hour}",
                ran_at=NOW + timedelta(hours=hour),
                lineage=lineage,
                largest_deviation=0.0,
                noise_floor=0.05,
                reproduced=reproduced,
            ),
        )


def test_scores_that_are_there_keep_their_dtype(
    llama_folder: Path, pack: Path, on: pytest.MonkeyPatch, database: Engine
) -> None:
    """An installation that upgrades goes on in the dtype that its workers read in."""
    on.setattr(pace, "paced", lambda _settings: FASTER)
    given = settings(llama_folder, pack)
    earlier = build_instrument(given)
    lineage = earlier.engine.lineage(earlier.pack.pack_id)
    assert lineage.dtype == "float32"
    ran(database, pack, lineage, reproduced=True, hour=0)
    made = build_instrument(given, before=dtypes_before(database, given.replay))
    assert made.engine.lineage("p").dtype == "float32"
    assert "scores so far are in float32" in made.dtype_reason


def test_only_scores_of_this_kind_of_device_whose_canaries_held_are_kept_to(
    llama_folder: Path, pack: Path, on: pytest.MonkeyPatch, database: Engine
) -> None:
    """A copy that never reproduced its canaries left nothing to keep to: its alerts were held."""
    given = settings(llama_folder, pack)
    earlier = build_instrument(given)
    cpu = earlier.engine.lineage(earlier.pack.pack_id)
    gpu = replace(cpu, device="a card", dtype="bfloat16")
    known = dtypes_before(database, given.replay)
    ran(database, pack, gpu, reproduced=True, hour=0)
    ran(database, pack, cpu, reproduced=False, hour=1)
    assert known(earlier.pack.pack_id) == []
    on.setattr(pace, "on_cpu", lambda _settings: False)
    assert known(earlier.pack.pack_id) == ["bfloat16"]
