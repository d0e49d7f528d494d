"""Sparse autoencoders from published checkpoints, whatever their format, in one canonical form.

`detect.load_autoencoder` finds the format and reads the files into `autoencoder.SparseAutoencoder`;
`features.latent_features` makes features of a pack out of chosen latents. Pickled checkpoints are
read by ``torch.load(weights_only=True)`` alone, and what is kept of them is written as safetensors.
"""

from typing import Final

from monitor.values.features import Calibration

UNCALIBRATED: Final = Calibration(tokens=(1.0,), means=(0.0,), deviations=(1.0,))
"""Scores equal readings: what an imported feature has before it was calibrated on benign text."""
