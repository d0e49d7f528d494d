"""Inside vLLM's worker: residuals are projected where they arise and pooled when their prompt is complete.

Given to vLLM as ``worker_extension_cls``, which makes the methods of `Capture` the worker's own, and run by
`collective_rpc`. What vLLM does with a prompt shows here as pieces of it: chunked prefill gives several,
preemption gives some of them twice, and the order in a batch is not that of arrival. Each piece tells its
request and its place, so a prompt is complete when every place was written. A token that comes from the
prefix cache never does: such a prompt stays incomplete, which is told.

Needs eager mode: hooks do not run in a captured graph. Does not import vLLM.

Legend: t = tokens of one forward pass, n = tokens of one prompt, d = model width, k = features and covariates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from monitor.backends.vllm import wire
from monitor.backends.vllm.batch import Piece, ids_of, marks_of, pieces
from monitor.backends.vllm.weighing import Weighing
from monitor.errors import ModelError
from monitor.replay.layers import blocks
from monitor.replay.outcome import Reading
from monitor.replay.pooling import FeatureBank
from monitor.score.pack import load_pack


@dataclass(slots=True)
class _Row:
    """A prompt under way: activations [n, k], and which of them are there."""

    activations: torch.Tensor
    there: torch.Tensor

    @classmethod
    def empty(cls, tokens: int, columns: int, device: torch.device) -> _Row:
        return cls(
            torch.empty(tokens, columns, device=device), torch.zeros(tokens, dtype=torch.bool)
        )


@dataclass(slots=True)
class Capturing:
    """Reads the pack's features off the forward passes of ``runner``, vLLM's model runner."""

    runner: Any
    bank: FeatureBank
    rows: dict[str, _Row] = field(default_factory=dict)
    """By request."""
    done: dict[str, Reading] = field(default_factory=dict)
    """By the row's own name, until they are taken."""
    pieces: int = 0
    begun_again: int = 0
    """Prompts that the engine read from the start once more, for want of room."""
    _pass: torch.Tensor = field(default_factory=lambda: torch.empty(0))

    def read(self, site: int, output: object) -> None:
        """What the block at ``site`` gives; sites of one pass come in rising order."""
        first: Any = output[0] if isinstance(output, tuple) else output
        ours = list(pieces(self.runner, len(first)))
        if not ours:
            return
        residual = residual_of(output)
        if site == self.bank.sites[0]:
            self._pass = torch.empty(len(residual), len(self.bank.features), device=residual.device)
        self.bank.project(site, residual, self._pass)
        if site == self.bank.sites[-1]:
            for piece in ours:
                self._keep(piece)

    def _keep(self, piece: Piece) -> None:
        ids, marks = ids_of(self.runner, piece.request), marks_of(self.runner, piece.request)
        assert marks is not None
        row = self.rows.get(piece.request)
        if row is None:
            if piece.place >= len(ids):
                return  # what the engine says itself behind a prompt that is done
            row = _Row.empty(len(ids), self._pass.shape[1], self._pass.device)
            self.rows[piece.request] = row
        # Behind the prompt stand tokens that the engine has said itself.
        wanted = min(piece.stop - piece.start, len(ids) - piece.place)
        if wanted <= 0:
            return
        self.pieces += 1
        self.begun_again += piece.place == 0 and bool(row.there[0])
        where = slice(piece.place, piece.place + wanted)
        row.activations[where] = self._pass[piece.start : piece.start + wanted]
        row.there[where] = True
        if bool(row.there.all()):
            tokens = wire.tokens_of(ids, marks)
            pooled, counts = self.bank.pool(tokens, row.activations)
            [readings] = self.bank.finished([pooled])
            self.done[marks["name"]] = Reading(readings, counts)
            del self.rows[piece.request]

    def forget(self, names: Sequence[str]) -> None:
        """Rows that nobody waits for any more."""
        gone = set(names)
        for request in list(self.rows):
            marks = marks_of(self.runner, request)
            if marks is None or marks["name"] in gone:
                del self.rows[request]
        for name in gone & self.done.keys():
            del self.done[name]


