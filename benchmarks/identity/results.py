"""Where results are kept: ``results/<part>.json``, with seed, pools, versions and machine."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from benchmarks.identity.pools import LAWS, TOKENS, WANTED, load_pools
from benchmarks.persona.results import keep as keep_in
from benchmarks.persona.results import packs_of

RESULTS: Final = Path(__file__).parent / "results"


def keep(name: str, options: argparse.Namespace, content: Mapping[str, Any]) -> None:
    """``content`` beside what the pools are that lie in the cache."""
    names = [one.name for one in WANTED if (options.cache / f"{one.name}.npz").exists()]
    made = {
        pool: {
            "answers": len(its),
            "tokens": int(its.tokens.sum()),
            "left_out": dict(its.left_out),
            "surprise_a_token": float(its.excess.sum() / its.tokens.sum()),
            "same_tokens": float(its.same.mean()),
            "same_number_of_tokens": len(its.counted) / len(its),
            "seconds": its.seconds,
        }
        for pool, its in load_pools(options.cache, names).items()
    }
    laws = {law: {"temperature": s.temperature, "top_p": s.top_p} for law, s in LAWS.items()}
    about = {"longest_answer": TOKENS, "laws": laws, "pools": made}
    keep_in(name, packs_of(options), options, {**content, "about": about}, RESULTS)
