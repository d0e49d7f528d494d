"""Build a pack by contrast: from given answers, or from the model's own rollouts."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from monitor.cli.arguments import JsonOption, ModelOption, SeedOption
from monitor.cli.asking import YesOption, ask, replaced_pack
from monitor.cli.show import out, plain, progress, show
from monitor.errors import BadInput, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from monitor.research.rollouts.draw import Judges
    from monitor.research.rollouts.traits import Trait
    from monitor.score.pack import Pack

EXAMPLE: Final = Path("example")
BOTH_WAYS: Final = frozenset(
    {"model", "folder", "seed", "data", "probe", "rollouts", "as_json", "yes"}
)
"""Parameters that say something without --rollouts too."""


def pack_build_contrast(
    context: typer.Context,
    model: ModelOption,
    folder: Annotated[Path, typer.Option("--out", help="Where the pack is written.")],
    seed: SeedOption = 0,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder of contrast texts, benign texts and canaries; the project's own."
        ),
    ] = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="Logistic probes in place of directions.")
    ] = False,
    rollouts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Traits to roll out, JSON lines, in place of given answers; 'example': the project's own.",
        ),
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(help="Keeps rollouts and ratings, to continue from; OUT.work when left out."),
    ] = None,
    pairs: Annotated[
        int | None, typer.Option(min=1, help="Use the first so many instruction pairs of a trait.")
    ] = None,
    questions: Annotated[
        int | None, typer.Option(min=2, help="Use the first so many questions of each split.")
    ] = None,
    times: Annotated[int, typer.Option(help="Rollouts per question, pair and side.")] = 10,
    tokens: Annotated[int, typer.Option(help="Longest answer of a rollout.")] = 128,
    temperature: Annotated[float, typer.Option(help="Of the sampling of rollouts.")] = 1.0,
    batch: Annotated[
        int, typer.Option(help="Rollouts drawn at once; decides the answers too.")
    ] = 16,
    threshold: Annotated[
        float, typer.Option(help="Rating (0 to 1) from which an answer shows the trait.")
    ] = 0.5,
    coherence: Annotated[float, typer.Option(help="Least coherence (0 to 1) that is kept.")] = 0.5,
    least_questions: Annotated[
        int, typer.Option(help="Questions of each split that must keep both sides; at least 4.")
    ] = 5,
    judge_url: Annotated[
        str | None,
        typer.Option(help="OpenAI-compatible endpoint that rates rollouts: http://host:8000/v1."),
    ] = None,
    judge_model: Annotated[str | None, typer.Option(help="Model to ask there.")] = None,
    judge_key_file: Annotated[
        Path | None, typer.Option(help="File with the endpoint's key; else MONITOR_JUDGE_KEY.")
    ] = None,
    judge_pack: Annotated[
        Path | None,
        typer.Option(help="Pack whose features rate rollouts; the one shipped for the model."),
    ] = None,
    unfiltered: Annotated[
        bool, typer.Option("--unfiltered", help="Keep every rollout, unjudged.")
    ] = False,
    device: Annotated[
        str, typer.Option(help="Of rollouts: cpu (float32), cuda or auto (bfloat16).")
    ] = "cpu",
    as_json: JsonOption = False,
    yes: YesOption = False,
) -> None:
    """Build persona directions by contrast, with calibration, canaries and a report.

    From given answers (--data), or, with --rollouts, from what the model itself answers under
    opposing instructions, filtered by a judge. A run that was stopped goes on where it was.
    """
    from monitor.research.contrast.build import build_contrast_pack
    from monitor.research.contrast.directions import Kind

    ask(replaced_pack(folder), "Replace it?", yes=yes)
    kind: Kind = "probe" if probe else "direction"
    if rollouts is None:
        _refuse_rollout_options(context)
        with progress() as report:
            made = build_contrast_pack(model, folder, seed, data, report, kind=kind)
        _print(made, folder, as_json)
        return

    from monitor.research.rollouts.build import build_rollout_pack
    from monitor.research.rollouts.draw import RolloutSettings
    from monitor.research.rollouts.traits import EXAMPLE as EXAMPLE_TRAITS
    from monitor.research.rollouts.traits import load_traits

    traits = load_traits(EXAMPLE_TRAITS if rollouts == EXAMPLE else rollouts)
    work = work or folder.with_name(f"{folder.name}.work")
    with progress() as report:
        made = build_rollout_pack(
            model,
            folder,
            [trait.first(pairs, questions) for trait in traits],
            RolloutSettings(
                rollouts=times,
                max_new_tokens=tokens,
                temperature=temperature,
                seed=seed,
                batch=batch,
                threshold=threshold,
                least_coherence=coherence,
                least_questions=least_questions,
            ),
            None
            if unfiltered
            else _endpoint(judge_url, judge_model, judge_key_file, work)
            or _judging_pack(model, judge_pack),
            work,
            data,
            report,
            kind=kind,
            device=device,
        )
    _print(made, folder, as_json)


def _refuse_rollout_options(context: typer.Context) -> None:
    """An option that nothing reads is a mistake: whoever gives a judge expects to be judged."""
    given = [
        param.opts[0]
        for param in context.command.params
        if param.name is not None
        and param.name not in BOTH_WAYS
        and (source := context.get_parameter_source(param.name)) is not None
        and source.name != "DEFAULT"
    ]
    if given:
        raise BadInput(
            f"without --rollouts the pack is built from given answers, and {', '.join(given)} "
            "would do nothing",
            hint="add --rollouts FILE (or 'example'), or leave them out",
        )


def _endpoint(
    url: str | None, model: str | None, key_file: Path | None, work: Path
) -> Judges | None:
    from monitor.research.answers.endpoint import EndpointJudge
    from monitor.settings import judge_key

    if url is None:
        return None
    if model is None:
        raise ConfigurationError("--judge-url needs --judge-model", hint="name the model to ask")
    key = judge_key(key_file)

    def judge(trait: Trait) -> EndpointJudge:
        return EndpointJudge(
            url=url,
            model=model,
            trait=trait.name,
            description=trait.description,
            key=key,
            cache=work / "judge-cache.jsonl",
        )

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
