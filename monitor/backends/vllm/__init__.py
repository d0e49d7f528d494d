"""vLLM as the replay.

`capture` runs inside vLLM's workers and `serve` is the process around them, both in vLLM's own environment;
`replay` is the worker's side. `wire` is what they say to each other. vLLM is imported in `serve` alone.
"""
