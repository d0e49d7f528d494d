"""From readings to what the worker stores: the same for every engine that reads.

Array legend: k = features of the pack, c = its covariates, behind them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from monitor.replay.prepared import Prepared
from monitor.replay.regions import CUT_RULE
from monitor.settings import ReplaySettings
from monitor.values.arrays import Counts, Floats
from monitor.values.fidelity import counted
from monitor.values.identity import ModelIdentity
from monitor.values.prompts import DeadReason
from monitor.values.scores import Replayed, Unreplayable
from monitor.values.surprise import Weighed
from monitor.values.twin import Pair, Unpaired


@dataclass(frozen=True, slots=True)
class Reading:
    """Of one replay: readings [k + c], NaN where a region is absent, and tokens pooled [k + c]."""

    readings: Floats
    pooled_tokens: Counts


def outcome_of(
    prepared: Prepared,
    index: int,
    reading: Reading | None,
    settings: ReplaySettings,
    *,
    features: int,
    weighed: Weighed | None = None,
    twin: Pair | Unpaired | None = None,
) -> Replayed | Unreplayable:
    """What becomes of prompt ``index``; without a ``reading`` it did not fit into memory."""
    prompt = prepared.prompts[index]
    if index in prepared.refused:
        return prepared.refused[index]
    tokens = prepared.tokens[index]
    if reading is None:
        return Unreplayable(
            prompt=prompt,
            reason=DeadReason.OUT_OF_MEMORY,
            detail=f"{len(tokens.ids)} tokens do not fit into memory even alone",
        )
    k = features
    present = reading.pooled_tokens > 0
    if not present[:k].any():
        return Unreplayable(
            prompt=prompt,
            reason=DeadReason.NO_TOKENS,
            detail="no token in any feature's region",
        )
    broken = present & ~np.isfinite(reading.readings)
    if broken.any():
        return Unreplayable(
            prompt=prompt,
            reason=DeadReason.NON_FINITE,
            detail=f"{int(broken.sum())} of {int(present.sum())} readings are not finite",
        )
    return Replayed(
        prompt=prompt,
        readings=reading.readings[:k],
        pooled_tokens=reading.pooled_tokens[:k],
        covariates=reading.readings[k:] if reading.readings.size > k else None,
        prompt_tokens=tokens.prompt_tokens,
        response_tokens=tokens.response_tokens,
        reasoning_tokens=tokens.reasoning_tokens,
        cut=tokens.cut,
        generated=index in prepared.generated,
        counts=counted(
            prompt,
            prompt_tokens=tokens.whole_prompt,
            # What is left out on purpose is no difference to tell of.
            answer_tokens=tokens.whole_answer
            if settings.replay_reasoning or prompt.reasoning is None
            else None,
        ),
        rendering=tokens.rendering,
        stand_ins=tokens.stand_ins,
        weighed=weighed,
        twin=twin,
    )


def token_rules(settings: ReplaySettings, limit: int, identity: ModelIdentity) -> dict[str, object]:
    """What the lineage says of the rules by which prompts become tokens and regions."""
    rules: dict[str, object] = {
        "cut": CUT_RULE,
        "mask_special_tokens": settings.mask_special_tokens,
        "mask_template": settings.mask_template,
        "max_tokens": limit,
        "mode": settings.mode,
        "reasoning": settings.replay_reasoning,
        "template": str(identity.template_hash)[:16],
    }
    if settings.template_options:
        rules["template_options"] = settings.template_options
    if settings.exclude_tools_when_tool_choice_none:
        rules["tools_when_none"] = "excluded"
    return rules


def written(rules: Mapping[str, object]) -> str:
    """As `Lineage.rules` holds them."""
    return json.dumps(rules, sort_keys=True, separators=(",", ":"))
