"""Steer a model by its pack's features, beside its own answer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from monitor.cli.arguments import (
    JsonOption,
    ModelOption,
    SeedOption,
    numbers,
    option,
    settled,
    spread,
)
from monitor.cli.show import progress, show
from monitor.errors import BadInput

if TYPE_CHECKING:
    from monitor.research.steering.outcome import Outcome
    from monitor.research.steering.steer import Turn
    from monitor.score.pack import Pack
    from monitor.settings import ReplaySettings
    from monitor.values.prompts import Prompt

steers = typer.Typer()


@dataclass(frozen=True, kw_only=True)
class Turning:
    feature: list[str] | None = option(
        None, "NAME=STRENGTH, in typical residual lengths; below 0 turns it down. Repeatable."
    )
    project_out: list[str] | None = option(None, "NAME of a feature to take out. Repeatable.")
    site: list[int] | None = option(
        None, "Block to steer behind, from 0; the feature's own if not. Repeatable."
    )
    dose: str = option("1", "Multiples of the strengths, side by side: -1,0.5,1.")
    pack: Path | None = option(None, "Folder of the pack; the shipped one for the model if not.")
    other_weights: bool = option(False, "The model is a fine-tune of the pack's.")


@dataclass(frozen=True, kw_only=True)
class Answering:
    """What is asked; fields that `Asking` has are called as there."""

    prompt: list[str] | None = option(None, "A question. Repeatable.")
    prompts: Path | None = option(None, "JSON lines with messages; responses are left out.")
    max_new_tokens: int = option(64, "Longest answer in tokens.", min=1)
    temperature: float = option(0.0, "0 is greedy.", min=0.0)
    seed: SeedOption = 0
    device: str = option("auto", "cpu, cuda, or auto.")


@steers.command("steer")
@spread
def steer(
    model: ModelOption, turning: Turning, answering: Answering, as_json: JsonOption = False
) -> None:
    """Answer with features turned up, down or out, beside the answer without.

    Each answer is read by the pack, and weighed, through the unsteered model.
    """
    turned, out, doses = _wanted(turning)
    asked = [*_questions(answering.prompt or []), *_file(answering.prompts)]
    if not asked:
        raise BadInput("nothing to answer: give --prompt TEXT or --prompts FILE.jsonl")
    from monitor.research.reading import Reader, load_whole
    from monitor.research.steering.outcome import Asking, outcomes
    from monitor.research.steering.steer import typical_lengths
    from monitor.settings import ReplaySettings

    settings = ReplaySettings(model=model, device=answering.device)
    found = _fitting(turning.pack, settings, turning.other_weights)
    series = _series(found, turned, out, turning.site or [None], doses)
    names = {*(name for name, _ in turned), *out}
    with progress() as report:
        report(f"loading {model}")
        loaded = load_whole(settings)
        reader = Reader(loaded, [f for f in found.features if f.name in names], ReplaySettings())
        lengths = typical_lengths(loaded, [turn.site for turns in series for turn in turns])
        seen = outcomes(
            loaded,
            series,
            asked,
            partial(reader.scores, "answers"),
            settled(Asking, answering),
            lengths,
            report,
        )
    show(_rows(asked, series, seen, [f.name for f in reader.features]), as_json)


def _wanted(turning: Turning) -> tuple[list[tuple[str, float]], list[str], Sequence[float]]:
    """Features with their strengths, features to project out, and doses."""
    turned = [_turned(text) for text in turning.feature or []]
    out = turning.project_out or []
    doses = numbers(turning.dose, float, "--dose")
    if not all(map(math.isfinite, doses)):
        raise BadInput(f"--dose {turning.dose!r} must hold finite numbers")
    if not turned and not out:
        raise BadInput("nothing to steer: give --feature NAME=STRENGTH or --project-out NAME")
    if not turned and doses != (1.0,):
        raise BadInput("--dose multiplies the strengths of --feature; nothing is dosed otherwise")
    names = [*(name for name, _ in turned), *out]
    if len(set(names)) < len(names):
        raise BadInput("give each feature once, with a strength or to be projected out")
    return turned, out, doses


def _turned(text: str) -> tuple[str, float]:
    name, equals, strength = text.rpartition("=")
    try:
        value = float(strength)
    except ValueError:
        value = math.nan
    if not (equals and name and math.isfinite(value)):
        raise BadInput(
            f"--feature {text!r} is not NAME=STRENGTH with a finite number",
            hint="for example --feature malicious=0.5",
        )
    return name, value


def _questions(texts: Sequence[str]) -> Iterator[Prompt]:
    from monitor.research.texts import exchange
    from monitor.values.prompts import Message

    for text in texts:
        if not text.strip():
            raise BadInput("--prompt is empty")
        yield exchange((Message(role="user", content=text),), None)


def _file(path: Path | None) -> Iterator[Prompt]:
    from monitor.research.texts import chat_prompt, rows

    if path is None:
        return
    empty = True
    for where, row in rows(path):
        yield chat_prompt(row, where, None)
        empty = False
    if empty:
        raise BadInput(f"{path} is empty", hint='one {"messages": […]} a line')


def _fitting(folder: Path | None, settings: ReplaySettings, other_weights: bool) -> Pack:
    from monitor.replay.model import identity_of
    from monitor.score.fit import pack_or_shipped, require_fit

    model = identity_of(settings)
    if other_weights:
        model = model.with_any_weights()
    pack = pack_or_shipped(folder, model, where=settings.model, hint="give --pack FOLDER")
    require_fit(
        pack,
        model,
        hint="use the pack made for this model; for a fine-tune of it, --other-weights",
    )
    return pack


def _series(
    pack: Pack,
    turned: Sequence[tuple[str, float]],
    out: Sequence[str],
    sites: Sequence[int | None],
    doses: Sequence[float],
) -> list[list[Turn]]:
    """What is turned for each answer, side by side; nothing for the first."""
    from monitor.research.steering.steer import feature_turn, named_feature

    return [[]] + [
        [
            feature_turn(named_feature(pack, name), strength * dose, site=site)
            for name, strength in turned
            for site in sites
        ]
        + [
            feature_turn(named_feature(pack, name), site=site, project_out=True)
            for name in out
            for site in sites
        ]
        for dose in doses
    ]


def _rows(
    asked: Sequence[Prompt],
    series: Sequence[Sequence[Turn]],
    outcomes: Sequence[Outcome],
    columns: Sequence[str],
) -> Iterator[dict[str, Any]]:
    """One row for each prompt and steering; nothing where there was nothing to measure."""
    for index, prompt in enumerate(asked):
        for turns, seen in zip(series, outcomes, strict=True):
            scores = zip(columns, seen.persona[index], strict=True)
            yield {
                "prompt": prompt.messages[-1].content,
                "steering": ", ".join(turn.label for turn in turns) or "none",
                "answer": seen.answers[index],
                **{name: _figure(score) for name, score in scores},
                "perplexity": _figure(seen.perplexity[index]),
                "distinct": _figure(seen.distinct[index]),
            }


def _figure(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
