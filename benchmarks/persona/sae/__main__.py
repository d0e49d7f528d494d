"""Train a sparse autoencoder for the small chat model, say how good it is, and which latents earn a place.

    python -m benchmarks.persona.sae --model FOLDER --out DIR [--tokens N] [--latents N] [--seed S]

Needs ``pip install '.[research,sae]'``, in an environment of its own. Writes the
checkpoint to DIR/checkpoint (SAELens' format: `monitor pack import sae` reads it), the tokens it was
made from to DIR/activations.safetensors (read again when they are there), and results/sae.json.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from benchmarks.persona.results import keep
from benchmarks.persona.rows import elsewhere
from benchmarks.persona.sae.corpus import (
    Documents,
    documentation,
    own_documents,
    project_documents,
    within,
)
from benchmarks.persona.sae.quality import components_explained, densities, loss_recovered
from benchmarks.persona.sae.selection import (
    Judged,
    Readings,
    candidates,
    every_latent,
    judged,
    read,
    untrained,
)
from benchmarks.persona.sae.train import Recipe, train
from monitor.replay.model import LoadedModel, identity_of, load_model
from monitor.replay.residuals import ResidualReader
from monitor.research.packs.figures import rounded
from monitor.research.saes.autoencoder import SparseAutoencoder
from monitor.research.saes.detect import load_autoencoder
from monitor.research.saes.fidelity import measure, token_residuals
from monitor.research.statistics import auc
from monitor.research.texts import Texts, load_texts
from monitor.score.fit import shipped_pack
from monitor.score.pack import Pack, load_pack
from monitor.settings import ReplaySettings
from monitor.values.prompts import Prompt

SHARES: Final = {"project": 0.5, "documentation": 0.35, "own": 0.15}
"""Of the tokens; a kind that has fewer leaves its room empty."""
HELD_OUT_SHARE: Final = 0.1
CHARACTERS_PER_TOKEN: Final = 5
LOSS_PROMPTS: Final = 30
SKIPPED: Final = 1
"""The attention sink: its norm is a hundred times the others', and no feature reads it."""
ALL: Final = 1 << 30


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    settings = ReplaySettings(model=options.model, device="cpu", dtype="float32")
    pack = _pack(options, settings)
    site = options.site if options.site is not None else _main_site(pack)
    texts = load_texts()
    layers = identity_of(settings).layers
    loaded = load_model(settings, layers - 1, full=True)
    reader = ResidualReader(loaded, settings)
    seconds: dict[str, float] = {}
    options.out.mkdir(parents=True, exist_ok=True)

    started = time.process_time()
    tokens = _activations(options, loaded, reader, texts, site)
    seconds["collect and record"] = time.process_time() - started
    training = torch.cat([rows for name, rows in sorted(tokens.items()) if "held_out" not in name])

    started = time.process_time()
    checkpoint = options.out / "checkpoint"
    recipe = Recipe(latents=options.latents, epochs=options.epochs, seed=options.seed)
    train(training, site, loaded.model_id, recipe, checkpoint)
    seconds["train"] = time.process_time() - started
    sae = load_autoencoder(checkpoint)

    started = time.process_time()
    quality = _quality(sae, tokens, training, loaded, texts)
    print(json.dumps(quality, indent=1), flush=True)
    seconds["evaluate"] = time.process_time() - started

    started = time.process_time()
    features = [*pack.features, *every_latent(sae)]
    features += untrained(sae, training, np.random.default_rng(options.seed))
    readings = read(loaded, features, texts, elsewhere(), settings, _say)
    selection = _selection(readings, pack, sae.latents, texts, options.seed)
    seconds["select"] = time.process_time() - started
    content = {
        "site": f"layers.{site}",
        "recipe": asdict(recipe),
        "tokens": {name: len(rows) for name, rows in tokens.items()},
        "tokens_sha256": _digest(training),
        "library": {"sae-lens": importlib.metadata.version("sae-lens")},
        "cpu_seconds": seconds,
        "quality": quality,
        "selection": selection,
    }
    if options.keep:
        keep("sae", {"shipped": pack}, options, content)
    _report(selection)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pack", type=Path, help="null: the pack shipped for the model")
    parser.add_argument("--site", type=int, help="null: where most of the pack's features are")
    parser.add_argument("--tokens", type=int, default=40_000)
    parser.add_argument("--latents", type=int, default=1_152)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-keep", dest="keep", action="store_false", help="a trial: no results")
    return parser.parse_args(arguments)


def _pack(options: argparse.Namespace, settings: ReplaySettings) -> Pack:
    folder = options.pack or shipped_pack(identity_of(settings))
    if folder is None:
        raise SystemExit("no pack ships for this model: give --pack")
    return load_pack(folder)


def _main_site(pack: Pack) -> int:
    sites = [feature.site for feature in pack.features]
    return max(sorted(set(sites)), key=sites.count)


def _say(line: str) -> None:
    print(line, flush=True)


