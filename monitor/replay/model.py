"""Load the instrumented copy: from a local folder or GGUF file, no deeper than the deepest site.

The later layers and the LM head are never read from disk. Weights come as safetensors or GGUF; a
folder that only holds pickles is refused, and no code from a model folder is ever run. Of a
multimodal model only what reads text is loaded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import GENERATION_CONFIG_NAME

from monitor.errors import ModelError
from monitor.logs import get_logger
from monitor.replay.adapter import adapter_hash, merge
from monitor.replay.architectures import excluded, is_tested, proven, tried
from monitor.replay.attention import PACKED
from monitor.replay.checkpoint import (
    Checkpoint,
    found,
    held_files,
    later,
    needed_shards,
    quiet,
    template_of,
    translated,
)
from monitor.replay.cut import cut_of
from monitor.replay.fused.blocks import THREADS, by_blocks
from monitor.replay.fused.fitting import fused
from monitor.replay.gguf_reading import without_vocabulary
from monitor.replay.layers import cut_class, model_class, text_stack
from monitor.replay.loaded import LoadedModel, Packing
from monitor.replay.proving import kernel_proof
from monitor.replay.quantised.loading import dequantised, require_linear, require_open
from monitor.replay.spread import devices, free_bytes, spread
from monitor.replay.variable import VariableKernel, found_kernel
from monitor.replay.weights import weights_hash
from monitor.settings import ReplaySettings
from monitor.values.identity import ModelIdentity

__all__ = [
    "LoadedModel",
    "batch_tokens",
    "identity_of",
    "load_model",
    "placement",
    "positions_limit",
    "proven_kernel",
]
log = get_logger(__name__)

CPU_BATCH_TOKENS, GPU_BATCH_TOKENS = 2_048, 16_384
"""A CPU's caches want short rows; a GPU wants enough work for the host to keep ahead of it."""


def load_model(settings: ReplaySettings, deepest_site: int, *, full: bool = False) -> LoadedModel:
    """Load the model of ``settings`` up to block ``deepest_site`` (all of it, with LM head, if ``full``).

    The adapter of ``settings`` is merged into the weights. The copy has run when this returns: see
    `architectures`. Blocks for as long as the disk and that take. Raises `ModelError` when the folder,
    its format, its architecture, the adapter or the device does not allow a replay.
    """
    device, dtype = placement(settings)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    checkpoint = found(settings)
    config = checkpoint.text
    if cut := cut_of(checkpoint.folder):
        cut.require_blocks(checkpoint.folder, deepest_site, full=full)
    if deepest_site >= config.num_hidden_layers:
        raise ModelError(
            f"site {deepest_site} is beyond {settings.model}, which has {config.num_hidden_layers} blocks",
            hint="the pack was made for another model",
        )
    limit = positions_limit(settings, config)
    reason = excluded(config, limit)
    tested = is_tested(config) and not reason
    with translated(settings.model):
        whole, missing = _weights(
            checkpoint,
            None if full else deepest_site + 1,
            attention=PACKED if tested else settings.attention,
            dtype=dtype,
        )
        over = devices(settings)
        if len(over) < 2:
            whole.to(device)  # type: ignore[arg-type]
    if settings.adapter is not None:
        with translated(settings.adapter):
            merge(whole, settings.adapter, full=full, layers=config.num_hidden_layers)
    with translated(settings.model):
        free = [free_bytes(one) for one in over]
        places = spread(whole, over, free, full=full) if len(over) > 1 else ()
    stack = text_stack(whole)
    loaded = LoadedModel(
        model=stack,
        answerer=whole if full else None,
        tokenizer=checkpoint.tokenizer,
        config=config,
        device=device,
        dtype=dtype,
        packing=Packing(ground="tested") if tested else Packing(ground="excluded", reason=reason),
        attention=f"packed-{settings.attention}" if tested else stack.config._attn_implementation,
        identity=_identity(checkpoint, settings.adapter),
        served=checkpoint.form.served if checkpoint.form else "",
        places=places,
    )
    log.info("model.precision", served=loaded.served or None, replayed=loaded.precision)
    tried(loaded, missing)
    if not tested and not reason:
        loaded = proven(loaded, limit=limit, batch_tokens=batch_tokens(settings, device))
    return fused(_with_kernel(loaded))


def _with_kernel(loaded: LoadedModel) -> LoadedModel:
    """``loaded`` with a kernel for whole rows, where there is one that holds."""
    if loaded.attention != "packed-sdpa":
        return loaded
    kernel = proven_kernel(loaded.model, loaded.device, loaded.dtype)
    if kernel is None:
        return loaded
    name = "blocks" if kernel is by_blocks else "varlen"
    return replace(loaded, kernel=kernel, attention=f"packed-{name}")


def proven_kernel(
    stack: PreTrainedModel, device: torch.device, dtype: torch.dtype
) -> VariableKernel | None:
    """A kernel for whole rows, if the device has one that reads what the plain form reads."""
    blockwise = device.type == "cpu" and torch.get_num_threads() <= THREADS
    kernel = by_blocks if blockwise else found_kernel(device, dtype)
    if kernel is None:
        return None
    try:
        proof = kernel_proof(stack, kernel)
    except Exception as error:
        # A width of heads, an architecture or a card that the kernel does not know: it says so when called.
        log.info("replay.kernel_refused", error=f"{error}".partition("\n")[0])
        return None
    log.info("replay.kernel", holds=proof.holds, distance=proof.other, plain=proof.plain)
    return kernel if proof.holds else None


