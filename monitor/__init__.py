"""The first monitor that watches inside a served language model while it serves."""

__version__ = "0.1.0"
