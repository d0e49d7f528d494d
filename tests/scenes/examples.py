"""How many examples a property is tried on: all in the whole suite, a fifth of them before each commit.

``make check`` says so by Hypothesis's own option: ``--hypothesis-profile quick``.
"""

from __future__ import annotations

from hypothesis import settings

WHOLE = 100
"""Of Hypothesis's own default profile."""


def examples(count: int) -> int:
    """``count`` in the whole suite; as many fewer as the profile in force asks for."""
    return max(1, count * settings.default.max_examples // WHOLE)
