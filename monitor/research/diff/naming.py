"""What a feature is about, in the words of texts that may be quoted: those it reads highest on.

Legend: k = features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from monitor.research.reading import Reader
from monitor.research.texts import Texts, answer_prompts
from monitor.values.features import Feature
from monitor.values.prompts import Prompt

QUOTED: Final = 3
EXCERPT: Final = 60
"""Characters of one excerpt: a description is read in a table and on a dashboard."""
SAID: Final = "reads highest, of the project's own texts, on "


def quotable(own: Texts) -> list[Prompt]:
    """Benign exchanges and every answer, good or a persona's, to the contrast questions of ``own``."""
    contrast = (*own.train, *own.held_out)
    voices = (None, *own.personas)
    return [*own.fit, *(one for voice in voices for one in answer_prompts(contrast, voice))]


def top_excerpts(reader: Reader, prompts: Sequence[Prompt]) -> Mapping[str, tuple[str, ...]]:
    """By name of each feature [k] of ``reader``: different excerpts of the up to `QUOTED` texts that it
    reads highest on.

    Fewer where the rest read no higher than the lowest: a latent that sleeps through all has none.
    Blocks while they are read.
    """
    read, _ = reader.read("texts that features are described by", prompts, absent=True)
    found: dict[str, tuple[str, ...]] = {}
    for feature, readings in zip(reader.features, read.T, strict=True):
        least = np.nanmin(readings, initial=np.inf)
        order = [i for i in np.argsort(-readings, kind="stable") if readings[i] > least]
        excerpts = dict.fromkeys(_excerpt(prompts[i], feature) for i in order)
        found[feature.name] = tuple(excerpts)[:QUOTED]
    return found


def described(feature: Feature, excerpts: Sequence[str]) -> Feature:
    """``feature`` with the ``excerpts`` behind its description, in place of earlier ones; its name stays."""
    if not excerpts:
        return feature
    before = feature.description.partition(SAID)[0].removesuffix("; ")
    said = SAID + ", ".join(f"“{excerpt}”" for excerpt in excerpts)
    return replace(feature, description=f"{before}; {said}" if before else said)


def _excerpt(prompt: Prompt, feature: Feature) -> str:
    """The beginning of what is read: of the answer, or of the question where only that is read."""
    asked = feature.region in ("prompt", "last_prompt_token")
    text = prompt.messages[-1].content if asked else prompt.response or ""
    text = " ".join(text.split())
    return text if len(text) <= EXCERPT else text[: EXCERPT - 1].rstrip() + "…"
