"""What canaries to the served model see on a real model: the table "What it sees" of docs/drift.md.

A server on this machine answers greedily, by transformers alone, in the place of the copy: the copy itself, other
precisions, fine-tunes of a few steps, a system prompt that nobody logged (`benchmarks.identity.speakers`). It is asked
over HTTP, with log-probabilities and without, and its answers are held against the copy as the worker does.

    python -m benchmarks.served --model FOLDER [--adapters FOLDER …] [--json FILE] [--questions 32] [--threads 1]

``--adapters``: folders that hold ``steps-N`` (the cache of benchmarks.identity) and ``reckless`` (one training of
benchmarks.persona.organisms); speakers without a folder are left out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks.identity.speakers import SPEAKERS, UNLOGGED, Speaker, speaking
from monitor.instrument import Instrument, build_instrument
from monitor.replay.answer import stock_attention
from monitor.server_canaries import ask_all, endpoint_of
from monitor.server_copy import ServerCopy
from monitor.settings import PackSettings, ReplaySettings, ServerCanarySettings, Settings
from monitor.values.server_canaries import AnswerOutcome, CanaryAnswer, QuestionSet
from tests.scenes.endpoint import serving
from tests.scenes.served import Served

PACK: Final = Path(__file__).parents[1] / "monitor/packs/smollm2-135m-instruct"
AT: Final = datetime(2026, 1, 1, tzinfo=UTC)
LEFT_OUT: Final = frozenset({"template", "steered"})
"""The server of these scenes renders by the model's own template, and greedily as the weights say."""


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--adapters", type=Path, nargs="*", default=[])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--questions", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = measure(options)
    print(json.dumps(found["servers"], indent=1))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    replay = ReplaySettings(
        model=options.model, device="cpu", dtype="float32", threads=options.threads
    )
    with _answering() as (server, url):
        settings = Settings().model_copy(
            update={
                "replay": replay,
                "pack": PackSettings(path=PACK),
                "server_canaries": ServerCanarySettings(
                    url=url,
                    model="served",
                    questions=options.questions,
                    timeout=timedelta(minutes=10),
                ),
            }
        )
        instrument = build_instrument(settings)
        copy = _copy(instrument, settings)
        chosen = copy.choose(AT)
        seen = {}
        for speaker in SPEAKERS.values():
            if speaker.name in LEFT_OUT or not _is_there(speaker, options.adapters):
                continue
            adapters = options.adapters
            with (
                speaking(speaker, options.model, adapters, instrument.pack, "cpu") as loaded,
                stock_attention(loaded) as whole,
            ):
                server.speak(loaded.tokenizer, whole)
                server.system = UNLOGGED if speaker.asked == "unlogged system prompt" else ""
                seen[speaker.name] = _asked_both_ways(server, copy, settings, chosen)
            print(speaker.name, seen[speaker.name], flush=True)
    return {
        "questions": len(chosen.questions),
        "tokens": settings.server_canaries.max_tokens,
        "threads": options.threads,
        "torch": torch.__version__,
        "servers": seen,
    }


@contextmanager
def _answering() -> Iterator[tuple[Served, str]]:
    server = Served()
    with serving(server.reply) as front:
        yield server, front.url


def _copy(instrument: Instrument, settings: Settings) -> ServerCopy:
    assert instrument.examiner is not None  # the settings ask for the whole model
    return ServerCopy(instrument.pack, instrument.engine, instrument.examiner, settings)


def _is_there(speaker: Speaker, adapters: Sequence[Path]) -> bool:
    return speaker.adapter is None or any((at / speaker.adapter).exists() for at in adapters)


def _asked_both_ways(
    server: Served, copy: ServerCopy, settings: Settings, chosen: QuestionSet
) -> dict[str, Any]:
    found = {}
    for name, told in (("with", True), ("without", False)):
        server.log_probs = told
        endpoint = endpoint_of(settings)
        try:
            most = settings.server_canaries.max_tokens
            made = ask_all(copy, endpoint, chosen.questions, max_tokens=most, clock=lambda: AT)
        finally:
            endpoint.close()
        found[name] = _beyond([row for row, _ in made.answers]) | {"problem": made.problem}
    return found


def _beyond(rows: Sequence[CanaryAnswer]) -> dict[str, Any]:
    """How many answers lie beyond their tolerance, and the deviations in tolerances."""
    compared = [row for row in rows if row.outcome is AnswerOutcome.COMPARED]
    deviations = sorted(row.deviation for row in compared if row.deviation is not None)
    return {
        "compared": len(compared),
        "beyond": sum(row.beyond for row in compared),
        "deviations": [round(one, 3) for one in deviations],
        "other_first": sum(bool(row.other_first) for row in compared),
    }


if __name__ == "__main__":
    main()
