"""The worker's side: prompts become tokens and regions here, and readings there.

Tokenising, regions, cut rule and what becomes of a reading are those of our own engine; only the forward pass
and the pooling run in the server, with the same pooling code.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final

import httpx

from monitor.backends.vllm import wire
from monitor.calling import Answer, Caller
from monitor.errors import (
    BadInput,
    ConfigurationError,
    ModelError,
    OtherInstrument,
    PackError,
    ReplayUnavailable,
)
from monitor.metrics import METRICS
from monitor.replay.checkpoint import Checkpoint, found
from monitor.replay.engine import ENGINE
from monitor.replay.model import positions_limit
from monitor.replay.outcome import Reading, outcome_of, token_rules, written
from monitor.replay.passes import answer_tokens
from monitor.replay.plan import Plan
from monitor.replay.prepared import Prepared, distinct
from monitor.replay.regions import Tokens
from monitor.replay.surprise import end_tokens_of, unweighable
from monitor.replay.tokens import tokeniser_of
from monitor.score.pack import Pack
from monitor.settings import ReplaySettings, secret
from monitor.values.identity import ModelIdentity
from monitor.values.likelihood import DrawnBy
from monitor.values.prompts import Prompt
from monitor.values.scores import Lineage, Replayed, Unreplayable
from monitor.values.surprise import NotWeighed, Weighed
from monitor.values.twin import TwinAsked

MOST_TOKENS: Final = 262_144
"""Tokens of one call: more would be lost and read again when the server dies."""
_START: Final = "python -m monitor.backends.vllm.serve --model CUT --pack PACK"


class VllmReplay:
    """Reads a pack's features off a vLLM server. Threads take turns in `run`; ``prepare`` runs beside it."""

    def __init__(
        self,
        settings: ReplaySettings,
        pack: Pack,
        model: ModelIdentity,
        *,
        weighs: bool = False,
    ) -> None:
        """Asks the server what it is. Raises `ReplayUnavailable` when it does not answer, `ModelError`,
        `PackError` or `ConfigurationError` when it is another instrument than ``settings`` and ``pack`` want, or
        answers are to be weighed (``weighs``) and it cannot."""
        assert settings.url is not None
        self.settings = settings
        self._pack = pack
        self._model = model
        self._server = _Server(settings)
        self.about = self._server.about()
        checkpoint = found(settings)
        self._limit = positions_limit(settings, checkpoint.text)
        self._require(checkpoint)
        if weighs:
            self._require_weighing()
        self._ends = end_tokens_of(checkpoint)
        self._tokeniser = tokeniser_of(checkpoint.tokenizer, self._limit, settings)
        self._columns = len(pack.features) + len(pack.covariates)

    def close(self) -> None:
        self._server.close()

    def prepare(
        self,
        prompts: Sequence[Prompt],
        own_answers: Collection[int] = (),
        weighed: Mapping[int, DrawnBy] = MappingProxyType({}),
        twins: Mapping[int, TwinAsked] = MappingProxyType({}),
    ) -> Prepared:
        """Tokenise. ``weighed`` are indices of prompts whose logged answers `run` holds against the whole copy, each
        with what is known of how it was drawn. Raises `ConfigurationError` for what only our own copy can do."""
        if own_answers or twins:
            raise ConfigurationError(
                "the copy at replay.url gives no answers",
                hint="set replay.backend: torch, or switch off what needs it",
            )
        if weighed:
            self._require_weighing()
        refused: dict[int, Unreplayable] = {}
        tokens: dict[int, Tokens] = {}
        for index, outcome in enumerate(self._tokeniser.tokenise(prompts)):
            if isinstance(outcome, Unreplayable):
                refused[index] = outcome
            else:
                tokens[index] = outcome
        replays, replay_of = distinct(tokens)
        return Prepared(
            prompts=tuple(prompts),
            refused=refused,
            tokens=tokens,
            replays=replays,
            replay_of=replay_of,
            plan=_PLANNED_THERE,
            weighed={index: law for index, law in weighed.items() if index in tokens},
        )

    def run(self, prepared: Prepared) -> list[Replayed | Unreplayable]:
        """A `Replayed` or `Unreplayable` for each prompt, in order; a row is read once or not at all.

        Raises `ReplayUnavailable` when the server does not answer: nothing was kept of the prompts, run them
        again. Raises `OtherInstrument` when it answers as another instrument than at the start.
        """
        weighed = _not_weighable(prepared)
        laws: dict[int, list[int]] = {}
        for index in prepared.weighed:
            if index not in weighed:
                laws.setdefault(prepared.replay_of[index], []).append(index)
        readings: dict[int, Reading] = {}
        for part in _parts(prepared.replays):
            rows = [self._asked(prepared, replay, laws.get(replay, ())) for replay in part]
            for replay, answer in zip(
                part, self._server.read(rows, self.about, self._columns), strict=True
            ):
                readings[replay] = answer.reading
                weighed |= zip(laws.get(replay, ()), answer.weighed, strict=True)
        self._count(prepared)
        return [
            outcome_of(
                prepared,
                index,
                readings.get(prepared.replay_of.get(index, -1)),
                self.settings,
                features=len(self._pack.features),
                weighed=weighed.get(index),
            )
            for index in range(len(prepared.prompts))
        ]

    def _asked(self, prepared: Prepared, replay: int, weighed: Sequence[int]) -> wire.Asked:
        """The row ``replay``, with the laws of the prompts ``weighed`` whose answer stands in it."""
        return wire.Asked(
            tokens=prepared.replays[replay],
            laws=tuple(prepared.weighed[index] for index in weighed),
            ends=self._ends if weighed else (),
        )

    def lineage(self, pack_id: str) -> Lineage:
        """Everything beside the prompt that the readings depend on."""
        return Lineage(
            pack_id=pack_id,
            model_id=self._model.model_id,
            model_hash=self.about.model_hash,
            dtype=self.about.dtype,
            attention=self.about.engine.partition("-")[0],
            device=self.about.device,
            engine=f"{ENGINE}+{self.about.engine}",
            rules=written(token_rules(self.settings, self._limit, self._model)),
        )

    def _count(self, prepared: Prepared) -> None:
        distinct_tokens = sum(len(replay.ids) for replay in prepared.replays)
        asked = sum(len(prepared.replays[r].ids) for r in prepared.replay_of.values())
        METRICS.tokens.labels(kind="run").inc(distinct_tokens)
        METRICS.tokens.labels(kind="saved_dedupe").inc(asked - distinct_tokens)

    def _require(self, checkpoint: Checkpoint) -> None:
        about, where = self.about, self._server.where
        if checkpoint.gguf is not None:
            raise ConfigurationError(
                f"replay.model: {checkpoint.gguf.name} is a GGUF file, and backend vllm reads none",
                hint="give the folder of safetensors that it was made from, or set replay.backend: torch",
            )
        if about.version != wire.VERSION:
            raise ConfigurationError(
                f"the server at {where} speaks version {about.version}, the worker {wire.VERSION}",
                hint="install the same release of the monitor in both",
            )
        if about.pack_id != self._pack.pack_id:
            raise PackError(
                f"the server at {where} reads the pack {about.pack_id[:12]}, the worker scores with "
                f"{self._pack.pack_id[:12]}",
                hint=f"start it with the worker's pack: {_START}",
            )
        if self._model.weights_hash is not None and about.model_hash != self._model.weights_hash:
            raise ModelError(
                f"the server at {where} has other weights than {self.settings.model}",
                hint="cut the copy that it serves from this model: monitor model cut",
            )
        if self.settings.dtype not in ("auto", about.dtype):
            raise ConfigurationError(
                f"replay.dtype is {self.settings.dtype}, the server at {where} computes in {about.dtype}",
                hint=f"start it with --dtype {self.settings.dtype}, or leave replay.dtype at auto",
            )
        if self._limit > about.max_tokens:
            raise ConfigurationError(
                f"replay.max_tokens allows rows of {self._limit} tokens, the server at {where} reads "
                f"{about.max_tokens}",
                hint=f"start it with --max-model-len {self._limit + 1}, or set replay.max_tokens: "
                f"{about.max_tokens}",
            )

    def _require_weighing(self) -> None:
        if self.about.no_weighing:
            raise ConfigurationError(
                f"identity.share needs the whole model, and the server at {self._server.where} weighs no "
                f"answers: {self.about.no_weighing}",
                hint="start it with the whole model's folder, which runs every block over every prompt, or set "
                "identity.share: 0",
            )


