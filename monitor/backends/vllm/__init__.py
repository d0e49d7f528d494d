"""vLLM as the replay.

`capture` and `weighing` run inside vLLM's workers, over the passes that `batch` tells of, and `serve` is the process around
them, all in vLLM's own environment; `replay` is the worker's side. `wire` and `laws` are what they say to each other, for any
engine (docs/engines.md). vLLM is imported in `serve` alone.
"""
