"""The law of answers of which nobody says how they were drawn, estimated on a tiny model's own answers."""

from __future__ import annotations

import pytest
import torch

from monitor.replay.likelihood import under_each_law
from monitor.replay.surprise import law_of
from monitor.values.likelihood import TEMPERATURES, TOP_PS
from monitor.values.prompts import Sampling


@pytest.mark.parametrize(("vocabulary", "off"), [(40, 1e-4), (30_000, 1e-2)])
def test_each_law_of_the_grid_is_the_one_that_answers_are_held_against(
    vocabulary: int, off: float
) -> None:
    generator = torch.Generator().manual_seed(3)
    scores = torch.randn(6, vocabulary, generator=generator) * 3.0
    said = (scores + torch.randn(6, vocabulary, generator=generator) * 2.0).argmax(dim=1)
    found = [
        column.reshape(6, len(TEMPERATURES), len(TOP_PS)) for column in under_each_law(scores, said)
    ]
    for row, temperature in enumerate(TEMPERATURES):
        for column, top_p in enumerate(TOP_PS):
            law, _, _ = law_of(scores, Sampling(temperature=temperature, top_p=top_p))
            drawn = law.gather(1, said[:, None])[:, 0].clamp_min(-200.0)
            mean = (law.exp() * law).sum(dim=1)
            variance = (law.exp() * law**2).sum(dim=1) - mean**2
            expected = (drawn, mean - drawn, variance)
            for known, one in zip(found, expected, strict=True):
                torch.testing.assert_close(known[:, row, column], one, rtol=off, atol=off)
