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
    """``content`` beside what its pools are."""
    pools = load_pools(options.cache)
    made = {
        one.name: {
            "answers": len(pools[one.name]),
            "tokens": int(pools[one.name].tokens.sum()),
            "left_out": dict(pools[one.name].left_out),
            "surprise_a_token": float(pools[one.name].excess.sum() / pools[one.name].tokens.sum()),
            "same_tokens": float(pools[one.name].same.mean()),
            "same_number_of_tokens": len(pools[one.name].counted) / len(pools[one.name]),
            "seconds": pools[one.name].seconds,
        }
        for one in WANTED
    }
    laws = {law: {"temperature": s.temperature, "top_p": s.top_p} for law, s in LAWS.items()}
    about = {"longest_answer": TOKENS, "laws": laws, "pools": made}
    keep_in(name, packs_of(options), options, {**content, "about": about}, RESULTS)
