"""Sparse autoencoders from published checkpoints, whatever their format, in one canonical form.

`detect.load_autoencoder` finds the format and reads the files into `autoencoder.SparseAutoencoder`;
`features.latent_features` makes features of a pack out of chosen latents, `build` a pack of them.
Pickled checkpoints are read by ``torch.load(weights_only=True)`` alone, and what is kept of them is
written as safetensors.
"""
