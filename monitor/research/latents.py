"""Build a pack from chosen latents of a published sparse autoencoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from monitor.replay.engine import ReplayEngine
from monitor.replay.model import load_model
from monitor.research.assemble import Progress, Reader, assembled, instrument
from monitor.research.texts import DATA, load_texts
from monitor.score.pack import Pack, save_pack
from monitor.score.sae import import_saelens
from monitor.settings import ReplaySettings


def build_latent_pack(
    folder: Path,
    latents: Sequence[int],
    model: Path,
    out: Path,
    progress: Progress = lambda line: None,
    *,
    names: Sequence[str] | None = None,
) -> Pack:
    """Import ``latents`` of the SAELens ``folder``, calibrate them on benign text, save to ``out``.

    Blocks for minutes. Raises `BadInput` for what the importer refuses and for a latent that the
    benign texts never wake, `ModelError`, `PackError`.
    """
    features = [
        replace(feature, tags=("latent", "misaligned"))
        for feature in import_saelens(folder, latents, names=names)
    ]
    settings = ReplaySettings(model=model, device="cpu", dtype="float32")
    loaded = load_model(settings, max(feature.site for feature in features))
    texts = load_texts(DATA)
    reader = Reader(ReplayEngine(loaded, features, settings), progress)
    pack, _ = assembled(f"{loaded.model_id}-latents", "1", features, loaded, texts, reader)
    pack = replace(
        pack,
        provenance={
            "method": "latents of a SAELens checkpoint",
            "checkpoint": folder.resolve().name,
            "latents": list(latents),
            "texts_sha256": texts.sha256,
            "site_convention": "layers.L, the output of the 0-based decoder block L",
            **instrument(settings),
        },
        report={"note": "no held-out separation was measured for these latents"},
    )
    save_pack(pack, out)
    return pack
