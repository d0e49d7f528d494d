"""Saved quantised checkpoints, read by dequantising each weight while it is loaded; a module for each format."""
