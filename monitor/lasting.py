"""What is loaded when the loops begin stays for good: the garbage collector need not look at it again.

A copy, its tokenizer and the libraries around them are half a million objects. Python's collector walks over all
of them every few thousand records, 0.1 to 0.2 seconds at a time, and stops every thread for it.
"""

from __future__ import annotations

import gc


def keep_loaded() -> None:
    """Leave all that this process holds now out of later collections. What is garbage already goes first."""
    gc.collect()
    gc.freeze()