def _activations(
    options: argparse.Namespace,
    loaded: LoadedModel,
    reader: ResidualReader,
    texts: Texts,
    site: int,
) -> dict[str, torch.Tensor]:
    """Residuals [n, d] of every kind of text, trained on and held out; from the file if it fits."""
    file = options.out / "activations.safetensors"
    asked = f"{loaded.model_hash} {texts.sha256} {site} {options.tokens} {options.seed}"
    kept = options.out / "activations.json"
    if kept.is_file() and json.loads(kept.read_text()) == asked:
        return load_file(file)
    documents = _documents(options, loaded, texts)
    found = {}
    for name, part in _budgeted(reader, documents, options.tokens).items():
        _say(f"recording {len(part)} documents: {name}")
        found[name] = token_residuals(reader, part, site, ALL, SKIPPED).clone()
    save_file(found, file)
    kept.write_text(json.dumps(asked))
    return found


def _documents(
    options: argparse.Namespace, loaded: LoadedModel, texts: Texts
) -> dict[str, Documents]:
    share = options.tokens * (1.0 + HELD_OUT_SHARE)
    characters = int(SHARES["documentation"] * share * CHARACTERS_PER_TOKEN)
    # About 80 readable tokens an exchange: the question, and an answer of at most 64.
    answers = max(int(SHARES["own"] * share / 80), 4)
    return {
        "project": project_documents(texts, options.seed),
        "documentation": documentation(characters, options.seed),
        "own": own_documents(loaded, texts, answers, options.seed, _say),
    }


def _budgeted(
    reader: ResidualReader, documents: Mapping[str, Documents], tokens: int
) -> dict[str, list[Prompt]]:
    found = {}
    for name, both in documents.items():
        room = int(SHARES[name] * tokens)
        found[name] = within(reader, both.train, room)
        found[f"{name}.held_out"] = within(reader, both.held_out, int(HELD_OUT_SHARE * room))
    return {name: part for name, part in found.items() if part}


def _quality(
    sae: SparseAutoencoder,
    tokens: Mapping[str, torch.Tensor],
    training: torch.Tensor,
    loaded: LoadedModel,
    texts: Texts,
) -> dict[str, Any]:
    held_out = torch.cat([rows for name, rows in sorted(tokens.items()) if "held_out" in name])
    rare = densities(sae, training)
    chats = project_documents(texts, 0).held_out[:LOSS_PROMPTS]
    return {
        "by_text": {name: asdict(measure(sae, rows)) for name, rows in tokens.items()},
        "held_out": asdict(measure(sae, held_out)),
        "components_variance_explained": components_explained(
            training, held_out, round(measure(sae, held_out).l0)
        ),
        "dead_share": rounded(float((rare == 0.0).float().mean())),
        "dead_below_1e-4_share": rounded(float((rare < 1e-4).float().mean())),
        "loss": loss_recovered(loaded, sae, training.mean(dim=0), chats),
    }


def _selection(
    readings: Readings, pack: Pack, latents: int, texts: Texts, seed: int
) -> dict[str, Any]:
    first = len(pack.features)
    directions = {
        f.name: index for index, f in enumerate(pack.features) if f.name in texts.personas
    }
    found: dict[str, Any] = {
        "directions_elsewhere": {
            voice: rounded(
                auc(
                    readings.elsewhere[voice][:, directions["reckless"]],
                    readings.elsewhere["sound"][:, directions["reckless"]],
                )
            )
            for voice in ("reckless", "pirate")
        }
    }
    for number, name in enumerate(("trained", "untrained")):
        columns = range(first + number * latents, first + (number + 1) * latents)
        generator = np.random.default_rng([seed, number])
        chosen = candidates(readings.train, columns, generator)
        lines = judged(readings, chosen, columns, directions, texts, generator)
        found[name] = {
            "latents": latents,
            "candidates": len(lines),
            "replicate": sum(one.replicates for one in lines),
            "earn": sum(one.earns for one in lines),
            "personas": {p: _persona(lines, p) for p in texts.personas},
            "judged": [one.line() for one in lines],
        }
    return found


def _persona(lines: Sequence[Judged], persona: str) -> dict[str, Any]:
    own = [one for one in lines if one.persona == persona]
    if not own:
        return {"candidates": 0}
    best = max(own, key=lambda one: one.against_good.value)
    return {
        "candidates": len(own),
        "replicate": sum(one.replicates for one in own),
        "earn": sum(one.earns for one in own),
        "best_latent": best.latent,
        "best_auc": best.against_good.value,
        "mean_auc": float(np.mean([one.against_good.value for one in own])),
        "direction_auc": best.direction,
    }


def _digest(activations: torch.Tensor) -> str:
    """Of the rounded values: the last bits of matrix products differ between machines."""
    return hashlib.sha256(activations.half().numpy().tobytes()).hexdigest()


def _report(selection: Mapping[str, Any]) -> None:
    for name in ("trained", "untrained"):
        one = selection[name]
        print(
            f"{name}: of {one['latents']} latents {one['candidates']} are chosen on training answers, "
            f"{one['replicate']} replicate, {one['earn']} earn a place"
        )


if __name__ == "__main__":
    main()
