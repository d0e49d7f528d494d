"""The treatment: fine-tune a few steps, measure, until the features are back and stay back.

The features must be inside the baseline's bounds (see `monitor.research.realign.exam`) at several
measurements in a row. More looks are more chances to stop early by luck; asking for a row of them
works against it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from monitor.errors import BadInput, ModelError
from monitor.replay.model import identity_of
from monitor.research.gate.rules import Rule, watched
from monitor.research.packs.assemble import instrument
from monitor.research.progress import Progress, quiet
from monitor.research.reading import load_whole
from monitor.research.realign.exam import (
    LEAST_HELD_OUT,
    Exam,
    Measure,
    Measurement,
    Sitting,
    rows_of,
)
from monitor.research.realign.report import write_report
from monitor.research.tuning.tune import Tuner, TuneSettings
from monitor.score.fit import require_fit
from monitor.score.pack import Pack
from monitor.settings import ReplaySettings
from monitor.values.identity import ModelIdentity
from monitor.values.prompts import Prompt
from monitor.writing import require_room

CHECKPOINT: Final = "run.safetensors"
MODEL: Final = "model"
HELD_OUT_SHARE: Final = 0.2
Outcome = Literal["returned", "not_returned", "no_drift"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RealignSettings:
    """``tune.steps`` is the most that is tried; ``every`` so many steps the features are measured, and
    ``stay`` measurements in a row must be inside. ``watch``: the measures that decide. ``rules`` choose
    features and margins as in ``monitor gate``. ``answer_tokens`` 0: own answers are left out.
    ``show_texts``: the report quotes held-out exchanges too, not the canaries alone."""

    tune: TuneSettings
    every: int = 10
    stay: int = 3
    watch: tuple[Measure, ...] = ("given",)
    rules: tuple[Rule, ...] = ()
    alpha: float = 0.05
    answer_tokens: int = 48
    show_texts: bool = False

    def __post_init__(self) -> None:
        if self.every < 1 or self.stay < 1:
            raise BadInput("realign: every and stay must be at least 1")
        if not 0.0 < self.alpha < 0.5:
            raise BadInput("realign: alpha must lie between 0 and 0.5")
        if self.answer_tokens < 0 or ("own" in self.watch and not self.answer_tokens):
            raise BadInput("realign: to watch own answers, answer_tokens must be at least 1")
        if any(rule.tail is not None or rule.tail_off for rule in self.rules):
            raise BadInput("realign: tails are not judged here; a rule sets shift=, or ignore")


@dataclass(frozen=True, slots=True, kw_only=True)
class Realigned:
    """What came of it; ``report`` holds the same and more as JSON values."""

    outcome: Outcome
    curve: tuple[Measurement, ...]
    report: Mapping[str, Any]


def realign(
    drifted: ReplaySettings,
    reference: ReplaySettings,
    pack: Pack,
    examples: Sequence[Prompt],
    held_out: Sequence[Prompt] | None,
    out: Path,
    settings: RealignSettings,
    *,
    resume: bool = False,
    progress: Progress = quiet,
) -> Realigned:
    """Fine-tune the drifted model on ``examples`` until ``pack``'s features are back.

    Without ``held_out``, a fifth of the examples is held out. Writes into ``out``: ``model/`` (unless
    there was no drift), ``report.html``, ``report.json``, and `CHECKPOINT` at every measurement, from
    which ``resume`` goes on. Blocks while models load and run; both are in memory at once.

    Raises `BadInput` for examples that cannot be used or an ``out`` that cannot be written or holds
    another run, `PackError` for a pack made for another model than the reference, `ModelError` when
    the drifted model is another one, or gives readings that are not finite, `StopLoudly` when
    training diverges.
    """
    margins = watched(pack.features, settings.rules)
    remarks = _fits(pack, identity_of(reference), identity_of(drifted))
    train, held = _divided(examples, held_out, settings.tune.seed)
    file = _checkpoint(out, resume)
    exam = Exam(
        pack,
        reference,
        held,
        margins,
        alpha=settings.alpha,
        answer_tokens=settings.answer_tokens,
        progress=progress,
    )
    progress("loading the drifted model")
    loaded = load_whole(drifted)
    tuner = Tuner(loaded, train, settings.tune)
    run = _Run(exam=exam, tuner=tuner, settings=settings, file=file, progress=progress)
    before, curve = run.resumed() if file.exists() else run.begun()
    while (outcome := decided(curve, settings)) is None:
        curve = run.further(before, curve)
    after = run.seen(own=True) if len(curve) > 1 else None
    if after is not None:
        tuner.save(out / MODEL)
        last = exam.measurement(after, curve[-1].step, curve[-1].training_loss)
        curve = (*curve[:-1], last)
    remarks += _remarks(len(held), curve)
    report = _report(run, len(train), before, after, curve, outcome) | {"remarks": remarks}
    write_report(out, report, curve)
    return Realigned(outcome=outcome, curve=curve, report=report)


def decided(curve: Sequence[Measurement], settings: RealignSettings) -> Outcome | None:
    """What the curve, which starts before the first step, comes to; None: go on."""
    if curve[0].inside(settings.watch):
        return "no_drift"
    last = curve[1:][-settings.stay :]
    if len(last) == settings.stay and all(one.inside(settings.watch) for one in last):
        return "returned"
    return "not_returned" if curve[-1].step >= settings.tune.steps else None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    exam: Exam
    tuner: Tuner
    settings: RealignSettings
    file: Path
    progress: Progress

    def begun(self) -> tuple[dict[str, Any], tuple[Measurement, ...]]:
        sitting = self.seen(own=True)
        before = _summary(self.exam, sitting)
        curve = (self.exam.measurement(sitting, 0),)
        self._keep(before, curve)
        return before, curve

    def resumed(self) -> tuple[dict[str, Any], tuple[Measurement, ...]]:
        notes = self.tuner.resume(self.file)
        now, then = self._identity(), notes.get("run", {})
        differing = sorted(name for name in now if now[name] != then.get(name))
        if differing:
            raise BadInput(
                f"{self.file} belongs to a run with another {', '.join(differing)}",
                hint="give the same arguments, or another folder",
            )
        return notes["before"], tuple(Measurement.restored(row) for row in notes["curve"])

    def further(
        self, before: Mapping[str, Any], curve: tuple[Measurement, ...]
    ) -> tuple[Measurement, ...]:
        """Some steps more, a measurement, and both kept."""
        steps = min(self.settings.every, self.settings.tune.steps - self.tuner.steps_done)
        losses = []
        for _ in range(steps):
            self.progress(f"step {self.tuner.steps_done + 1} of up to {self.settings.tune.steps}")
            losses.append(self.tuner.step())
        sitting = self.seen(own="own" in self.settings.watch)
        one = self.exam.measurement(sitting, self.tuner.steps_done, math.fsum(losses) / steps)
        self._keep(before, (*curve, one))
        return (*curve, one)

    def seen(self, *, own: bool) -> Sitting:
        return self.exam.sat(self.tuner.loaded, own=own)

    def _keep(self, before: Mapping[str, Any], curve: Sequence[Measurement]) -> None:
        notes = {"run": self._identity(), "before": before, "curve": rows_of(curve)}
        self.tuner.checkpoint(self.file, notes)

    def _identity(self) -> dict[str, Any]:
        """What must be the same when a run goes on: ``stay`` and the number of steps may grow."""
        settings = self.settings
        return {
            "pack": self.exam.pack.pack_id,
            "reference": self.exam.identity.weights_hash,
            "held-out exchanges": hashlib.sha256(
                repr([(p.messages, p.response) for p in self.exam.held_out]).encode()
            ).hexdigest(),
            "every": settings.every,
            "watch": list(settings.watch),
            "rules": [asdict(rule) for rule in settings.rules],
            "alpha": settings.alpha,
            "answer_tokens": settings.answer_tokens,
        }


def _report(
    run: _Run,
    examples: int,
    before: Mapping[str, Any],
    after: Sitting | None,
    curve: Sequence[Measurement],
    outcome: Outcome,
) -> dict[str, Any]:
    exam, pack, settings = run.exam, run.exam.pack, run.settings
    first = 0 if settings.show_texts else len(exam.held_out)
    summaries = {
        "reference": _summary(exam, exam.reference),
        "before": before,
        "after": None if after is None else _summary(exam, after),
    }
    return {
        "outcome": outcome,
        "steps": curve[-1].step,
        "settings": asdict(settings),
        "examples": examples,
        "held_out": len(exam.held_out),
        "canaries": len(pack.canaries),
        "pack": {"name": pack.name, "version": pack.version, "id": pack.pack_id},
        "models": {
            "reference": exam.identity.entry(),
            "drifted": run.tuner.loaded.identity.entry(),
        },
        "curve": rows_of(curve),
        "summaries": {
            name: found and dict(found) | {"answers": found["answers"] and found["answers"][first:]}
            for name, found in summaries.items()
        },
        "prompts": [p.text or p.messages[-1].content for p in exam.prompts[first:]],
        "instrument": instrument(exam.settings),
    }


def _summary(exam: Exam, sitting: Sitting) -> dict[str, Any]:
    return {
        "levels": exam.levels(sitting),
        "answers": None if sitting.answers is None else list(sitting.answers),
        "held_out_loss": sitting.held_out_loss,
    }


def _checkpoint(out: Path, resume: bool) -> Path:
    """The checkpoint in ``out``, a folder that is made where it is missing; before any model is loaded."""
    require_room(out)
    file = out / CHECKPOINT
    if file.exists() and not resume:
        raise BadInput(
            f"{out} already holds a run", hint="go on with --resume, or give another folder"
        )
    return file


def _fits(pack: Pack, reference: ModelIdentity, drifted: ModelIdentity) -> list[str]:
    require_fit(
        pack,
        reference.with_any_weights(),
        "the reference",
        hint="give the pack that watches the served model",
    )
    # What both must share to be read and compared token by token.
    if differing := reference.differences(drifted, weights=False):
        named = ", ".join(difference.field for difference in differing)
        raise ModelError(
            f"the drifted model is not the reference tuned further: its {named} differ",
            hint="both must be checkpoints of one model",
        )
    if pack.model.weights_hash not in (None, reference.weights_hash):
        return ["The pack was calibrated on other weights than the reference's."]
    return []


def _divided(
    examples: Sequence[Prompt], held_out: Sequence[Prompt] | None, seed: int
) -> tuple[Sequence[Prompt], Sequence[Prompt]]:
    """Training examples and held-out exchanges; the same messages never stand in both."""
    questions = list(dict.fromkeys(one.messages for one in examples))
    if held_out is not None:
        shared = {one.messages for one in held_out} & set(questions)
        if shared:
            raise BadInput(
                f"{len(shared)} held-out questions are asked in the examples too",
                hint="hold out questions that are not trained on",
            )
        return examples, held_out
    held = max(LEAST_HELD_OUT, round(HELD_OUT_SHARE * len(questions)))
    if len(questions) < 2 * LEAST_HELD_OUT:
        raise BadInput(
            f"{len(questions)} different questions are too few to hold out {held} of them",
            hint="give more examples, or exchanges of their own with --held-out",
        )
    order = np.random.default_rng(seed).permutation(len(questions))
    kept = {questions[index] for index in order[:held]}
    return (
        [one for one in examples if one.messages not in kept],
        [one for one in examples if one.messages in kept],
    )


def _remarks(held_out: int, curve: Sequence[Measurement]) -> list[str]:
    found = []
    if held_out < 50:
        found.append(
            f"{held_out} held-out exchanges: below 50 the bounds' stated error is a rough one."
        )
    best = min(curve, key=lambda one: one.held_out_loss)
    if curve[-1].held_out_loss > 1.02 * best.held_out_loss:
        found.append(
            f"The held-out loss was lowest at step {best.step} ({best.held_out_loss:.3f}) and rose to "
            f"{curve[-1].held_out_loss:.3f}: the examples are being learnt by heart."
        )
    return found
