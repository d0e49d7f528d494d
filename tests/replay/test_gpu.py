"""On a GPU: readings of every packed architecture against a CPU in float32, by both forms of attention.

Bounds are those of `benchmarks.gpu_readings`: 1e-4 of the largest reading in float32; in bfloat16 a
root mean square of a quarter of what differs between prompts, for random weights.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from benchmarks.gpu_readings import compared
from tests.replay.architectures import PACKED

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use"),
]


@pytest.mark.parametrize("name", PACKED)
def test_gpu_reads_what_a_cpu_reads(name: str, tiny_model: Callable[[Any], Path]) -> None:
    kind, options = PACKED[name]
    folder = tiny_model(getattr(transformers, kind)(**options | positions(name)))
    found = compared(folder, 3, (0, 12), "cuda", "bfloat16, random weights")
    # torch 2.11 and later bring the kernel for whole rows; only a soft cap is beyond it.
    assert "bfloat16, whole rows" in found
    assert all(one["holds"] for one in found.values()), found


def positions(name: str) -> dict[str, int]:
    """Room for the benchmark's longest chats, in the tiny models' few tokens."""
    return {"n_positions" if name == "gpt2" else "max_position_embeddings": 2_048}
