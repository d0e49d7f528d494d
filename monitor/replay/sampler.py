"""The law that a served token was drawn from: the model's logits under the request's own parameters.

The order is vLLM's: biases, penalties, temperature, min_p, top_k, top_p. A seed is ignored: it fixes the draw, not
the law.

Legend: t = tokens of the answer, v = vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from monitor.values.prompts import Sampling

GREEDY_BELOW = 1e-5
"""A temperature below this takes the most likely token, as vLLM has it."""


def is_greedy(sampling: Sampling) -> bool:
    """Whether the parameters leave no chance: temperature 0, or only one token to choose from."""
    cold = sampling.temperature is not None and sampling.temperature < GREEDY_BELOW
    return cold or sampling.top_k == 1


def penalised(
    logits: torch.Tensor,
    before: tuple[Sequence[int], Sequence[int]],
    answer: torch.Tensor,
    sampling: Sampling,
) -> torch.Tensor:
    """``logits`` [t, v] after the request's biases and the penalties for what was said before each of them.

    ``before`` are the prompt's tokens and the answer's so far; ``answer`` are the tokens drawn from the
    logits, one each but for the last, before which the answer may have ended. Presence and frequency
    penalties count the answer alone, repetition the prompt as well.
    """
    presence = sampling.presence_penalty or 0.0
    frequency = sampling.frequency_penalty or 0.0
    repetition = sampling.repetition_penalty or 1.0
    if presence == frequency == 0.0 and repetition == 1.0 and not sampling.logit_bias:
        return logits
    changed = logits.clone()
    for token, bias in sampling.logit_bias:
        if token < changed.shape[1]:
            changed[:, token] += bias
    if presence == frequency == 0.0 and repetition == 1.0:
        return changed
    prompt, earlier = (
        torch.tensor(list(ids), dtype=torch.long, device=logits.device) for ids in before
    )
    said = torch.zeros(logits.shape[1], device=logits.device)
    said.index_add_(0, earlier, torch.ones_like(earlier, dtype=said.dtype))
    known = said > 0
    known[prompt] = True
    for step in range(len(changed)):
        row = changed[step]
        if repetition != 1.0:
            weaker = torch.where(row > 0, row / repetition, row * repetition)
            row = torch.where(known, weaker, row)
        changed[step] = row - frequency * said - presence * (said > 0)
        if step < len(answer):
            said[answer[step]] += 1
            known[answer[step]] = True
    return changed


def truncated(log_law: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """``log_law`` [t, v] over the tokens that min_p, top_k and top_p leave; minus infinity elsewhere."""
    kept = log_law
    if sampling.min_p:
        least = kept.amax(dim=1, keepdim=True) + torch.log(torch.tensor(sampling.min_p))
        kept = kept.masked_fill(kept < least, -torch.inf)
    if sampling.top_k is not None and 0 < sampling.top_k < kept.shape[1]:
        least = kept.topk(sampling.top_k, dim=1).values[:, -1:]
        kept = kept.masked_fill(kept < least, -torch.inf)
    if sampling.top_p is not None and 0.0 < sampling.top_p < 1.0:
        ordered, order = kept.log_softmax(dim=1).sort(dim=1, descending=True)
        # A token stays while the ones before it hold less than top_p: the first always does.
        before = ordered.exp().cumsum(dim=1) - ordered.exp()
        out = torch.zeros_like(kept, dtype=torch.bool)
        out.scatter_(1, order, before >= sampling.top_p)
        kept = kept.masked_fill(out, -torch.inf)
    return kept if kept is log_law else kept.log_softmax(dim=1)
