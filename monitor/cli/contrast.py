"""Build a pack by contrast: from given answers, or from the model's own rollouts."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import typer

from monitor.cli.arguments import JsonOption, ModelOption, SeedOption, option, settled, spread
from monitor.cli.asking import YesOption, ask, replaced_pack
from monitor.cli.endpoint import JudgeEndpoint
from monitor.cli.show import out, plain, progress, show
from monitor.errors import BadInput, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from monitor.research.answers.endpoint import EndpointJudge
    from monitor.research.rollouts.draw import Judges
    from monitor.research.traits import Trait
    from monitor.score.pack import Pack

EXAMPLE: Final = Path("example")


@dataclass(frozen=True, kw_only=True)
class Building:
    """What is built from, by either way."""

    model: ModelOption
    folder: Path = option(..., "Where the pack is written.", "--out")
    seed: SeedOption = 0
    data: Path | None = option(
        None,
        "Folder of contrast and benign texts, canaries, and hard texts and traits if it has them; the "
        "project's own.",
    )
    probe: bool = option(
        False, "Logistic probes of the contrast texts alone, in place of directions or read-outs."
    )
    rollouts: Path | None = option(
        None,
        "Traits to roll out, JSON lines, in place of given answers; 'example': the project's own.",
        metavar="FILE",
    )
    device: str = option(
        "cpu",
        "cpu, cuda, cuda:1 … in float32; rollouts on a GPU are drawn in the model's own type.",
    )
    as_json: JsonOption = False
    yes: YesOption = False


@dataclass(frozen=True, kw_only=True)
class Rolling:
    """Options of --rollouts; fields that `RolloutSettings` has are called as there."""

    work: Path | None = option(
        None, "Keeps rollouts and ratings, to continue from; OUT.work when left out."
    )
    pairs: int | None = option(None, "Use the first so many instruction pairs of a trait.", min=1)
    questions: int | None = option(None, "Use the first so many questions of each split.", min=2)
    times: int = option(10, "Rollouts per question, pair and side.")
    max_new_tokens: int = option(128, "Longest answer of a rollout.", "--tokens")
    temperature: float = option(1.0, "Of the sampling of rollouts.")
    batch: int = option(16, "Rollouts drawn at once; decides the answers too.")
    threshold: float = option(0.5, "Rating (0 to 1) from which an answer shows the trait.")
    least_coherence: float = option(0.5, "Least coherence (0 to 1) that is kept.", "--coherence")
    least_questions: int = option(
        5, "Questions of each split that must keep both sides; at least 4."
    )
    judge_pack: Path | None = option(
        None, "Pack whose features rate rollouts; the one shipped for the model."
    )
    unfiltered: bool = option(False, "Keep every rollout, unjudged.")


@spread
def pack_build_contrast(
    context: typer.Context, building: Building, rolling: Rolling, endpoint: JudgeEndpoint
) -> None:
    """Build persona directions by contrast, with calibration, canaries and a report.

    From given answers (--data), learned against hard texts where the folder has some; or, with
    --rollouts, from what the model itself answers under opposing instructions, filtered by a judge. A
    run of rollouts that was stopped goes on where it was.
    """
    from monitor.research.contrast.build import build_contrast_pack

    ask(replaced_pack(building.folder), "Replace it?", yes=building.yes)
    with progress() as report:
        if building.rollouts is not None:
            made = _rolled_out(building, rolling, endpoint, report)
        else:
            _refuse_rollout_options(context)
            made = build_contrast_pack(
                building.model,
                building.folder,
                building.seed,
                building.data,
                report,
                kind="probe" if building.probe else "direction",
                device=building.device,
            )
    _print(made, building.folder, building.as_json)


def _rolled_out(
    building: Building, rolling: Rolling, endpoint: JudgeEndpoint, report: Callable[[str], None]
) -> Pack:
    from monitor.research.rollouts.build import build_rollout_pack
    from monitor.research.rollouts.draw import RolloutSettings
    from monitor.research.traits import EXAMPLE as EXAMPLE_TRAITS
    from monitor.research.traits import load_traits

    folder, file = building.folder, building.rollouts
    assert file is not None
    work = rolling.work or folder.with_name(f"{folder.name}.work")
    traits = load_traits(EXAMPLE_TRAITS if file == EXAMPLE else file)
    judges: Judges | Pack | None = None
    if not rolling.unfiltered and endpoint.judge_url is not None:
        judges = _by_endpoint(endpoint, work / "judge-cache.jsonl")
    elif not rolling.unfiltered:
        judges = _judging_pack(building.model, rolling.judge_pack)
    return build_rollout_pack(
        building.model,
        folder,
        [trait.first(rolling.pairs, rolling.questions) for trait in traits],
        settled(RolloutSettings, rolling, rollouts=rolling.times, seed=building.seed),
        judges,
        work,
        building.data,
        report,
        kind="probe" if building.probe else "direction",
        device=building.device,
    )


def _refuse_rollout_options(context: typer.Context) -> None:
    """An option that nothing reads is a mistake: whoever gives a judge expects to be judged."""
    both_ways = {one.name for one in fields(Building)}
    given = [
        param.opts[0]
        for param in context.command.params
        if param.name is not None
        and param.name not in both_ways
        and (source := context.get_parameter_source(param.name)) is not None
        and source.name != "DEFAULT"
    ]
    if given:
        raise BadInput(
            f"without --rollouts the pack is built from given answers, and {', '.join(given)} "
            "would do nothing",
            hint="add --rollouts FILE (or 'example'), or leave them out",
        )


def _by_endpoint(endpoint: JudgeEndpoint, cache: Path) -> Judges:
    def judge(trait: Trait) -> EndpointJudge:
        return endpoint.judge(trait.name, trait.description, cache=cache)

    return judge


def _judging_pack(model: Path, folder: Path | None) -> Pack:
    from monitor.replay.model import identity_of
    from monitor.score.fit import shipped_pack
    from monitor.score.pack import load_pack
    from monitor.settings import ReplaySettings

    found = folder or shipped_pack(identity_of(ReplaySettings(model=model)))
    if found is None:
        raise ConfigurationError(
            "rollouts need a judge, and no pack ships for this model",
            hint="name an endpoint with --judge-url and --judge-model, a pack with --judge-pack, or "
            "filter nothing with --unfiltered",
        )
    return load_pack(found)


def _print(made: Pack, folder: Path, as_json: bool) -> None:
    counts = made.report.get("rollouts", {})
    if as_json:
        content = {"pack_id": made.pack_id, "folder": str(folder), "report": dict(made.report)}
        sys.stdout.write(json.dumps(content, indent=2) + "\n")
        return
    if counts:
        show(_kept(counts), as_json=False)
    out.print(f"{plain(str(folder))}: {len(made.features)} features, id {made.pack_id[:12]}")


def _kept(counts: dict[str, dict[str, dict[str, int]]]) -> Sequence[dict[str, Any]]:
    return [
        {"trait": trait, "rollouts": where, **of}
        for trait, sides in counts.items()
        for where, of in sides.items()
    ]
