"""Files of records without Kafka and without Postgres: scored by the production path, or read as prompts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from monitor.errors import BadInput
from monitor.ingest.files import read_file
from monitor.ingest.joining import Joins
from monitor.instrument import Instrument
from monitor.outcomes import letter_of, nothing_to_read
from monitor.score.scorer import Scorer
from monitor.settings import IngestSettings, Settings
from monitor.unanswered import Unanswered
from monitor.values.prompts import SKIP_MENDS, Chunk, DeadLetter, DeadReason, Parsed, Prompt, Skip
from monitor.values.scores import Replayed, Unreplayable

Row = dict[str, Any]


def score_file(path: Path, instrument: Instrument, settings: Settings) -> Iterator[Row]:
    """One row per prompt of the file, in its order; unreadable records are rows with a reason.

    Rows hold id, line, token counts, every feature's score and reading, and the lineage's pack and
    model hashes. Reads and replays ``ingest.first_chunk_records`` records at a time, so memory stays flat.
    """
    scorer = Scorer(instrument.pack)
    unanswered = Unanswered(settings.replay, instrument.pack.features)
    lineage = instrument.engine.lineage(instrument.pack.pack_id)
    origin: Row = {
        "pack_id": lineage.pack_id,
        "model_hash": lineage.model_hash,
        "dtype": lineage.dtype,
        "attention": lineage.attention,
        "engine": lineage.engine,
    }
    for outcomes in _outcomes(path, settings.ingest):
        yield from _scored(outcomes, instrument, unanswered, scorer, origin)


def _outcomes(path: Path, settings: IngestSettings) -> Iterator[Sequence[Parsed]]:
    """What the file's records come to, ``first_chunk_records`` of them at a time; then what was left over."""
    joins = Joins(settings, in_order=True)
    records = read_file(path, max_record_bytes=settings.max_record_bytes)
    while chunk := tuple(islice(records, settings.first_chunk_records)):
        yield joins.read(Chunk(records=chunk, spans=()), now=datetime.now(UTC)).outcomes
    yield joins.end()


def read_prompts(path: Path, settings: IngestSettings) -> tuple[list[Prompt], int]:
    """The prompts of a file of records in any supported format, and how many records were skipped.

    Skipped as in production: sampled out, redacted, no prompt. Raises `BadInput` for a record that
    cannot be read, naming its line, and for a file without prompts.
    """
    prompts, skipped = [], 0
    for outcomes in _outcomes(path, settings):
        for outcome in outcomes:
            if isinstance(outcome, DeadLetter):
                raise BadInput(
                    f"{path}:{outcome.key.offset + 1}: {outcome.reason.value} {outcome.detail}",
                    hint="mend the record or take it out; formats: docs/records.md",
                )
            if isinstance(outcome, Skip):
                skipped += 1
            else:
                prompts.append(outcome)
    if not prompts:
        raise BadInput(f"{path} holds no prompts ({skipped} records were skipped)")
    return prompts, skipped


def _scored(
    outcomes: Sequence[Parsed],
    instrument: Instrument,
    unanswered: Unanswered,
    scorer: Scorer,
    origin: Row,
) -> Iterator[Row]:
    wanted = unanswered.wanted([one for one in outcomes if isinstance(one, Prompt)])
    unread = {skip.key: skip for skip in wanted.skipped}
    engine = instrument.engine
    replayed = iter(engine.run(engine.prepare(wanted.prompts, wanted.own_answers)))
    for outcome in outcomes:
        refused = unread.get(outcome.key, outcome)
        if isinstance(refused, DeadLetter | Skip):
            yield _refused(refused)
            continue
        result = unanswered.read(next(replayed))
        if isinstance(result, Unreplayable):
            empty = result.reason is DeadReason.NO_TOKENS
            yield _refused(nothing_to_read(result) if empty else letter_of(result))
        else:
            yield _row(result, instrument, scorer) | origin


def _refused(outcome: DeadLetter | Skip) -> Row:
    return {
        "line": outcome.key.offset + 1,
        "index": outcome.key.index,
        "outcome": "skipped" if isinstance(outcome, Skip) else "dead_letter",
        "reason": outcome.reason.value,
        "detail": SKIP_MENDS.get(outcome.reason, "")
        if isinstance(outcome, Skip)
        else outcome.detail,
    }


def _row(replayed: Replayed, instrument: Instrument, scorer: Scorer) -> Row:
    prompt = replayed.prompt
    names = [feature.name for feature in instrument.pack.features]
    scores = scorer.score(replayed.readings[None, :], replayed.pooled_tokens[None, :])[0]
    return {
        "line": prompt.key.offset + 1,
        "index": prompt.key.index,
        "outcome": "scored",
        "id": prompt.prompt_id,
        "prompt_tokens": replayed.prompt_tokens,
        "reasoning_tokens": replayed.reasoning_tokens,
        "response_tokens": replayed.response_tokens,
        "rendering": replayed.rendering,
        "cut": replayed.cut,
        "generated": replayed.generated,
        "scores": _by_name(names, scores),
        "readings": _by_name(names, replayed.readings),
    }


def _by_name(names: Sequence[str], values: np.ndarray[Any, Any]) -> dict[str, float | None]:
    return {
        name: None if math.isnan(value) else round(float(value), 6)
        for name, value in zip(names, values, strict=True)
    }
