"""The copy of the model with the pack that reads it: what worker, offline scoring and doctor build alike.

torch is imported when one is built and not above: watcher, courier and web run without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sqlalchemy import Engine

from monitor.canaries import Examiner, Replay, largest_deviation
from monitor.errors import ConfigurationError
from monitor.logs import get_logger
from monitor.score.fit import pack_or_shipped, require_fit
from monitor.score.pack import Pack
from monitor.settings import ReplaySettings, Settings
from monitor.store.baselines import load_baseline
from monitor.store.database import transaction
from monitor.store.workers import latest_canaries
from monitor.values.identity import ModelIdentity

if TYPE_CHECKING:
    from monitor.replay.model import LoadedModel

log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Instrument:
    """The copy of the model with the pack that reads it."""

    pack: Pack
    engine: Replay
    examiner: Examiner | None = None
    """The whole copy, where canaries to the served model are on."""
    alternatives: Mapping[str, int] = field(default_factory=dict)
    """Registered alternatives by name, and the bytes that each takes beside the copy."""
    precision: str = ""
    """What the copy is replayed in, and what a quantised checkpoint is served in, for people."""
    packing: str = ""
    """How the copy runs prompts and on what ground, for people."""
    dtype_reason: str = ""
    """Why it computes in its dtype, where ``replay.dtype`` left that open."""


KnownDtypes = Callable[[str], Sequence[str]]
"""The dtypes that the scores of the pack of this id are in; empty: it has none."""


def dtypes_before(database: Engine, replay: ReplaySettings) -> KnownDtypes:
    """Of the pack's approved baseline; without one, of the last worker whose copy reproduced the pack's canaries.

    Workers on a CPU follow those on a CPU, workers on a GPU those on a GPU.
    """

    def known(pack_id: str) -> Sequence[str]:
        from monitor.replay.pace import on_cpu

        with transaction(database) as c:
            if baseline := load_baseline(c, pack_id=pack_id):
                return baseline.fingerprint.dtypes
            runs = latest_canaries(c, datetime.fromtimestamp(0, UTC))
        ours = [
            run
            for run in runs
            if run.reproduced
            and run.lineage.pack_id == pack_id
            and (run.lineage.device == "cpu") == on_cpu(replay)
        ]
        return [max(ours, key=lambda run: run.ran_at).lineage.dtype] if ours else []

    return known


def build_instrument(
    settings: Settings,
    accept: Callable[[Pack], object] = lambda pack: None,
    before: KnownDtypes | None = None,
) -> Instrument:
    """Load pack and model, and refuse a pack that was made for another model.

    ``accept`` may refuse the pack for another reason, before the model's weights are read. With
    ``before`` the dtype that ``replay.dtype: auto`` leaves open is found out; without, it is float32 on a CPU.
    """
    from monitor.replay.alternatives import built, require_features
    from monitor.replay.engine import ReplayEngine
    from monitor.replay.examining import Examiner

    pack, model = pack_in_use(settings)
    require_fit(pack, model, f"the model in {settings.replay.model}")
    accept(pack)
    if settings.replay.backend == "vllm":
        return _elsewhere(settings, pack, model)
    registered = settings.identity.alternatives if settings.identity.share > 0.0 else ()
    require_features(registered, pack.features, canaries=len(pack.canaries))
    loaded, reason = _loaded(settings, pack, before)
    if reason:
        log.info("replay.dtype", dtype=str(loaded.dtype).removeprefix("torch."), reason=reason)
    asked = [canary.prompt(index, datetime.now(UTC)) for index, canary in enumerate(pack.canaries)]
    others = built(registered, loaded, pack.features, asked, settings.replay)
    engine = ReplayEngine(loaded, pack.features, settings.replay, pack.covariates, others)
    examiner = Examiner(engine) if settings.server_canaries.on else None
    return Instrument(
        pack=pack,
        engine=engine,
        examiner=examiner,
        alternatives={other.name: other.bytes for other in others},
        precision=loaded.precision,
        packing=loaded.packing.sentence,
        dtype_reason=reason,
    )


def _elsewhere(settings: Settings, pack: Pack, model: ModelIdentity) -> Instrument:
    """The instrument whose copy runs in another engine's server. Raises `ReplayUnavailable` while it is away."""
    from monitor.backends.vllm.replay import VllmReplay

    if settings.needs_torch:
        raise ConfigurationError(settings.needs_torch, hint="set replay.backend: torch")
    weighs = settings.identity.share > 0.0
    engine = VllmReplay(settings.replay, pack, model, weighs=weighs)
    also = ", which weighs answers, too" if weighs else ""
    return Instrument(
        pack=pack,
        engine=engine,
        precision=engine.about.dtype,
        packing=f"run by {engine.about.engine} at {settings.replay.url}{also}",
    )


def _loaded(settings: Settings, pack: Pack, before: KnownDtypes | None) -> tuple[LoadedModel, str]:
    """The copy, and why it computes in its dtype where that was open.

    Scores that are there keep their dtype, so that neither an upgrade nor a restart on another machine
    changes the instrument below a baseline. bfloat16 is taken where it is worth it and the pack's canaries
    read as recorded. Only one whole copy is in memory at a time.
    """
    from monitor.replay.engine import ReplayEngine
    from monitor.replay.model import load_model
    from monitor.replay.pace import WORTH, dtype_open, on_cpu, paced

    def read(dtype: str) -> LoadedModel:
        replay = settings.replay.model_copy(update={"dtype": dtype})
        return load_model(replay, pack.deepest_site, full=settings.whole_copy)

    slow = on_cpu(settings.replay)
    if not dtype_open(settings.replay) or (before is None and slow):
        return read(settings.replay.dtype), ""
    if before is not None and (known := before(pack.pack_id)):
        dtype = "float32" if "float32" in known else "bfloat16"
        return read(dtype), f"the pack's scores so far are in {' and '.join(known)}"
    if settings.whole_copy and slow:
        return read("float32"), "the whole copy is asked what it would say, too"
    if not pack.canaries:
        return read("float32"), "the pack has no canaries to try bfloat16 on"
    said = "bfloat16 is the faster one on a GPU"
    if slow:
        pace = paced(settings.replay)
        said = f"bfloat16 is {pace.ratio:.2f} times as fast as float32 here"
        if not pace.worth:
            return read("float32"), f"{said}, less than {WORTH:g}"
    copy, tolerance = read("bfloat16"), settings.pack.canary_tolerance
    engine = ReplayEngine(copy, pack.features, settings.replay, pack.covariates)
    apart = largest_deviation(pack, engine, datetime.now(UTC))
    said += f", and moves the pack's canaries by {apart:.2g} of {tolerance:g} tolerated"
    if apart <= tolerance:
        return copy, said
    del copy, engine
    return read("float32"), said


def pack_in_use(settings: Settings) -> tuple[Pack, ModelIdentity]:
    """The pack that ``settings`` names, or the one shipped for the model, and which model it is.

    The model's weights are not read, and whether the pack fits them is not asked.
    """
    from monitor.replay.model import identity_of

    model = identity_of(settings.replay)
    if settings.pack.other_weights:
        model = model.with_any_weights()
    pack = pack_or_shipped(
        settings.pack.path,
        model,
        where=settings.replay.model,
        hint="Set pack.path, or build a pack with `monitor pack build contrast`.",
    )
    return pack, model
