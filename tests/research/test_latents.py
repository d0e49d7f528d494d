"""Latents of a SAELens checkpoint become a pack that verifies on its model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from monitor.errors import BadInput
from monitor.research.latents import build_latent_pack
from monitor.research.verify import verify_pack
from monitor.score.pack import load_pack
from monitor.settings import ReplaySettings

WIDTH, LATENTS = 32, 6


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Latent 5 never wakes: its bias is far below zero."""
    folder = tmp_path / "sae"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    bias = torch.ones(LATENTS)
    bias[5] = -1e6
    save_file(
        {
            "W_enc": torch.randn(WIDTH, LATENTS, generator=generator),
            "b_enc": bias,
            "b_dec": torch.zeros(WIDTH),
        },
        folder / "sae_weights.safetensors",
    )
    config = {
        "architecture": "standard",
        "d_in": WIDTH,
        "d_sae": LATENTS,
        "hook_name": "blocks.1.hook_resid_post",
        "activation_fn_str": "relu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
    }
    (folder / "cfg.json").write_text(json.dumps(config))
    return folder


def test_chosen_latents_are_calibrated_and_verify(
    checkpoint: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "pack"
    build_latent_pack(checkpoint, [3, 1], tiny_folder, out)
    pack = load_pack(out)
    assert [(f.name, f.kind, f.site) for f in pack.features] == [
        ("latent.3", "latent", 1),
        ("latent.1", "latent", 1),
    ]
    assert all(f.calibration.deviations[0] > 0 for f in pack.features)
    assert verify_pack(pack, ReplaySettings(model=tiny_folder)).ok


def test_a_latent_that_benign_text_never_wakes_is_refused(
    checkpoint: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match="all the same"):
        build_latent_pack(checkpoint, [5], tiny_folder, tmp_path / "pack")
