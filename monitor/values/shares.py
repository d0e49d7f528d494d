"""Shares of counts, with exact limits."""

from __future__ import annotations

from scipy.special import betaincinv


def rate_limit(count: int, n: int, error: float, *, upper: bool) -> float:
    """Where the rate of ``count`` of n ends, one-sided and exact (Clopper & Pearson, Biometrika 26, 1934)."""
    if upper:
        return 1.0 if count == n else float(betaincinv(count + 1, n - count, 1 - error))
    return float(betaincinv(count, n - count + 1, error)) if count else 0.0
