"""A server that reads a pack's features off a model that vLLM runs: ``python -m monitor.backends.vllm.serve``.

For vLLM's own environment, with this package installed beside it. Takes every option of vLLM's engine
(``--dtype``, ``--tensor-parallel-size``, ``--max-model-len``, ``--quantization`` …) and four of its own. Eager
mode is on and the prefix cache off: hooks do not run in captured graphs, and the cache hides tokens from them.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import numpy as np
import uvicorn

from monitor.backends.vllm import wire
from monitor.backends.vllm.batch import MARKS
from monitor.backends.vllm.face import create_app
from monitor.errors import BadInput, ModelError, MonitorError, ReplayUnavailable
from monitor.replay.cut import cut_of
from monitor.replay.model import identity_of
from monitor.replay.regions import Tokens
from monitor.score.fit import require_fit
from monitor.score.pack import load_pack
from monitor.settings import ReplaySettings, secret
from monitor.values.prompts import Sampling

EXTENSION: Final = "monitor.backends.vllm.capture.Capture"
STARTS_WITH: Final = {
    "enforce_eager": True,
    "enable_prefix_caching": False,
    "worker_extension_cls": EXTENSION,
    "disable_log_stats": True,
}
"""What vLLM is started with unless its options say otherwise; what must not be otherwise is refused."""


class Reader:
    """Reads rows on a running engine, many at once; vLLM batches them as it likes."""

    def __init__(self, engine: Any, columns: int) -> None:
        """``engine`` is an ``AsyncLLM`` on which ``persona_begin`` was called."""
        self._engine = engine
        self._columns = columns

    async def read(self, rows: Sequence[wire.Asked]) -> list[wire.Answered]:
        """What ``rows`` read, and how their answers are found, in order. Raises `ReplayUnavailable` when the engine is gone,
        `ModelError` when it lets a prompt be read in part alone."""
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        names = [uuid4().hex for _ in rows]
        taken: dict[str, dict[str, Any]] = {}
        try:
            try:
                async with asyncio.TaskGroup() as running:
                    for name, row in zip(names, rows, strict=True):
                        running.create_task(self._run(name, row))
            except BaseExceptionGroup as failures:
                # All failed for one reason, or one took the others along.
                raise failures.exceptions[0] from None
            finally:
                # Of every worker: only the first one's count, all of them forget.
                taken, *_ = await self._engine.collective_rpc("persona_take", args=(names,))
        except (EngineDeadError, EngineGenerateError) as error:
            raise ReplayUnavailable(f"vLLM failed: {type(error).__name__}") from None
        if lacking := [name for name in names if name not in taken]:
            raise ModelError(f"{len(lacking)} of {len(rows)} rows were read in part alone")
        try:
            return [
                wire.answered_of(taken[name], self._columns, len(row.laws))
                for name, row in zip(names, rows, strict=True)
            ]
        except BadInput as error:
            raise ModelError(f"vLLM's worker: {error}") from None

    async def statistics(self) -> dict[str, int]:
        """Of the first worker, which gives the readings."""
        told: dict[str, int]
        told, *_ = await self._engine.collective_rpc("persona_statistics")
        return told

    async def _run(self, name: str, row: wire.Asked) -> None:
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt

        # One token must be asked for; what it is matters to nobody.
        asked = SamplingParams(
            max_tokens=1,
            temperature=0.0,
            detokenize=False,
            extra_args={MARKS: {"name": name} | row.marks},
        )
        async for _ in self._engine.generate(
            TokensPrompt(prompt_token_ids=list(row.tokens.ids)), asked, request_id=name
        ):
            pass


def main() -> None:
    # The newer runner keeps its batches elsewhere.
    os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")
    options = _options()
    try:
        asyncio.run(_serve(options))
    except MonitorError as error:
        sys.stderr.write(f"error: {error}\n{f'  {error.hint}' if error.hint else ''}\n")
        sys.exit(1 if isinstance(error, ReplayUnavailable) else 2)


def _options() -> argparse.Namespace:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser: Any = FlexibleArgumentParser(description=(__doc__ or "").splitlines()[0])
    ours = parser.add_argument_group("the monitor's own")
    ours.add_argument("--pack", type=Path, required=True, help="pack folder")
    ours.add_argument("--host", default="127.0.0.1", help="address to listen on")
    ours.add_argument("--port", type=int, default=8100)
    ours.add_argument("--key-file", type=Path, help="file with the key that callers must give")
    ours.add_argument(
        "--other-weights", action="store_true", help="read a model of other weights than the pack's"
    )
    AsyncEngineArgs.add_cli_args(parser)
    parser.set_defaults(**STARTS_WITH)
    found: argparse.Namespace = parser.parse_args()
    return found


async def _serve(options: argparse.Namespace) -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    folder = Path(options.model)
    pack = load_pack(options.pack)
    model = identity_of(ReplaySettings(model=folder))
    require_fit(
        pack, model.with_any_weights() if options.other_weights else model, f"the model in {folder}"
    )
    key = secret(None, options.key_file, "--key")
    try:
        engine: Any = AsyncLLM.from_engine_args(AsyncEngineArgs.from_cli_args(options))
    except Exception as error:
        # Configuration, weights, device: vLLM raises whatever its parts raise.
        raise ModelError(
            f"vLLM does not start: {type(error).__name__}: {error}", hint="its log above says why"
        ) from None
    try:
        try:
            told, *_ = await engine.collective_rpc(
                "persona_begin", args=(str(options.pack.resolve()),)
            )
        except Exception as error:
            # What a worker raises comes as text.
            raise ModelError(f"vLLM cannot read for us: {error}") from None
        reader = Reader(engine, len(pack.features) + len(pack.covariates))
        no_weighing = await _proven(reader, folder)
        about = replace(_about(pack.pack_id, model, told, engine), no_weighing=no_weighing)
        sys.stderr.write(f"answers: {no_weighing or 'weighed'}\n")
        server = uvicorn.Server(
            uvicorn.Config(
                create_app(about, reader.read, reader.statistics, key),
                host=options.host,
                port=options.port,
                access_log=False,
                log_level="warning",
            )
        )
        ending = asyncio.create_task(_end_with(engine, server))
        await server.serve()
        ending.cancel()
        if engine.errored:
            raise ReplayUnavailable("vLLM died", hint="its log says why; start this server again")
    finally:
        engine.shutdown()


def _about(pack_id: str, model: Any, told: dict[str, str], engine: Any) -> wire.About:
    import vllm

    return wire.About(
        version=wire.VERSION,
        pack_id=pack_id,
        model_hash=str(model.weights_hash),
        model_id=model.model_id,
        dtype=told["dtype"],
        device=told["device"],
        engine=f"vllm-{vllm.__version__}",
        # One more must fit: the token that is asked for.
        max_tokens=engine.vllm_config.model_config.max_model_len - 1,
    )


async def _proven(reader: Reader, folder: Path) -> str:
    """Why no answers can be weighed; empty where they can. Raises `ModelError` where rows cannot even be read.

    A row of three tokens is read and weighed: an architecture whose states do not reach us shows here, not at
    the first answer.
    """
    row = Tokens(ids=(0, 1, 2), prompt_tokens=1, response_tokens=2, readable=np.ones(3, np.bool_))
    await reader.read([wire.Asked(tokens=row)])
    if cut := cut_of(folder):
        return f"it serves a copy that was cut behind block {cut.blocks - 1}"
    try:
        await reader.read([wire.Asked(tokens=row, laws=(Sampling(temperature=1.0),))])
    except ModelError as error:
        return f"this architecture's last states do not reach us ({error})"
    return ""


async def _end_with(engine: Any, server: uvicorn.Server) -> None:
    """Stop serving once the engine is gone: whoever started this process starts it anew."""
    while not engine.errored:
        await asyncio.sleep(1.0)
    server.should_exit = True


if __name__ == "__main__":
    main()
