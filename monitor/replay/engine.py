"""The hot path: prompts in, readings out.

``prepare`` tokenises and plans, and may run in another thread while ``run`` holds the model.
Identical replays of a chunk are run once, prefixes that several share are run once and kept for later chunks, and what is
left stands packed in rows without padding. The features' activations are taken inside the forward
pass; the residual stream never leaves the device.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import torch

from monitor.metrics import METRICS
from monitor.replay.alternatives import Alternative, compared
from monitor.replay.answer import answered
from monitor.replay.forward import Forward, RowReader
from monitor.replay.model import LoadedModel, batch_tokens, positions_limit
from monitor.replay.outcome import Reading, outcome_of, token_rules, written
from monitor.replay.plan import Plan, plan
from monitor.replay.pooling import FeatureBank
from monitor.replay.prefixes import Kept, PrefixCache
from monitor.replay.prepared import Prepared, Statistics, distinct
from monitor.replay.regions import Tokens, begun
from monitor.replay.surprise import unweighable
from monitor.replay.tokens import tokeniser
from monitor.replay.twin import paired, twins
from monitor.settings import ReplaySettings
from monitor.values.features import Covariate, Feature
from monitor.values.likelihood import DrawnBy
from monitor.values.prompts import Prompt
from monitor.values.scores import Lineage, Replayed, Unreplayable
from monitor.values.surprise import NotWeighed, Weighed
from monitor.values.twin import NotPaired, Pair, TwinAsked, Unpaired

ENGINE = "2"
"""Version of the numerics: raised whenever the same prompt may read differently than before."""


class ReplayEngine:
    """Reads a pack's features off a loaded model. Threads that tokenise, or run the model, take turns."""

    def __init__(
        self,
        loaded: LoadedModel,
        features: Sequence[Feature],
        settings: ReplaySettings,
        covariates: Sequence[Covariate] = (),
        alternatives: Sequence[Alternative] = (),
    ) -> None:
        """``alternatives`` weigh what the copy weighs. Raises `PackError` when features or covariates do not fit
        the model's width."""
        self.loaded = loaded
        self.settings = settings
        read = (*features, *(one.as_feature() for one in covariates))
        self._alternatives = alternatives
        self._features = len(features)
        self._bank = FeatureBank(read, loaded.config.hidden_size, loaded.device, loaded.place)
        self._limit = positions_limit(settings, loaded.config)
        self._batch_tokens = batch_tokens(settings, loaded.device)
        self._tokeniser = tokeniser(loaded, settings)
        self._statistics = Statistics()
        self._prefixes = PrefixCache(settings.prefix_cache_mb << 20, self.blocks)
        self.turn = threading.Lock()
        """Held by whoever runs the model, in here or beside."""
        self._tokenising = threading.Lock()

    @property
    def statistics(self) -> Statistics:
        return self._statistics

    @property
    def blocks(self) -> torch.nn.ModuleList:
        """Those that a replay runs; a copy that answers has more."""
        return self.loaded.blocks[: max(self._bank.sites) + 1]

    def lineage(self, pack_id: str) -> Lineage:
        """Everything beside the prompt that the readings depend on."""
        settings = self.settings
        rules = token_rules(settings, self._limit, self.loaded.identity) | {
            "batch_tokens": self._batch_tokens,
            "shared_from": self._least_shared(),
        }
        rules |= self.loaded.rules
        if settings.answers:
            rules["generate_tokens"] = settings.generate_tokens
        if settings.answer_share:
            rules["answer_share"] = settings.answer_share
        return Lineage(
            pack_id=pack_id,
            model_id=self.loaded.model_id,
            model_hash=self.loaded.model_hash,
            dtype=str(self.loaded.dtype).removeprefix("torch."),
            attention=self.loaded.attention,
            device=" and ".join(dict.fromkeys(map(_called, self.loaded.devices))),
            engine=ENGINE,
            rules=written(rules),
        )

    def replay(self, prompts: Sequence[Prompt]) -> list[Replayed | Unreplayable]:
        """Readings of each prompt, in order. Blocks while the model runs."""
        return self.run(self.prepare(prompts))

    def prepare(
        self,
        prompts: Sequence[Prompt],
        own_answers: Collection[int] = (),
        weighed: Mapping[int, DrawnBy] = MappingProxyType({}),
        twins: Mapping[int, TwinAsked] = MappingProxyType({}),
    ) -> Prepared:
        """Tokenise and plan; does not touch the model.

        ``own_answers`` are indices of prompts without an answer: `run` lets the copy answer them first.
        ``weighed`` are those whose logged answers `run` holds against the whole copy, each with
        what is known of how it was drawn, ``twins`` those that it answers too.
        """
        refused: dict[int, Unreplayable] = {}
        tokens: dict[int, Tokens] = {}
        with self._tokenising:
            outcomes = self._tokeniser.tokenise(prompts)
        for index, outcome in enumerate(outcomes):
            if isinstance(outcome, Unreplayable):
                refused[index] = outcome
            else:
                tokens[index] = outcome
        planned = self._planned(tuple(prompts), refused, tokens)
        return replace(
            planned,
            own_answers=frozenset(own_answers) & tokens.keys(),
            weighed={index: law for index, law in weighed.items() if index in tokens},
            twins={index: asked for index, asked in twins.items() if index in tokens},
        )

    def run(self, prepared: Prepared) -> list[Replayed | Unreplayable]:
        """Run what was prepared: a `Replayed` or `Unreplayable` for each prompt, in order.

        Raises `ConfigurationError` when answers are wanted of a model that was not loaded in full.
        """
        with self.turn:
            return self._run(prepared)

    def _run(self, prepared: Prepared) -> list[Replayed | Unreplayable]:
        if prepared.own_answers:
            prepared = self._with_answers(prepared)
        if prepared.twins:
            prepared = self._with_twins(prepared)
        activations, failed = self._activations(prepared.plan, prepared.replays)
        for replay in failed:
            # Alone and without kept prefixes it may still fit.
            alone = plan(
                [prepared.replays[replay].ids],
                batch_tokens=self._batch_tokens,
                min_shared_tokens=None,
            )
            again, still_failed = self._activations(alone, [prepared.replays[replay]])
            if not still_failed:
                activations[replay] = again[0]
        readings = self._pooled(prepared.replays, activations)
        weighed, pairs = self._weighed(prepared), self._pairs(prepared, activations, readings)
        self._count(prepared)
        return [
            outcome_of(
                prepared,
                index,
                readings.get(prepared.replay_of.get(index, -1)),
                self.settings,
                features=self._features,
                weighed=weighed.get(index),
                twin=pairs.get(index),
            )
            for index in range(len(prepared.prompts))
        ]

    def _weighed(self, prepared: Prepared) -> dict[int, Weighed]:
        found: dict[int, Weighed | None] = {
            index: unweighable(prepared.tokens[index]) for index in prepared.weighed
        }
        left = [index for index, reason in found.items() if reason is None]
        if left:
            rows = [prepared.tokens[index] for index in left]
            laws = [prepared.weighed[index] for index in left]
            weighed = compared(self.loaded, rows, laws, self._alternatives)
            found |= dict(zip(left, weighed, strict=True))
        return {index: one for index, one in found.items() if one is not None}

    def _planned(
        self,
        prompts: tuple[Prompt, ...],
        refused: dict[int, Unreplayable],
        tokens: dict[int, Tokens],
        generated: frozenset[int] = frozenset(),
    ) -> Prepared:
        replays, replay_of = distinct(tokens)
        return Prepared(
            prompts=prompts,
            refused=refused,
            tokens=tokens,
            replays=replays,
            replay_of=replay_of,
            plan=plan(
                [one.ids for one in replays],
                batch_tokens=self._batch_tokens,
                min_shared_tokens=self._least_shared(),
                way=self.loaded.packing.way,
                padding=self.loaded.packing.padding,
                known=self._prefixes.known,
            ),
            generated=generated,
        )

    def _least_shared(self) -> int | None:
        share = self.settings.share_prefixes and self.loaded.packed
        return self.settings.min_shared_tokens if share else None

    def _with_answers(self, prepared: Prepared) -> Prepared:
        """The model's own greedy answer behind the prompts that get one; equal prompts get it once."""
        longest = min(self.settings.generate_tokens, self._limit // 2)
        given: dict[int, tuple[int, ...]] = {}
        tokens = dict(prepared.tokens)
        for index in sorted(prepared.own_answers):
            replay = prepared.replay_of[index]
            short = self._tokeniser.shortened(tokens[index], self._limit - longest)
            if replay not in given:
                given[replay] = answered(self.loaded, short.ids, longest)
            tokens[index] = self._tokeniser.with_answer(short, given[replay])
        planned = self._planned(prepared.prompts, prepared.refused, tokens, prepared.own_answers)
        return replace(planned, weighed=prepared.weighed, twins=prepared.twins)

    def _with_twins(self, prepared: Prepared) -> Prepared:
        """The copy's own answers as more replays of one plan: what they share with the served is run once."""
        found = twins(
            self.loaded, self._tokeniser, prepared.prompts, prepared.tokens, prepared.twins
        )
        tokens, twin_of = dict(prepared.tokens), dict[int, int | Unpaired]()
        for place, (index, twin) in enumerate(found.items(), start=len(prepared.prompts)):
            twin_of[index] = twin if isinstance(twin, NotWeighed | NotPaired) else place
            if isinstance(twin, Tokens):
                tokens[place] = twin
        planned = self._planned(prepared.prompts, prepared.refused, tokens, prepared.generated)
        return replace(planned, weighed=prepared.weighed, twins=prepared.twins, twin_of=twin_of)

    def _pairs(
        self,
        prepared: Prepared,
        activations: dict[int, torch.Tensor],
        readings: dict[int, Reading],
    ) -> dict[int, Pair | Unpaired]:
        """Both answers' readings of every prompt that has a twin, over as many tokens."""
        found: dict[int, Pair | Unpaired] = {}
        for index, twin in prepared.twin_of.items():
            if isinstance(twin, NotWeighed | NotPaired):
                found[index] = twin
                continue
            ours, theirs = prepared.replay_of[index], prepared.replay_of[twin]
            if ours not in activations or theirs not in readings:
                found[index] = NotWeighed.OUT_OF_MEMORY
                continue
            start = begun(prepared.tokens[index], prepared.twins[index].tokens)
            both = (
                self._pooled([start], {0: activations[ours][: len(start.ids)]})[0],
                readings[theirs],
            )
            found[index] = paired(
                np.stack([one.readings[: self._features] for one in both]),
                np.stack([one.pooled_tokens[: self._features] for one in both]),
            )
        return found

    def _activations(
        self, work: Plan, replays: Sequence[Tokens]
    ) -> tuple[dict[int, torch.Tensor], list[int]]:
        """Activations [tokens, k] of each replay, and the replays that did not fit into memory."""
        columns = len(self._bank.features)
        row: dict[torch.device, torch.Tensor] = {}
        found: dict[int, dict[torch.device, torch.Tensor]] = defaultdict(dict)

        def start_row(_members: tuple[int, ...], total: int) -> RowReader:
            nonlocal row
            row = into = {}

            def read(site: int, residual: torch.Tensor) -> None:
                device = residual.device
                if device not in into:
                    into[device] = torch.empty(total, columns, device=device)
                self._bank.project(site, residual, into[device])

            return read

        def finish_row(members: tuple[int, ...]) -> None:
            sizes = [len(work.segments[index].ids) for index in members]
            for device, whole in row.items():
                for index, part in zip(members, torch.split(whole, sizes), strict=True):
                    found[index][device] = part

        ready = self._prefixes.of_plan(work)
        sites, relieve = self._bank.sites, self._prefixes.relieve
        forward = Forward(self.loaded, work, sites, start_row, finish_row, relieve)
        forward.kept |= {index: dict(one.blocks) for index, one in ready.items()}
        with torch.inference_mode():
            forward.run()
            # Not sooner: a device that brings something back has waited for those behind it.
            parts = {index: self._bank.gathered(each) for index, each in found.items()}
            parts |= {index: one.activations for index, one in ready.items()}
            made = forward.kept.keys() & parts.keys() - ready.keys()
            self._prefixes.keep(work, {i: Kept(forward.kept[i], parts[i]) for i in made})
            whole = {
                replay: torch.cat([parts[index] for index in path])
                for replay, path in enumerate(work.paths)
                if all(index in parts for index in path)
            }
        before, spared = self._statistics, sum(len(one.activations) for one in ready.values())
        self._statistics = replace(
            before,
            tokens_run=before.tokens_run + forward.tokens,
            tokens_kept=before.tokens_kept + spared,
            passes=before.passes + forward.passes,
            splits=before.splits + forward.splits,
        )
        METRICS.tokens.labels(kind="run").inc(forward.tokens)
        METRICS.tokens.labels(kind="saved_kept").inc(spared)
        METRICS.batch_halvings.inc(forward.splits)
        return whole, [replay for replay in range(len(replays)) if replay not in whole]

    def _pooled(
        self, replays: Sequence[Tokens], activations: dict[int, torch.Tensor]
    ) -> dict[int, Reading]:
        order = sorted(activations)
        with torch.inference_mode():
            pairs = [self._bank.pool(replays[r], activations[r]) for r in order]
            values = self._bank.finished(reading for reading, _ in pairs)
        return {replay: Reading(values[row], pairs[row][1]) for row, replay in enumerate(order)}

    def _count(self, prepared: Prepared) -> None:
        asked = sum(len(prepared.replays[r].ids) for r in prepared.replay_of.values())
        distinct = sum(len(replay.ids) for replay in prepared.replays)
        before = self._statistics
        self._statistics = replace(
            before,
            prompts=before.prompts + len(prepared.prompts),
            tokens_duplicate=before.tokens_duplicate + asked - distinct,
            tokens_shared=before.tokens_shared + distinct - prepared.plan.tokens,
        )
        METRICS.tokens.labels(kind="saved_dedupe").inc(asked - distinct)
        METRICS.tokens.labels(kind="saved_prefix").inc(distinct - prepared.plan.tokens)


def _called(device: torch.device) -> str:
    """What kind of device it is, as the lineage says it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
