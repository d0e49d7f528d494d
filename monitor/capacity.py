"""How many exchanges a second one worker on this machine reads, and which share of a topic that is: an estimate.

What a sample of the topic costs is counted, what the machine makes of matrix products is timed, and how much of that
replays reach was measured on other machines: so the answer is a range.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from monitor.finding import Finding
from monitor.instrument import Instrument
from monitor.settings import IngestSettings
from monitor.values.prompts import Prompt

ASSUMED_TOKENS: Final = 240
"""Of an exchange, where the topic shows none: the mean of the chats that the engine's benchmarks read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """``tokens`` of an exchange, of which ``tokens_run`` are run, in ``flops`` operations; ``prompts`` were looked at.

    ``product_rate`` are operations a second of this machine's matrix products, ``shares`` the least and the
    largest part of it that replays reached.
    """

    prompts: int
    tokens: float
    tokens_run: float
    flops: float
    product_rate: float
    shares: tuple[float, float]
    threads: int | None

    @property
    def slow(self) -> float:
        """Exchanges a second by the least share."""
        return self.shares[0] * self.product_rate / self.flops

    @property
    def fast(self) -> float:
        """Exchanges a second by the largest share."""
        return self.shares[1] * self.product_rate / self.flops

    def fitting(self, rate: float) -> float:
        """The sampling rate at which ``rate`` exchanges a second are read even at the slow end."""
        return min(1.0, self.slow / rate)

    def needed(self, rate: float) -> int:
        """Workers like this one that read ``rate`` exchanges a second even at the slow end."""
        return max(1, math.ceil(rate / self.slow))

    @property
    def sentence(self) -> str:
        """For people."""
        of = (
            f"{self.tokens:.0f} tokens (mean of {self.prompts} of the newest), {self.tokens_run:.0f} of them run"
            if self.prompts
            else f"{self.tokens:.0f} tokens (assumed: the topic shows none)"
        )
        low, high = self.shares
        return (
            f"an estimate: one worker here reads {self.slow:.2g} to {self.fast:.2g} exchanges a second. Each has {of}, "
            f"which is {self.flops / 1e9:.3g} GFLOP; matrix products alone make {self.product_rate / 1e9:.3g} GFLOP/s here"
            f"{f' with {self.threads} threads' if self.threads else ''}, and replays reached {low:g} to {high:g} of that "
            "where it was measured"
        )

    @property
    def figures(self) -> dict[str, Any]:
        """As JSON types, rates in exchanges a second."""
        return {
            "estimate": True,
            "exchanges_per_second": [self.slow, self.fast],
            "prompts_looked_at": self.prompts,
            "tokens": self.tokens,
            "tokens_run": self.tokens_run,
            "flop": self.flops,
            "product_flop_per_second": self.product_rate,
            "shares_of_products": list(self.shares),
            "threads": self.threads,
        }


def reads(
    instrument: Instrument,
    prompts: Sequence[Prompt],
    ingest: IngestSettings,
    rate: float | None,
) -> Iterator[Finding]:
    """The finding of `Capacity`, if our own copy reads; ``prompts`` are those that the worker would be given.

    With ``rate``, the exchanges a second that are expected, it says which sampling rate fits, and is not well
    where even the fast end cannot read the sample that ``ingest`` takes.
    """
    found = capacity(instrument, prompts, chunk=ingest.chunk_records)
    if found is None:
        return
    seen, mend, figures = found.sentence, "", found.figures
    if rate is None:
        seen += ". --rate with the exchanges a second that you expect says which sampling rate fits"
    else:
        fits, taken = found.fitting(rate), ingest.sampling_rate
        seen += (
            f". Of {rate:g} exchanges a second a sampling rate of {fits:.2g} surely fits "
            f"(ingest.sampling_rate is {taken:g})"
        )
        figures |= {"rate": rate, "sampling_rate": taken, "sampling_rate_that_fits": fits}
        if taken * rate > found.fast:
            mend = (
                f"Set ingest.sampling_rate to {fits:.2g}, or run {found.needed(taken * rate)} workers "
                "like this one (with as many partitions)."
            )
    yield Finding(subject="capacity", well=not mend, seen=seen, mend=mend, figures=figures)


def capacity(instrument: Instrument, prompts: Sequence[Prompt], *, chunk: int) -> Capacity | None:
    """Of reading ``prompts`` in chunks as a worker does; None where another server runs the copy.

    Own answers, twins and weighing come on top. Blocks for about a second, and as long as tokenising takes.
    """
    import torch

    from monitor.replay.cost import SHARES, flops, product_rate
    from monitor.replay.engine import ReplayEngine
    from monitor.replay.plan import plan

    engine = instrument.engine
    if not isinstance(engine, ReplayEngine):
        return None
    copy, blocks = engine.loaded, engine.blocks
    plans, asked, read = [], 0, 0
    for start in range(0, len(prompts), chunk):
        prepared = engine.prepare(prompts[start : start + chunk])
        plans.append(prepared.plan)
        asked += sum(len(one.ids) for one in prepared.tokens.values())
        read += len(prepared.tokens)
    if not read:
        assumed = [tuple(range(ASSUMED_TOKENS))]
        plans = [plan(assumed, batch_tokens=ASSUMED_TOKENS, min_shared_tokens=None)]
        asked = ASSUMED_TOKENS
    of = max(read, 1)
    kind = "cuda" if copy.device.type == "cuda" else "cpu"
    return Capacity(
        prompts=read,
        tokens=asked / of,
        tokens_run=sum(one.tokens for one in plans) / of,
        flops=sum(flops(blocks, copy.config, one).total for one in plans) / of,
        product_rate=product_rate(blocks, copy.device, copy.dtype),
        shares=SHARES[kind, str(copy.dtype).removeprefix("torch.")],
        threads=torch.get_num_threads() if kind == "cpu" else None,
    )