def batch_tokens(settings: ReplaySettings, device: torch.device) -> int:
    """Tokens of one forward pass: the setting, or what suits the device."""
    if settings.batch_tokens is not None:
        return settings.batch_tokens
    return GPU_BATCH_TOKENS if device.type == "cuda" else CPU_BATCH_TOKENS


def identity_of(settings: ReplaySettings) -> ModelIdentity:
    """Which model is in ``settings``, every hash known, without loading it; `ModelError` as above."""
    return _identity(found(settings), settings.adapter)


def placement(settings: ReplaySettings) -> tuple[torch.device, torch.dtype]:
    """Device and dtype; ``auto`` is bfloat16 on the first GPU, else float32 on the CPU."""
    name = settings.device
    if over := devices(settings):
        name = str(over[0])
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ModelError(f"replay.device: {name!r} is no device; try auto, cpu or cuda") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelError("replay.device: no usable GPU", hint="set replay.device to cpu or auto")
    if settings.dtype == "auto":
        return device, torch.bfloat16 if device.type == "cuda" else torch.float32
    return device, {"float32": torch.float32, "bfloat16": torch.bfloat16}[settings.dtype]


def positions_limit(settings: ReplaySettings, config: PreTrainedConfig) -> int:
    """Longest replay in tokens: the setting, or the model's own positions where these are fewer."""
    positions = getattr(config, "max_position_embeddings", None)
    return min(settings.max_tokens, positions) if positions else settings.max_tokens


def _weights(
    checkpoint: Checkpoint, layers: int | None, *, attention: str, dtype: torch.dtype
) -> tuple[PreTrainedModel, list[str]]:
    """The model with its first ``layers`` blocks (None: all, and the LM head), and which of its weights lack."""
    config, full = checkpoint.config, layers is None
    kind: Any = model_class(config, full=full)
    if layers is not None or checkpoint.text is not config:
        kind = cut_class(kind, layers or checkpoint.text.num_hidden_layers, full=full)
    options = dict(checkpoint.source) | {"attn_implementation": attention}
    if checkpoint.gguf is None:
        options["use_safetensors"] = True
    with (
        quiet(),
        without_vocabulary() if checkpoint.gguf else nullcontext(),
        needed_shards(checkpoint.folder, layers) as folder,
        _opened(folder, checkpoint, layers) as (source, opened),
    ):
        options |= opened

        def read() -> Any:
            return kind.from_pretrained(
                source, config=config, dtype=dtype, output_loading_info=True, **options
            )

        try:
            model, report = read()
        except ValueError as error:
            if "attn_implementation" not in str(error) and "attention" not in str(error):
                raise
            options["attn_implementation"] = "eager"
            model, report = read()
    if checkpoint.form is not None:
        require_linear(model)
    model.config._name_or_path = str(checkpoint.folder)
    model.eval().requires_grad_(False)
    return model, _lacking(model, sorted(report["missing_keys"]), checkpoint.folder, full=full)


@contextmanager
def _opened(
    folder: Path, checkpoint: Checkpoint, layers: int | None
) -> Iterator[tuple[Path | None, dict[str, Any]]]:
    """What the library reads the weights in ``folder`` from: the folder, or an option with quantised ones opened."""
    unread = partial(later, layers=layers)
    if checkpoint.form is None:
        if checkpoint.gguf is None:
            require_open(held_files(folder), unread)
        yield folder, {}
        return
    options: dict[str, Any] = {}
    if layers is None and (checkpoint.folder / GENERATION_CONFIG_NAME).is_file():
        # With weights given the library looks into no folder, and an answer's last tokens are told there.
        options["generation_config"] = GenerationConfig.from_pretrained(checkpoint.folder)
    with dequantised(held_files(folder), checkpoint.form, unread) as weights:
        yield None, options | {"state_dict": weights}


def _lacking(model: PreTrainedModel, missing: list[str], folder: Path, *, full: bool) -> list[str]:
    """Those of the ``missing`` weights that a replay may do without, as the stack of blocks names them."""
    stack = text_stack(model)
    prefix = next(f"{name}." if name else "" for name, one in model.named_modules() if one is stack)
    inside = {
        f"{prefix}{name}"
        for name, _ in stack.named_parameters()
        if not any(part.isdigit() for part in name.split("."))
    }
    needed = missing if full else [name for name in missing if name not in inside]
    if needed:
        raise ModelError(
            f"{folder}: {len(needed)} weights are missing, first {needed[0]}",
            hint="fetch the model again",
        )
    return [name.removeprefix(prefix) for name in missing]


def _identity(checkpoint: Checkpoint, adapter: Path | None) -> ModelIdentity:
    """The one place where a model's identity is read; a multimodal one is what its text part is.

    A copy that was cut is the model that it was cut from."""
    gguf, folder, text = checkpoint.gguf, checkpoint.folder, checkpoint.text
    files = [gguf] if gguf else sorted(folder.glob("*.safetensors"))
    model_id = gguf.stem if gguf else folder.resolve().name
    weights, layers = weights_hash(files), text.num_hidden_layers
    if cut := cut_of(folder):
        cut.require_files(folder, weights)
        model_id, weights, layers = cut.of.model_id, str(cut.of.weights_hash), cut.of.layers
    if adapter is not None:
        model_id += f"+{adapter.resolve().name}"
        weights = hashlib.sha256(f"{weights}+{adapter_hash(adapter)}".encode()).hexdigest()
    return ModelIdentity(
        model_id=model_id,
        architecture=text.model_type,
        hidden_size=text.hidden_size,
        layers=layers,
        vocab_size=text.vocab_size,
        weights_hash=weights,
        tokenizer_hash=checkpoint.tokenizer_hash,
        template_hash=hashlib.sha256(template_of(checkpoint.tokenizer).encode()).hexdigest(),
    )
