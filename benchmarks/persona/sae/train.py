"""Training by SAELens, on activations recorded beforehand.

Legend: n = tokens, d = model width, b = tokens of a step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from monitor.errors import BadInput, ConfigurationError

SCALE_TOKENS = 32_768
"""Tokens that the mean norm of the activations is estimated on."""
THRESHOLD_RATE = 0.05
"""Of the moving average that becomes the jumprelu threshold. SAELens' 0.01 trails behind in runs of a few
hundred steps, and twice as many latents are active in use as in training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """``active`` latents of ``latents`` on a mean token (BatchTopK, Bussmann et al. 2024)."""

    latents: int = 1_152
    active: int = 32
    epochs: int = 12
    batch: int = 1_024
    learning_rate: float = 3e-3
    seed: int = 0


def train(activations: torch.Tensor, site: int, model: str, recipe: Recipe, out: Path) -> None:
    """Train on ``activations`` [n, d] and save to ``out`` in SAELens' format, as jumprelu.

    Activations are scaled to a mean norm of √d in training, and the weights back at its end. Raises
    `ConfigurationError` without SAELens, `BadInput` for fewer tokens than a step takes.
    """
    try:
        from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, SAETrainer
        from sae_lens.config import LoggingConfig, SAETrainerConfig
        from sae_lens.saes.sae import SAEMetadata
    except ImportError:
        raise ConfigurationError(
            "training needs SAELens",
            hint="pip install '.[sae]' in a checkout of the monitor, in its own environment",
        ) from None
    n, width = activations.shape
    if n < recipe.batch:
        raise BadInput(f"{n} tokens were recorded, one step takes {recipe.batch}")
    torch.manual_seed(recipe.seed)
    sae = BatchTopKTrainingSAE(
        BatchTopKTrainingSAEConfig(
            d_in=width,
            d_sae=recipe.latents,
            k=recipe.active,
            topk_threshold_lr=THRESHOLD_RATE,
            normalize_activations="expected_average_only_in",
            metadata=SAEMetadata(
                model_name=model, hook_name=f"blocks.{site}.hook_resid_post", **asdict(recipe)
            ),
        )
    )
    with torch.no_grad():
        sae.b_dec.copy_(activations.mean(dim=0) * _scale(activations))
    steps = n // recipe.batch * recipe.epochs
    trainer = SAETrainer(
        cfg=SAETrainerConfig(
            total_training_samples=steps * recipe.batch,
            train_batch_size_samples=recipe.batch,
            lr=recipe.learning_rate,
            lr_end=recipe.learning_rate / 10,
            lr_warm_up_steps=min(100, steps // 10),
            lr_decay_steps=steps // 5,
            dead_feature_window=max(20, 50_000 // recipe.batch),
            feature_sampling_window=steps + 1,
            n_batches_for_norm_estimate=max(1, min(SCALE_TOKENS, n) // recipe.batch),
            logger=LoggingConfig(log_to_wandb=False),
        ),
        sae=sae,
        data_provider=batches(activations, recipe.batch, recipe.seed),
    )
    trainer.fit().save_inference_model(out)


def batches(activations: torch.Tensor, size: int, seed: int) -> Iterator[torch.Tensor]:
    """Shuffled batches [b, d], epoch after epoch without end; an epoch's last, short one is left out."""
    generator = np.random.default_rng(seed)
    while True:
        order = torch.from_numpy(generator.permutation(len(activations)))
        for start in range(0, len(order) - size + 1, size):
            yield activations[order[start : start + size]]


def _scale(activations: torch.Tensor) -> float:
    norms = torch.linalg.vector_norm(activations[:SCALE_TOKENS], dim=1)
    return float(activations.shape[1] ** 0.5 / norms.mean())
