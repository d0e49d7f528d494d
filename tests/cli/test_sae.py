"""``monitor pack import sae``: what it prints, how it refuses, with which exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from monitor.score.pack import load_pack
from tests.cli.conftest import Cli
from tests.scenes.models import WIDTH
from tests.scenes.texts import part_of_texts

pytestmark = pytest.mark.slow


def write_exact(folder: Path, width: int, **changes: Any) -> Path:
    """± every coordinate: an SAE that rebuilds any residual whole, from half of its latents."""
    folder.mkdir()
    axes = torch.cat([torch.eye(width), -torch.eye(width)])
    weights = {
        "W_enc": axes.T.contiguous(),
        "b_enc": torch.zeros(2 * width),
        "W_dec": axes,
        "b_dec": torch.zeros(width),
    }
    save_file(weights, folder / "sae_weights.safetensors")
    config = {
        "architecture": "standard",
        "d_in": width,
        "d_sae": 2 * width,
        "apply_b_dec_to_input": False,
        "metadata": {"hook_name": "blocks.1.hook_resid_post", "model_name": "tiny"},
    }
    (folder / "cfg.json").write_text(json.dumps({**config, **changes}))
    return folder


def test_an_import_says_how_faithful_the_sae_is(
    cli: Cli, model_folder: Path, tmp_path: Path
) -> None:
    checkpoint = write_exact(tmp_path / "sae", WIDTH)
    out = tmp_path / "pack"
    options = ["--model", model_folder, "--out", out, "--pooling", "max", "--region", "all"]
    options += ["--data", part_of_texts(tmp_path / "texts", fit=4, check=4)]
    made = cli(
        *("pack", "import", "sae", checkpoint, "--latent", 3, "--latent", 40, *options),
        *("--name", "third", "--name", "fortieth", "--expect-l0", WIDTH, "--json"),
        *("--falls", 40, "--tag", "toxic", "--tag", "rude"),
    )
    assert made.code == 0, made.err
    (row,) = json.loads(made.out)
    assert row["format"] == "saelens"
    assert row["variance_explained"] == pytest.approx(1.0, abs=1e-4)
    assert row["mean_l0"] == pytest.approx(WIDTH, abs=0.5)
    assert row["as_published"] is True
    pack = load_pack(out)
    assert pack.pack_id == row["id"]
    assert [(f.name, f.pooling, f.region) for f in pack.features] == [
        ("third", "max", "all"),
        ("fortieth", "max", "all"),
    ]
    assert [(f.expected, f.tags) for f in pack.features] == [
        ("rises", ("latent", "toxic", "rude")),
        ("falls", ("latent", "assistant")),
    ]
    assert pack.report["autoencoder"]["agrees"] is True

    far = cli(
        "pack", "import", "sae", checkpoint, "--latent", 3, *options, "--expect-l0", 2, "--yes"
    )
    assert far.code == 1
    assert "mean L0 is" in far.err
    assert load_pack(out).report["autoencoder"]["agrees"] is False


def test_a_top_k_import_shows_its_cost(cli: Cli, model_folder: Path, tmp_path: Path) -> None:
    checkpoint = write_exact(tmp_path / "sae", WIDTH, architecture="topk", k=8)
    out = tmp_path / "pack"
    made = cli(
        *("pack", "import", "sae", checkpoint, "--latent", 3, "--model", model_folder),
        *("--out", out, "--data", part_of_texts(tmp_path / "texts", fit=4, check=4)),
    )
    assert made.code == 0, made.err
    assert "µs on this machine" in made.out
    assert load_pack(out).encoders[0].places == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--latent", 64], "latents: [64] are outside"),
        (["--site", 2], "site is 1 by the checkpoint"),
        (["--format", "gemma"], "format 'gemma' is unknown"),
        (["--format", "gemma-scope"], "no file"),
        (["--name", "a", "--name", "b"], "names: 2 names for 1 latents"),
        (["--norm-factor", 2], "norm_factor belongs to"),
        (["--norm-multiple", "inf"], "--norm-multiple"),
        (["--norm-multiple", "nan"], "--norm-multiple"),
        (["--expect-l0", "nan"], "--expect-l0"),
        (["--expect-variance", "nan"], "--expect-variance"),
        (["--falls", 4], "--falls"),
        (["--tag", ""], "--tag"),
    ],
)
def test_what_does_not_fit_is_refused(
    cli: Cli, model_folder: Path, tmp_path: Path, change: list[Any], message: str
) -> None:
    checkpoint = write_exact(tmp_path / "sae", WIDTH)
    given = change if change[0] == "--latent" else ["--latent", 3, *change]
    refused = cli(
        *("pack", "import", "sae", checkpoint, "--model", model_folder),
        *("--out", tmp_path / "pack", *given),
    )
    assert refused.code == 2
    assert message in refused.err
    assert not (tmp_path / "pack").exists()


def test_another_models_sae_is_refused(cli: Cli, model_folder: Path, tmp_path: Path) -> None:
    checkpoint = write_exact(tmp_path / "sae", WIDTH // 2)
    refused = cli(
        *("pack", "import", "sae", checkpoint, "--latent", 3),
        *("--model", model_folder, "--out", tmp_path / "pack"),
    )
    assert refused.code == 2
    assert "made for another model" in refused.err


@pytest.mark.model
def test_the_real_model_reads_an_exact_sae(cli: Cli, chat_model_path: Path, tmp_path: Path) -> None:
    """On the real residual stream: one axis of it, whole, and top-k of it with its encoder."""
    made = cli(
        *("pack", "import", "sae", write_exact(tmp_path / "sae", 576), "--latent", 7),
        *("--model", chat_model_path, "--out", tmp_path / "pack", "--json"),
    )
    assert made.code == 0, made.err
    (row,) = json.loads(made.out)
    assert row["variance_explained"] == pytest.approx(1.0, abs=1e-4)
    assert row["mean_l0"] == pytest.approx(576, abs=1)
    (feature,) = load_pack(tmp_path / "pack").features
    np.testing.assert_array_equal(feature.weight, np.eye(576, dtype=np.float32)[7])
