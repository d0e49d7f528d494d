"""Whether a GPU reads what a CPU in float32 reads: on a real model, and on tiny ones of every packed architecture.

For each model and dtype: how far the readings are from the CPU's, as the largest difference over
the largest reading and as the root mean square of the differences over the readings' own deviation
between prompts. In bfloat16 both forms of attention are compared, the kernel for whole rows and the
one segment by segment. Bounds: `BOUNDS`. TF32 stays off.

    python -m benchmarks.gpu_readings [--model FOLDER] [--device cuda] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from benchmarks.workload import directions, workload
from monitor.replay.engine import ReplayEngine
from monitor.replay.model import LoadedModel, load_model
from monitor.settings import ReplaySettings
from monitor.values.features import Feature
from monitor.values.prompts import Prompt
from monitor.values.scores import Replayed
from tests.replay.architectures import PACKED, save_drawn
from tests.scenes.models import byte_tokenizer

BOUNDS = {
    "float32": {"largest": 1e-4},
    "bfloat16": {"rms": 0.1},
    "bfloat16, random weights": {"rms": 0.25},
}
"""``largest`` over the largest reading; ``rms`` over the deviation between prompts. Random weights with
strong attention magnify rounding; a token too many in sight moves readings by more than that."""


def read(loaded: LoadedModel, features: Sequence[Feature], prompts: Sequence[Prompt]) -> np.ndarray:
    settings = ReplaySettings(batch_tokens=1_024, min_shared_tokens=8)
    engine = ReplayEngine(loaded, features, settings)
    return np.stack([o.readings for o in engine.replay(prompts) if isinstance(o, Replayed)])


def compared(
    folder: Path, site: int, words: Sequence[int], device: str, bounds: str
) -> dict[str, dict[str, Any]]:
    """By dtype and form of attention, the distances from the CPU in float32 and whether they hold."""

    def loaded(where: str, dtype: Any) -> LoadedModel:
        return load_model(ReplaySettings(model=folder, device=where, dtype=dtype), site)

    reference = loaded("cpu", "float32")
    generator = np.random.default_rng(3)
    features = directions(8, reference.config.hidden_size, site, generator)
    prompts = [p for system in words for p in workload(12, system, generator)]
    expected = read(reference, features, prompts)
    deviation = expected.std(axis=0)
    found: dict[str, dict[str, Any]] = {}
    for dtype in ("float32", "bfloat16"):
        copy = loaded(device, dtype)
        forms = {f"{dtype}, segment by segment": replace(copy, kernel=None)}
        if copy.kernel is not None:
            forms[f"{dtype}, whole rows"] = copy
        for name, form in forms.items():
            apart = read(form, features, prompts) - expected
            distances = {
                "largest": float(np.abs(apart).max() / np.abs(expected).max()),
                "rms": float((np.sqrt((apart**2).mean(axis=0)) / deviation).max()),
            }
            bound = BOUNDS[dtype if dtype == "float32" else bounds]
            holds = all(distances[key] <= most for key, most in bound.items())
            found[name] = distances | {"holds": holds}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", type=Path, help="a real model as well, read behind block 15")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results: dict[str, Any] = {"torch": torch.__version__}

    def part(name: str, folder: Path, site: int, words: Sequence[int], bounds: str) -> None:
        try:
            results[name] = compared(folder, site, words, options.device, bounds)
            for form, one in results[name].items():
                state = "holds" if one["holds"] else "DOES NOT HOLD"
                print(
                    f"{name}, {form}: largest {one['largest']:.1e}, rms {one['rms']:.1e}, {state}",
                    flush=True,
                )
        except Exception:
            results[name] = traceback.format_exc()
            print(name, results[name], flush=True)
        if options.json:
            options.json.write_text(json.dumps(results, indent=1) + "\n")

    if options.model:
        part("real model", options.model, 15, (0, 60), "bfloat16")
    with tempfile.TemporaryDirectory() as scratch:
        for name, (kind, shape) in PACKED.items():
            config = getattr(transformers, kind)(**shape)
            config.max_position_embeddings = 2_048
            folder = save_drawn(config, byte_tokenizer(), Path(scratch) / name)
            part(name, folder, 3, (0, 12), "bfloat16, random weights")


if __name__ == "__main__":
    main()
