"""Where results are kept, and what every result says about itself."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from rich.console import Console
from rich.table import Table

from benchmarks.persona.machine import described, machine_arguments
from monitor.replay.model import identity_of
from monitor.score.fit import shipped_pack
from monitor.score.pack import Pack, load_pack
from monitor.settings import ReplaySettings

RESULTS = Path(__file__).parent / "results"


def arguments(doc: str | None, *, organisms: bool = True) -> argparse.ArgumentParser:
    """What every benchmark of this folder takes."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="the untouched model's folder")
    if organisms:
        parser.add_argument(
            "--organisms",
            type=Path,
            required=True,
            help="what organisms.py wrote: one training, or a folder of several",
        )
    parser.add_argument(
        "--pack",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="several stand side by side; without one: the pack shipped for the model",
    )
    parser.add_argument("--seed", type=int, default=0)
    machine_arguments(parser)
    return parser


def packs_of(options: argparse.Namespace) -> dict[str, Pack]:
    """The packs by the names that results call them, in the order given."""
    if not options.pack:
        folder = shipped_pack(identity_of(ReplaySettings(model=options.model)))
        if folder is None:
            raise SystemExit("no pack ships for this model: give --pack")
        return {"shipped": load_pack(folder)}
    packs: dict[str, Pack] = {}
    for given in options.pack:
        name, _, folder_name = given.rpartition("=")
        name = name or Path(folder_name).name
        if name in packs:
            raise SystemExit(f"--pack: two packs are called {name!r}; write NAME=FOLDER")
        packs[name] = load_pack(Path(folder_name))
    return packs


def pack_of(options: argparse.Namespace) -> Pack:
    """The one pack of a benchmark that takes no more."""
    packs = packs_of(options)
    if len(packs) > 1:
        raise SystemExit("--pack: give one, this benchmark compares none")
    return next(iter(packs.values()))


def keep(
    name: str,
    packs: Mapping[str, Pack],
    options: argparse.Namespace,
    content: Mapping[str, Any],
    folder: Path = RESULTS,
) -> None:
    """Write ``<name>.json`` into ``folder`` with packs, seed, versions and machine."""
    header = {
        "packs": {
            called: {"name": pack.name, "version": pack.version, "id": pack.pack_id}
            for called, pack in packs.items()
        },
        "model": next(iter(packs.values())).model.model_id,
    }
    keep_plain(name, options, {**header, **content}, folder)


def keep_plain(
    name: str, options: argparse.Namespace, content: Mapping[str, Any], folder: Path = RESULTS
) -> None:
    """The same for what no pack has a part in."""
    folder.mkdir(exist_ok=True)
    made_by = {
        "seed": options.seed,
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "peft": peft.__version__,
        },
        "machine": described(options.device),
    }
    text = json.dumps(rounded({**content, **made_by}), indent=1)
    # A list of numbers belongs on one line.
    text = re.sub(
        r"\[\s+([-\d.,\s\"a-z]*?)\s+\]", lambda m: "[" + " ".join(m[1].split()) + "]", text
    )
    (folder / f"{name}.json").write_text(text + "\n")


def picture(name: str, svg: str, folder: Path = RESULTS) -> None:
    folder.mkdir(exist_ok=True)
    # Stands alone on a page of either colour, where no page gives it an ink.
    (folder / f"{name}.svg").write_text(svg.replace("currentColor", "#7a7f87") + "\n")


def rounded(value: Any) -> Any:
    """Numbers to four significant digits, all the way down."""
    if isinstance(value, Mapping):
        return {str(k): rounded(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(v) for v in value]
    if isinstance(value, bool | str) or value is None:
        return value
    return int(value) if isinstance(value, int) else float(f"{float(value):.4g}")


def show(title: str, lines: Sequence[Mapping[str, Any]]) -> None:
    table = Table(title=title)
    for header in lines[0]:
        table.add_column(header)
    for line in lines:
        table.add_row(*(f"{v:.3g}" if isinstance(v, float) else str(v) for v in line.values()))
    Console().print(table)
