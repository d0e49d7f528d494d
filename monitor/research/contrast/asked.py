"""Read-outs of the prompt side: does what was asked for, read where the answer begins, foretell a persona?

A trait's instructions to show it are held against those not to, under the same questions (persona
vectors, arXiv 2507.21509), and against questions without any instruction. Read are the last token of the
prompt, where the model has decided how to answer, and the mean over the whole prompt. One pair of instructions
and the held-out questions are kept for the figures.

Legend: n = prompts, q = questions, s = candidate sites, d = model width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from monitor.replay.model import LoadedModel
from monitor.replay.residuals import ResidualReader, not_finite
from monitor.research.contrast.directions import (
    LEAST_TRAINING,
    Chosen,
    Side,
    components,
    folded,
    separations,
)
from monitor.research.contrast.learned import Group, chosen_from, labelled
from monitor.research.contrast.selection import families, select
from monitor.research.packs.calibrate import UNCALIBRATED
from monitor.research.packs.figures import RANDOM, quantiles, rounded
from monitor.research.progress import Progress
from monitor.research.reading import Reader
from monitor.research.statistics import auc, bootstrap, random_direction_aucs
from monitor.research.texts import exchange
from monitor.research.traits import Trait, instructed, takes_system
from monitor.score.pack import Pack
from monitor.score.scorer import Scorer
from monitor.values.arrays import Floats
from monitor.values.features import WATCH_ONLY, Feature, Pooling, Region
from monitor.values.prompts import Message, Prompt

READ: Final[Mapping[str, tuple[Region, Pooling]]] = {
    "": ("last_prompt_token", "last"),
    ".whole": ("prompt", "mean"),
}
"""By the end of the feature's name."""
PROMPT_SIDE_TAG: Final = "prompt-side"
LEAST_PAIRS: Final = 2
"""Pairs of instructions: one is held out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Prompts that instruct a trait and their counterparts, row by row."""

    positive: tuple[Prompt, ...]
    negative: tuple[Prompt, ...]
    kinds: tuple[str, ...]
    questions: tuple[str, ...]


def asked(trait: Trait, *, held_out: bool, system: bool) -> Asked:
    """The last pair over the held-out questions, or all other pairs over the training ones."""
    pairs = trait.instructions[-1:] if held_out else trait.instructions[:-1]
    questions = trait.held_out if held_out else trait.train
    rows = [(number, pair, question) for number, pair in enumerate(pairs) for question in questions]
    return Asked(
        positive=tuple(instructed(q, pair.positive, system=system) for _, pair, q in rows),
        negative=tuple(instructed(q, pair.negative, system=system) for _, pair, q in rows),
        kinds=tuple(f"instructions {number}" for number, _, _ in rows),
        questions=tuple(question for _, _, question in rows),
    )


def usable(trait: Trait) -> bool:
    """Whether the trait has instructions to learn from and a pair to hold out."""
    return len(trait.instructions) >= LEAST_PAIRS and len(trait.train) >= LEAST_TRAINING


def held_out_prompts(
    chosen: Sequence[Chosen], traits: Sequence[Trait], loaded: LoadedModel
) -> dict[str, Asked]:
    """By the name of the feature, what its figures are made on."""
    system = takes_system(loaded) if chosen else True
    by_name = _by_name(traits)
    return {
        one.name: asked(by_name[one.name], held_out=True, system=system)
        for one in chosen
        if one.name in by_name
    }


def feature_name(trait: Trait, end: str = "") -> str:
    return f"{trait.name}_prompt{end}"


def _by_name(traits: Sequence[Trait]) -> dict[str, Trait]:
    return {feature_name(trait, end): trait for trait in traits for end in READ}


def choose_asked(
    reader: ResidualReader,
    traits: Sequence[Trait],
    neutral: Mapping[str, Sequence[Prompt]],
    sites: Sequence[int],
    seed: int,
    progress: Progress,
) -> tuple[Chosen, ...]:
    """Read-outs for each of ``traits``, all of them `usable`; ``neutral`` are prompts by kind."""
    return tuple(
        one
        for end in (READ if traits else ())
        for one in _choose(reader, traits, neutral, sites, end, seed, progress)
    )