_PLANNED_THERE: Final = Plan(segments=(), paths=(), batches=())
"""The engine plans its own batches."""


def _not_weighable(prepared: Prepared) -> dict[int, Weighed]:
    """Of the answers that are to be weighed those that nobody can weigh, with the reason."""
    found: dict[int, Weighed] = {}
    for index in prepared.weighed:
        row = prepared.tokens[index]
        if (reason := unweighable(row)) is not None:
            found[index] = reason
        elif not (answer_tokens(row) and row.prompt_tokens):
            found[index] = NotWeighed.NO_ANSWER
    return found


def _parts(replays: Sequence[Tokens]) -> list[list[int]]:
    """Indices of the rows of each call, in order."""
    parts: list[list[int]] = []
    room = 0
    for index, one in enumerate(replays):
        if not parts or len(parts[-1]) == wire.MOST_ROWS or len(one.ids) > room:
            parts.append([])
            room = MOST_TOKENS
        parts[-1].append(index)
        room -= len(one.ids)
    return parts


class _Server:
    """The server at ``replay.url``, asked one call at a time."""

    def __init__(self, settings: ReplaySettings) -> None:
        self._url = str(settings.url)
        self.where = httpx.URL(self._url).host
        self._timeout = settings.timeout.total_seconds()
        self._headers = {"content-type": "application/json"}
        if key := secret(None, settings.key_file, "replay.key"):
            self._headers["authorization"] = f"Bearer {key}"
        self._caller = Caller()

    def close(self) -> None:
        self._caller.close()

    def about(self) -> wire.About:
        return wire.about_of(self._answer("GET", wire.ABOUT))

    def read(
        self, rows: Sequence[wire.Asked], about: wire.About, columns: int
    ) -> list[wire.Answered]:
        """What ``rows`` read, and how their answers are found, in order."""
        body = json.dumps({"rows": [wire.row_of(row) for row in rows]}).encode()
        try:
            content = self._answer("POST", wire.READINGS, body)
        except ConfigurationError:
            # Of another instrument that is the reason.
            self._require_same(self.about(), about)
            raise
        try:
            now = wire.about_of(content.get("instrument"))
            found = [
                wire.answered_of(one, columns, len(row.laws))
                for row, one in zip(rows, content.get("rows", ()), strict=True)
            ]
        except (BadInput, TypeError, ValueError, AttributeError) as error:
            raise OtherInstrument(f"the server at {self.where}: {error}") from None
        self._require_same(now, about)
        return found

    def _require_same(self, now: wire.About, about: wire.About) -> None:
        # Where it merely grew longer or shorter, the rows that it took read the same.
        if replace(now, max_tokens=about.max_tokens) != about:
            raise OtherInstrument(
                f"the server at {self.where} is another instrument than when the worker began",
                hint="start the worker again: its scores would be stored under the wrong lineage",
            )

    def _answer(self, method: str, path: str, body: bytes = b"") -> dict[str, Any]:
        try:
            answer = self._caller.call(
                method,
                self._url + path,
                seconds=self._timeout,
                headers=self._headers,
                content=body,
                keep_bytes=wire.MOST_BYTES,
            )
        except httpx.HTTPError as error:
            said = str(error) or type(error).__name__
            raise ReplayUnavailable(
                f"the replay server at {self.where} does not answer: {said}",
                hint=f"is it running? {_START}",
            ) from None
        if answer.status != 200:
            self._refused(answer)
        try:
            return wire.parsed(answer.body)
        except BadInput:
            raise ConfigurationError(
                f"the server at {self.where} is none of ours",
                hint=f"replay.url must lead to {_START}",
            ) from None

    def _refused(self, answer: Answer) -> None:
        status = answer.status
        told = f"the replay server at {self.where} answers with HTTP {status}"
        if status in (408, 425, 429) or status >= 500:
            raise ReplayUnavailable(told, hint="its log says why")
        if status in (401, 403):
            raise ConfigurationError(
                told, hint="set replay.key_file to the key it was started with"
            )
        raise ConfigurationError(told, hint=f"replay.url must lead to {_START}")
