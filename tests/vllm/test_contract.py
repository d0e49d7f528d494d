"""vLLM as the replay reads what our own copy reads, whatever its scheduler does with the prompts."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from monitor.backends.vllm.replay import VllmReplay
from monitor.canaries import largest_deviation
from monitor.errors import ConfigurationError, ReplayUnavailable
from monitor.replay.model import identity_of
from monitor.score.scorer import Scorer
from monitor.settings import ReplaySettings
from monitor.values.prompts import Prompt
from monitor.values.scores import Replayed
from monitor.values.surprise import Surprise, Weighed

TOLERANCE = 0.02
"""Calibration deviations."""
BLOCK = 32
"""Tokens of a block of the cache: the least that vLLM takes on a CPU."""


def replay_at(url: str, model: Path, pack: Any, *, weighs: bool = False) -> VllmReplay:
    settings = ReplaySettings(model=model, backend="vllm", url=url, timeout=600)
    return VllmReplay(settings, pack, identity_of(settings), weighs=weighs)


def scores(pack: Any, outcomes: Sequence[Any]) -> Any:
    assert all(isinstance(one, Replayed) for one in outcomes)
    return Scorer(pack).score(
        np.stack([one.readings for one in outcomes]),
        np.stack([one.pooled_tokens for one in outcomes]),
    )


def apart(pack: Any, outcomes: Sequence[Any], ours: Sequence[Any]) -> float:
    """Largest difference of a score, in calibration deviations; absent regions must be the same ones."""
    a, b = scores(pack, outcomes), scores(pack, ours)
    np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
    np.testing.assert_array_equal(
        [one.pooled_tokens for one in outcomes], [one.pooled_tokens for one in ours]
    )
    return float(np.nanmax(np.abs(a - b)))


def test_64_exchanges_in_any_order_and_a_server_killed_and_started_again(
    serving: Any, cut: Path, pack: Any, exchanges: list[Prompt], ours: list[Any]
) -> None:
    with serving("--dtype", "float32") as server:
        with pytest.raises(ConfigurationError, match="cut behind block"):
            replay_at(server.url, cut, pack, weighs=True)
        replay = replay_at(server.url, cut, pack)
        found = replay.run(replay.prepare(exchanges))
        print("float32:", apart(pack, found, ours), "calibration deviations")
        assert apart(pack, found, ours) < TOLERANCE
        backwards = replay.run(replay.prepare(exchanges[::-1]))[::-1]
        assert apart(pack, backwards, ours) < TOLERANCE
        covariates = [np.stack([one.covariates for one in side]) for side in (found, ours)]
        np.testing.assert_allclose(*covariates, atol=1e-3)
        assert largest_deviation(pack, replay, datetime.now(UTC)) < TOLERANCE

        prepared, failures = replay.prepare(exchanges), []

        def run() -> None:
            try:
                replay.run(prepared)
            except ReplayUnavailable as error:
                failures.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        time.sleep(1.0)
        server.kill()
        thread.join(60)
        assert len(failures) == 1
        server.start()
        assert apart(pack, replay.run(prepared), ours) < TOLERANCE


def test_chunks_and_prompts_that_are_begun_again_change_nothing(
    serving: Any, cut: Path, pack: Any, exchanges: list[Prompt], ours: list[Any]
) -> None:
    options = ["--max-num-batched-tokens", "64", "--long-prefill-token-threshold", "16"]
    # Room for the longest prompt and no more: several that are under way do not fit.
    longest = max(one.prompt_tokens + one.response_tokens for one in ours)
    blocks = -(-(longest + 2) // BLOCK) + 1
    room = ["--max-model-len", str(longest + 2), "--num-gpu-blocks-override", str(blocks)]
    with serving("--dtype", "float32", "--block-size", str(BLOCK), *options, *room) as server:
        settings = ReplaySettings(
            model=cut, backend="vllm", url=server.url, timeout=900, max_tokens=longest
        )
        replay = VllmReplay(settings, pack, identity_of(settings))
        found = replay.run(replay.prepare(exchanges))
        print("chunks, begun again:", apart(pack, found, ours), server.statistics())
        assert apart(pack, found, ours) < TOLERANCE
        assert server.statistics()["pieces"] > 4 * len(exchanges)
        assert server.statistics()["begun_again"] > 0


def test_in_bfloat16_readings_are_off_by_its_rounding(
    serving: Any, cut: Path, pack: Any, exchanges: list[Prompt], ours: list[Any]
) -> None:
    with serving("--dtype", "bfloat16") as server:
        replay = replay_at(server.url, cut, pack)
        assert replay.lineage(pack.pack_id).dtype == "bfloat16"
        found = replay.run(replay.prepare(exchanges))
        print("bfloat16:", apart(pack, found, ours), "calibration deviations")
        assert 1e-4 < apart(pack, found, ours) < 0.5


def figures(one: Weighed) -> dict[str, Any]:
    """What is weighed of one answer, for each of its tokens."""
    assert not isinstance(one, str), one
    likelihood = one.likelihood if isinstance(one, Surprise) else one
    found: dict[str, Any] = {}
    if likelihood is not None:
        found |= {"logs": likelihood.logs / one.tokens, "squares": likelihood.squares}
    if isinstance(one, Surprise):
        found |= {
            name: getattr(one, name) / one.tokens for name in ("excess", "variance", "log_bets")
        }
        found["peak"] = one.peak
    return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_answers_are_weighed_as_by_our_own_whole_copy_in_chunks_too(
    dtype: str,
    serving: Any,
    whole: Path,
    pack: Any,
    exchanges: list[Prompt],
    weighed: Any,
) -> None:
    """In float32 up to its rounding; below laws that top_p cuts one token at the edge may fall on the other side."""
    laws, expected = weighed
    options = ["--max-num-batched-tokens", "64", "--long-prefill-token-threshold", "16"]
    with serving("--dtype", dtype, *options, model=whole) as server:
        replay = replay_at(server.url, whole, pack, weighs=True)
        found = replay.run(replay.prepare(exchanges, weighed=laws))
        print(dtype, "of the whole model:", apart(pack, found, expected), "calibration deviations")
    largest: dict[str, float] = {}
    moved, tokens = 0.0, 0
    for index, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert (one.weighed is None) == (other.weighed is None) == (index not in laws)
        if index not in laws:
            continue
        assert type(one.weighed) is type(other.weighed)
        theirs, ours = figures(one.weighed), figures(other.weighed)
        assert theirs.keys() == ours.keys()
        for name, value in ours.items():
            apart_by = float(np.max(np.abs(theirs[name] - value)))
            largest[name] = max(largest.get(name, 0.0), apart_by)
        if isinstance(other.weighed, Surprise) and other.weighed.law == "sampled":
            moved += one.weighed.excess - other.weighed.excess
            tokens += other.weighed.tokens
        if dtype == "float32" and isinstance(other.weighed, Surprise):
            for name in ("tokens", "law", "said_by", "off_support", "given_away"):
                assert getattr(one.weighed, name) == getattr(other.weighed, name)
    print(dtype, "largest differences of what is weighed:", largest)
    print(dtype, "mean surprise moved by", moved / tokens, "nats a token, of", tokens, "tokens")
    if dtype == "float32":
        assert max(largest["excess"], largest["log_bets"]) < 1e-4
        assert largest["logs"] < 2e-3
    assert abs(moved / tokens) < {"float32": 1e-4, "bfloat16": 0.3}[dtype]


@pytest.mark.parametrize(
    ("option", "said"),
    [("--enable-prefix-caching", "prefix cache"), ("--no-enforce-eager", "captured graphs")],
)
def test_what_would_hide_tokens_is_refused_at_the_start(
    serving: Any, option: str, said: str
) -> None:
    with serving("--dtype", "float32", option, wait=False) as server:
        assert server.ended() == 2
        assert said in server.log.read_text(errors="replace")