class Capture:
    """What `collective_rpc` may call on each of vLLM's workers; mixed into their class."""

    def persona_begin(self, pack_folder: str) -> dict[str, str]:
        """Read the pack's features from now on; tells device and dtype. Raises `ModelError` where that cannot be."""
        worker: Any = self
        runner, config = worker.model_runner, worker.vllm_config
        _require_readable(config, runner)
        pack = load_pack(Path(pack_folder))
        read = (*pack.features, *(one.as_feature() for one in pack.covariates))
        bank = FeatureBank(read, config.model_config.get_hidden_size(), runner.device)
        model = runner.model
        stack = _blocks(model)
        if bank.sites[-1] >= len(stack):
            raise ModelError(
                f"the pack reads site {bank.sites[-1]}, the model served has {len(stack)} blocks",
                hint=f"cut it again: monitor model cut … --after-block {bank.sites[-1]}",
            )
        capturing = Capturing(runner, bank)
        for site in bank.sites:
            stack[site].register_forward_hook(_hook(site, capturing))
        weighing = Weighing(runner, model)
        model.register_forward_hook(_whole_hook(weighing))
        worker._persona_capturing, worker._persona_weighing = capturing, weighing
        return {
            "device": str(runner.device.type),
            "dtype": str(config.model_config.dtype).removeprefix("torch."),
        }

    def persona_take(self, names: list[str]) -> dict[str, dict[str, Any]]:
        """What was read, and weighed, of the rows of these names; each is given once. Of one that is incomplete
        the whole is left out, or the weighing."""
        worker: Any = self
        capturing: Capturing = worker._persona_capturing
        weighing: Weighing = worker._persona_weighing
        found = {
            name: wire.packed(
                wire.Answered(capturing.done[name], tuple(weighing.done.get(name, ())))
            )
            for name in names
            if name in capturing.done
        }
        capturing.forget(names)
        weighing.forget(names)
        return found

    def persona_statistics(self) -> dict[str, int]:
        """What was done since the start: pieces of prompts read, and prompts that were begun again."""
        capturing: Capturing = self._persona_capturing  # type: ignore[attr-defined]
        return {"pieces": capturing.pieces, "begun_again": capturing.begun_again}


def _require_readable(config: Any, runner: Any) -> None:
    parallel = config.parallel_config
    if not config.model_config.enforce_eager:
        raise ModelError("vLLM runs captured graphs", hint="start it with --enforce-eager")
    if config.cache_config.enable_prefix_caching:
        raise ModelError(
            "vLLM's prefix cache hides tokens", hint="start it with --no-enable-prefix-caching"
        )
    if parallel.pipeline_parallel_size > 1 or parallel.data_parallel_size > 1:
        raise ModelError(
            "pipeline and data parallelism are not read",
            hint="use --tensor-parallel-size, or one server for each copy",
        )
    if config.speculative_config is not None:
        raise ModelError("speculative decoding is on", hint="start vLLM without it")
    if not all(hasattr(runner, name) for name in ("input_batch", "query_start_loc", "requests")):
        raise ModelError(
            "this vLLM keeps its batches elsewhere", hint="set VLLM_USE_V2_MODEL_RUNNER=0"
        )


def _blocks(model: torch.nn.Module) -> torch.nn.ModuleList:
    whole: Any = model
    if hasattr(whole, "get_language_model"):
        whole = whole.get_language_model()
    try:
        return blocks(whole)
    except ModelError:
        return blocks(whole.model)


def _hook(site: int, capturing: Capturing) -> Callable[..., None]:
    def hook(_module: torch.nn.Module, _inputs: object, output: object) -> None:
        # At once: the next block's fused norm writes into these very tensors.
        with torch.inference_mode():
            capturing.read(site, output)

    return hook


def _whole_hook(weighing: Weighing) -> Callable[..., None]:
    def hook(_module: torch.nn.Module, _inputs: object, output: object) -> None:
        with torch.inference_mode():
            weighing.read(output)

    return hook


def residual_of(output: object) -> torch.Tensor:
    """The residual stream [t, d]: vLLM's blocks give its two addends, the later one not yet added."""
    if isinstance(output, torch.Tensor):
        return output
    assert isinstance(output, tuple)
    hidden, residual = output[0], output[1] if len(output) > 1 else None
    assert isinstance(hidden, torch.Tensor)
    return hidden if residual is None else hidden + residual
