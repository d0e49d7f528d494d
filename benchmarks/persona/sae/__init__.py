"""A sparse autoencoder for the small chat model, and which of its latents earn a place in a pack."""
