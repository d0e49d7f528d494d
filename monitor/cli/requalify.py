"""`monitor pack requalify`: may thresholds and baseline stay when the copy is read in another precision?"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from monitor.cli.arguments import JsonOption, option, settled, spread
from monitor.cli.show import out, plain, progress, show
from monitor.errors import BadInput

if TYPE_CHECKING:
    from monitor.research.gate.requalify import Requalification
    from monitor.settings import ReplaySettings

WHAT_NOW = {
    "pass": "Thresholds and baseline carry over.",
    "stale": "Do not carry them over: capture a baseline in the new precision and approve it, and build or calibrate "
    "the pack anew where a threshold is stale.",
    "inconclusive": "Too few exchanges to say.",
}


@dataclass(frozen=True, kw_only=True)
class Models:
    model: Path = option(..., "The model as it is replayed now: folder or GGUF file.")
    prompts: Path = option(
        ..., "Records of your own traffic, one per line, of any supported format; - reads stdin."
    )
    dtype: str = option("float32", "The dtype it is replayed in now: float32 or bfloat16.")
    to_model: Path | None = option(
        None, "The checkpoint to be replayed, a quantised one for instance; the same if left out."
    )
    to_dtype: str = option("float32", "The dtype it is to be replayed in.")
    device: str = option("auto", "auto, cpu, cuda, cuda:1 …")


@dataclass(frozen=True, kw_only=True)
class Deciding:
    """Fields as `Asked` has them."""

    shift: float = option(0.1, "How far a mean may move, in calibration deviations.")
    tail: float = option(0.005, "What share of the exchanges may come into a tail, or leave it.")
    alpha: float = option(0.05, "Error rate of either wrong decision.")
    least: int = option(50, "Fewest conversations for any decision.", "--min-n")


@spread
def pack_requalify(
    folder: Annotated[Path, typer.Argument(metavar="PACK", help="The pack in use.")],
    models: Models,
    deciding: Deciding,
    as_json: JsonOption = False,
) -> None:
    """Do a pack's thresholds and baseline carry over to another precision of its model?

    The same exchanges are read in both. Exit code 0: pass; 1: stale; 2: inconclusive, more exchanges are
    needed; 3: refused, nothing was decided.
    """
    from monitor.offline import read_prompts
    from monitor.research.gate.report import EXIT_CODES
    from monitor.research.gate.requalify import Asked, requalify
    from monitor.score.pack import load_pack
    from monitor.settings import IngestSettings

    if (models.to_model or models.model) == models.model and models.to_dtype == models.dtype:
        raise BadInput("both sides are the same: give --to-model or another --to-dtype")
    before = _settings(models, models.model, models.dtype, "--dtype")
    after = _settings(models, models.to_model or models.model, models.to_dtype, "--to-dtype")
    asked = settled(Asked, deciding)
    exchanges, skipped = read_prompts(models.prompts, IngestSettings())
    with progress() as said:
        found = requalify(load_pack(folder), before, after, exchanges, asked, said)
    if as_json:
        sys.stdout.write(json.dumps(_json(found, skipped), indent=2) + "\n")
    else:
        _print(found, skipped)
    raise typer.Exit(EXIT_CODES[found.verdict])


def _settings(models: Models, model: Path, dtype: str, flag: str) -> ReplaySettings:
    from monitor.settings import ReplaySettings

    if dtype not in ("float32", "bfloat16"):
        raise BadInput(f"{flag} {dtype!r}: choose float32 or bfloat16")
    return ReplaySettings.model_validate({"model": model, "dtype": dtype, "device": models.device})


def _json(found: Requalification, skipped: int) -> dict[str, Any]:
    def known(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    fields = asdict(found)
    fields["features"] = [
        {name: known(value) for name, value in asdict(one).items() if name != "verdict"}
        | {"outcome": one.outcome}
        for one in found.features
    ]
    return {"outcome": found.outcome, **fields, "skipped": skipped}


def _needed(found: Requalification) -> str:
    needs = [one.needed for one in found.features if one.needed is not None]
    return f" About {max(needs)} would decide." if needs else ""


def _print(found: Requalification, skipped: int) -> None:
    out.print(
        plain(
            f"{found.outcome.upper()}: {found.before} to {found.after} on {found.exchanges} exchanges. "
            f"{WHAT_NOW[found.outcome]}{_needed(found)}"
        ),
        highlight=False,
        soft_wrap=True,
    )
    show(
        [
            {
                "feature": one.feature,
                "outcome": one.outcome,
                "shift": f"{one.shift:+.3f}",
                "within": f"{max(abs(one.low), abs(one.high)):.3f}",
                "in tail": f"+{one.newly} -{one.no_longer}",
                "needs": one.needed,
            }
            for one in found.features
        ],
        as_json=False,
    )
    if found.canary_deviation is not None:
        out.print(
            plain(
                f"Canaries move by up to {found.canary_deviation:.3g} deviations: pack.canary_tolerance must be above "
                "that, or drift alerts are held."
            ),
            highlight=False,
            soft_wrap=True,
        )
    if skipped:
        out.print(plain(f"{skipped} records were skipped: they are no prompts, or redacted"))
