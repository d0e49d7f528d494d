"""Bring a drifted model back with good examples, and stop when its features say so."""