def _choose(
    reader: ResidualReader,
    traits: Sequence[Trait],
    neutral: Mapping[str, Sequence[Prompt]],
    sites: Sequence[int],
    end: str,
    seed: int,
    progress: Progress,
) -> Iterator[Chosen]:
    system, (region, _) = takes_system(reader.loaded), READ[end]

    def read(prompts: Sequence[Prompt]) -> Floats:
        return _read(reader, prompts, sites, region)

    progress(f"reading the prompts of {len(traits)} traits")
    plain = {kind: read(prompts) for kind, prompts in neutral.items()}
    benign = np.concatenate(list(plain.values()))
    nuisance = [components(benign[:, index]) for index in range(len(sites))]
    scale = np.maximum(benign.std(axis=0, dtype=np.float64), 1e-6)
    others = [
        Group(x=x, kinds=(kind,) * len(x), questions=tuple(f"{kind} {i}" for i in range(len(x))))
        for kind, x in plain.items()
    ]
    for trait in traits:
        train, held = (asked(trait, held_out=h, system=system) for h in (False, True))
        high = Side(read(train.positive), read(held.positive))
        low = Side(read(train.negative), read(held.negative))
        own, twins = (
            Group(x=side.train, kinds=train.kinds, questions=train.questions)
            for side in (high, low)
        )
        rows = labelled([own], [twins], others)
        selected = select(rows, scale, nuisance, seed, families(len(sites)))
        name = feature_name(trait, end)
        progress(f"{name}: {selected.family}")
        separation = separations(high.train, low.train, nuisance, folded(len(high.train), seed))
        yield chosen_from(name, selected, (high, low), sites, separation)


def asked_features(chosen: Sequence[Chosen], traits: Sequence[Trait]) -> list[Feature]:
    """Not yet calibrated, and watch-only until a judge has seen them on traffic."""
    by_name = _by_name(traits)
    features = []
    for one in chosen:
        trait = by_name[one.name]
        region, pooling = READ[one.name.removeprefix(feature_name(trait))]
        features.append(
            Feature(
                name=one.name,
                kind="direction",
                site=one.site,
                region=region,
                pooling=pooling,
                weight=one.weight,
                bias=one.bias,
                parts=one.parts,
                pattern=one.pattern,
                calibration=UNCALIBRATED,
                tags=(PROMPT_SIDE_TAG, trait.name, WATCH_ONLY),
                description=f"prompts that ask for {trait.description}, read before the answer",
            )
        )
    return features


def asked_figures(
    pack: Pack,
    index: int,
    held: Asked,
    chosen: Chosen,
    reader: Reader,
    check: Floats,
    seed: int,
) -> dict[str, Any]:
    """Figures of one feature on held-out questions under the held-out pair of instructions.

    ``check`` [n] are its scores on benign exchanges that had no part in it.
    """
    scorer = Scorer(pack)
    positive, negative = (
        scorer.score(*reader.read("held-out prompts", prompts))[:, index]
        for prompts in (held.positive, held.negative)
    )
    generator = np.random.default_rng([seed, index])
    interval = bootstrap(lambda r: auc(positive[r], negative[r]), len(positive), generator)
    random = random_direction_aucs(
        (chosen.persona.train, chosen.good.train),
        (chosen.persona.held_out, chosen.good.held_out),
        generator,
    )
    return {
        "auc": rounded(auc(positive, negative)),
        "auc_interval_95": [rounded(end) for end in interval],
        "auc_against_benign": rounded(auc(positive, check)),
        "shift": rounded(positive.mean() - negative.mean()),
        "random_directions": {"count": len(random), **quantiles(random, RANDOM)},
    }


def without_answers(prompts: Sequence[Prompt]) -> tuple[Prompt, ...]:
    return tuple(replace(prompt, response=None) for prompt in prompts)


def plain_questions(traits: Sequence[Trait]) -> tuple[Prompt, ...]:
    """The training questions without any instruction."""
    texts = dict.fromkeys(question for trait in traits for question in trait.train)
    return tuple(exchange((Message(role="user", content=text),), None) for text in texts)


def _read(
    reader: ResidualReader, prompts: Sequence[Prompt], sites: Sequence[int], region: Region
) -> Floats:
    found = reader.mean_residuals(prompts, sites, region)
    if not np.isfinite(found).all():
        raise not_finite(f"{reader.loaded.model_id} gives residuals that are not finite on prompts")
    return found
