"""vLLM as a peer of the engine's benchmark, in a process and an environment of its own.

Started by `engine.py --peers vllm`, which cuts the checkpoint behind the site that is read, so that vLLM runs no
more blocks than we do. Two ways: prefill alone, with the prefix cache (emptied before each round), as fast as
vLLM is without us; and with our capture, which needs that cache off. Both in eager mode, one token asked for.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import psutil

from monitor.backends.vllm import wire
from monitor.replay.cutting import cut_checkpoint
from monitor.replay.model import identity_of
from monitor.replay.regions import Tokens
from monitor.score.pack import Pack, save_pack
from monitor.settings import ReplaySettings
from monitor.values.features import Feature

MARK: Final = "@@peer "
"""Begins the lines that are for us: vLLM writes others beside them."""
Mode = Literal["prefill", "capture"]
MODES: Final[dict[Mode, str]] = {
    "prefill": "vLLM, prefill alone",
    "capture": "vLLM, with our capture",
}


@contextmanager
def vllm_ways(
    python: Path,
    model: Path,
    dtype: str,
    threads: int,
    rows: Sequence[Tokens],
    features: Sequence[Feature],
    modes: Sequence[Mode] = tuple(MODES),
) -> Iterator[dict[str, PeerWay]]:
    """The ways of ``modes``, each started and warm. Prefill alone reads nothing: NaN."""
    site = features[0].site
    with tempfile.TemporaryDirectory(prefix="vllm-peer-") as name, ExitStack() as running:
        folder = Path(name)
        cut = cut_checkpoint(model, site, folder / "cut").folder
        identity = identity_of(ReplaySettings(model=cut))
        pack = Pack(name="benchmark", version="1", model=identity, features=tuple(features))
        save_pack(pack, folder / "pack")
        (folder / "rows.json").write_text(
            json.dumps([wire.row_of(wire.Asked(tokens=row)) for row in rows])
        )
        ways = {}
        for mode in modes:
            peer = running.enter_context(_process(python, folder, mode, dtype, threads))
            ways[MODES[mode]] = way = PeerWay(peer, len(rows), len(features))
            way()
        yield ways


@dataclass(frozen=True, slots=True)
class PeerWay:
    """Has a peer run every row once; returns readings [n, k]."""

    peer: subprocess.Popen[str]
    n: int
    k: int

    def __call__(self) -> np.ndarray:
        told = _said(self.peer, "go")
        if not told:
            return np.full((self.n, self.k), np.nan, dtype=np.float32)
        flat: np.ndarray = np.frombuffer(base64.b64decode(told), dtype="<f4")
        return flat.reshape(self.n, self.k)

    def cpu_seconds(self) -> float:
        """What the peer's processes have computed up to now, to a hundredth."""
        first = psutil.Process(self.peer.pid)
        spent = [one.cpu_times() for one in (first, *first.children(recursive=True))]
        return float(sum(one.user + one.system for one in spent))


@contextmanager
def _process(
    python: Path, folder: Path, mode: Mode, dtype: str, threads: int
) -> Iterator[subprocess.Popen[str]]:
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_USE_V2_MODEL_RUNNER": "0",
    }
    command = [str(python), "-m", "benchmarks.vllm_peer", str(folder), mode, dtype]
    with (
        (folder / f"{mode}.log").open("wb") as log,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment,
        ) as peer,
    ):
        try:
            yield peer
        finally:
            assert peer.stdin is not None
            peer.stdin.close()
            try:
                peer.wait(60)
            except subprocess.TimeoutExpired:
                peer.kill()


def _said(peer: subprocess.Popen[str], command: str) -> str:
    assert peer.stdin is not None
    assert peer.stdout is not None
    peer.stdin.write(f"{command}\n")
    peer.stdin.flush()
    for line in peer.stdout:
        if line.startswith(MARK):
            return line.removeprefix(MARK).strip()
    raise RuntimeError("vLLM ended; does its environment have vllm-cpu and this project?")


# --- in vLLM's environment -------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("mode", choices=tuple(MODES))
    parser.add_argument("dtype")
    options = parser.parse_args()
    run = _capturing(options) if options.mode == "capture" else _prefilling(options)
    for _ in sys.stdin:
        print(f"{MARK}{run()}", flush=True)


def _engine(options: argparse.Namespace, rows: Sequence[Any], **more: Any) -> Any:
    from vllm import LLM

    return LLM(
        model=str(options.folder / "cut"),
        dtype=options.dtype,
        enforce_eager=True,
        max_model_len=max(len(row["ids"]) for row in rows) + 1,
        **more,
    )


def _rows(options: argparse.Namespace) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((options.folder / "rows.json").read_text())
    return rows


def _prefilling(options: argparse.Namespace) -> Callable[[], str]:
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    rows = _rows(options)
    engine = _engine(options, rows, enable_prefix_caching=True)
    prompts = [TokensPrompt(prompt_token_ids=row["ids"]) for row in rows]
    asked = SamplingParams(max_tokens=1, temperature=0.0, detokenize=False)

    def run() -> str:
        engine.reset_prefix_cache()
        engine.generate(prompts, asked, use_tqdm=False)
        return ""

    return run


def _capturing(options: argparse.Namespace) -> Callable[[], str]:
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    from monitor.backends.vllm.batch import MARKS
    from monitor.backends.vllm.serve import EXTENSION

    rows = _rows(options)
    engine = _engine(options, rows, enable_prefix_caching=False, worker_extension_cls=EXTENSION)
    engine.collective_rpc("persona_begin", args=(str(options.folder / "pack"),))
    names = [str(index) for index in range(len(rows))]
    prompts = [TokensPrompt(prompt_token_ids=row["ids"]) for row in rows]
    asked = [
        SamplingParams(
            max_tokens=1,
            temperature=0.0,
            detokenize=False,
            extra_args={MARKS: {key: row[key] for key in row if key != "ids"} | {"name": name}},
        )
        for name, row in zip(names, rows, strict=True)
    ]

    def run() -> str:
        engine.generate(prompts, asked, use_tqdm=False)
        [taken] = engine.collective_rpc("persona_take", args=(names,))
        parts = [base64.b64decode(taken[name]["readings"]) for name in names]
        return base64.b64encode(b"".join(parts)).decode()

    return run


if __name__ == "__main__":
    main()
