"""What does scoring cost with each pack? Prompts per second of the production engine, and bytes of the pack.

    python -m benchmarks.persona.cost --model FOLDER --pack old=FOLDER --pack new=FOLDER [--rounds 9]

One truncated copy, down to the deepest site of all packs, serves every pack, so what differs is what is read off
the same blocks: composites over several sites, covariates, standardising. Packs take turns, in an order that
turns with every round; the ratio of a round is to the first pack in the same round.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.persona.pools import benign_exchanges
from benchmarks.persona.results import arguments, keep, packs_of, show
from monitor.replay.model import LoadedModel, load_model
from monitor.research.reading import Reader
from monitor.score.pack import Pack, save_pack
from monitor.settings import ReplaySettings
from monitor.values.prompts import Prompt


def seconds_of(
    loaded: LoadedModel,
    packs: dict[str, Pack],
    settings: ReplaySettings,
    prompts: list[Prompt],
    rounds: int,
) -> dict[str, list[float]]:
    """CPU seconds of this process for all prompts, by pack and round. One round before is not counted."""
    readers = {
        name: Reader(
            loaded,
            [*pack.features, *(covariate.as_feature() for covariate in pack.covariates)],
            settings,
        )
        for name, pack in packs.items()
    }
    found: dict[str, list[float]] = {name: [] for name in packs}
    names = list(packs)
    for number in range(rounds + 1):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            start = time.process_time()
            readers[name].scores("prompts", prompts)
            if number:
                found[name].append(time.process_time() - start)
    return found


def size_of(pack: Pack) -> int:
    """Bytes of the pack's files, written anew."""
    with tempfile.TemporaryDirectory() as folder:
        save_pack(pack, Path(folder))
        return sum(path.stat().st_size for path in Path(folder).iterdir())


def summary(pack: Pack, ours: list[float], first: list[float], prompts: int) -> dict[str, Any]:
    ratios = [a / b for a, b in zip(ours, first, strict=True)]
    return {
        "features": len(pack.features),
        "sites": sorted({site for feature in pack.features for site in feature.sites}),
        "covariates": len(pack.covariates),
        "bytes": size_of(pack),
        "prompts_per_cpu_second": prompts / statistics.median(ours),
        "time_against_the_first": statistics.median(ratios),
        "time_against_the_first_range": [min(ratios), max(ratios)],
        "cpu_seconds": ours,
    }


def main() -> None:
    parser = arguments(__doc__, organisms=False)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--prompts", type=int, default=64)
    options = parser.parse_args()
    if options.device != "cpu":
        raise SystemExit("--device: cost counts CPU seconds")
    packs = packs_of(options)
    settings = ReplaySettings(model=options.model, device="cpu", dtype="float32", threads=1)
    exchanges = benign_exchanges()
    chosen = np.random.default_rng(options.seed).permutation(len(exchanges))[: options.prompts]
    prompts = [exchanges[index] for index in chosen]
    deepest = max(pack.deepest_site for pack in packs.values())
    taken = seconds_of(load_model(settings, deepest), packs, settings, prompts, options.rounds)
    first = next(iter(taken.values()))
    result = {name: summary(pack, taken[name], first, len(prompts)) for name, pack in packs.items()}
    keep(
        "cost",
        packs,
        options,
        {"deepest_site": deepest, "prompts": len(prompts), "by_pack": result},
    )
    show(
        "Cost of scoring",
        [
            {"pack": name}
            | {
                key: row[key]
                for key in ("features", "covariates", "bytes", "prompts_per_cpu_second")
            }
            | {"time": row["time_against_the_first"]}
            for name, row in result.items()
        ],
    )


if __name__ == "__main__":
    main()
