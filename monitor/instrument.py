"""The copy of the model with the pack that reads it: what worker, offline scoring and doctor build alike.

torch is imported when one is built and not above: watcher, courier and web run without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from monitor.canaries import Examiner, Replay
from monitor.score.fit import pack_or_shipped, require_fit
from monitor.score.pack import Pack
from monitor.settings import Settings
from monitor.values.identity import ModelIdentity


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


def build_instrument(
    settings: Settings, accept: Callable[[Pack], object] = lambda pack: None
) -> Instrument:
    """Load pack and model, and refuse a pack that was made for another model.

    ``accept`` may refuse the pack for another reason, before the model's weights are read.
    """
    from monitor.replay.alternatives import built, require_features
    from monitor.replay.engine import ReplayEngine
    from monitor.replay.examining import Examiner
    from monitor.replay.model import load_model

    pack, model = pack_in_use(settings)
    require_fit(pack, model, f"the model in {settings.replay.model}")
    accept(pack)
    registered = settings.identity.alternatives if settings.identity.share > 0.0 else ()
    require_features(registered, pack.features, canaries=len(pack.canaries))
    loaded = load_model(settings.replay, pack.deepest_site, full=settings.whole_copy)
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
    )


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
