"""Load the instrumented copy: from a local folder or GGUF file, no deeper than the deepest site.

The later layers and the LM head are never read from disk. Weights come as safetensors or GGUF; a
folder that only holds pickles is refused, and no code from a model folder is ever run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)

from monitor.errors import ModelError, MonitorError
from monitor.given import read_given
from monitor.logs import get_logger
from monitor.replay.adapter import CONFIG_FILE as ADAPTER_CONFIG
from monitor.replay.adapter import adapter_hash, merge
from monitor.replay.attention import PACKED, PROVEN_ARCHITECTURES
from monitor.replay.layers import blocks, require_decoder, truncated
from monitor.replay.proving import kernel_proof
from monitor.replay.variable import VariableKernel, found_kernel
from monitor.replay.weights import weights_hash
from monitor.settings import ReplaySettings
from monitor.values.identity import ModelIdentity

log = get_logger(__name__)

LARGEST_TEMPLATE = 4 * 1024 * 1024
CPU_BATCH_TOKENS, GPU_BATCH_TOKENS = 2_048, 16_384
"""A CPU's caches want short rows; a GPU wants enough work for the host to keep ahead of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A copy ready to be replayed.

    ``model`` is the stack of blocks without LM head, ``answerer`` the whole model around the same
    weights when it was loaded in full, ``config`` the full model's own configuration. ``packed``
    says that rows of several prompts may be run at once; otherwise prompts are run one at a time.
    ``kernel`` takes the attention of such a row at once, where one was found and proven.
    ``identity`` is that of the full model, every hash known.
    """

    model: PreTrainedModel
    answerer: PreTrainedModel | None
    tokenizer: Any
    config: PreTrainedConfig
    device: torch.device
    dtype: torch.dtype
    packed: bool
    attention: str
    identity: ModelIdentity
    kernel: VariableKernel | None = None

    @property
    def model_id(self) -> str:
        return self.identity.model_id

    @property
    def model_hash(self) -> str:
        return str(self.identity.weights_hash)

    @property
    def blocks(self) -> torch.nn.ModuleList:
        return blocks(self.model)


def load_model(settings: ReplaySettings, deepest_site: int, *, full: bool = False) -> LoadedModel:
    """Load the model of ``settings`` up to block ``deepest_site`` (all of it, with LM head, if ``full``).

    The adapter of ``settings`` is merged into the weights. Blocks for as long as the disk takes.
    Raises `ModelError` when the folder, its format, its architecture, the adapter or the device does
    not allow a replay.
    """
    folder, gguf = _located(settings.model)
    device, dtype = placement(settings)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    source: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    if gguf is not None:
        source["gguf_file"] = gguf.name
    with _translated(settings.model):
        config = AutoConfig.from_pretrained(folder, **source)
        tokenizer = _tokenizer(folder, source, settings.chat_template)
    require_decoder(config)
    if deepest_site >= config.num_hidden_layers:
        raise ModelError(
            f"site {deepest_site} is beyond {settings.model}, which has {config.num_hidden_layers} blocks",
            hint="the pack was made for another model",
        )
    packed = _packable(config, positions_limit(settings, config))
    with _translated(settings.model):
        whole: Any = _weights(
            folder,
            config if full else truncated(config, deepest_site + 1),
            source | {"attn_implementation": PACKED if packed else settings.attention},
            dtype=dtype,
            full=full,
        )
        whole.to(device)
    if settings.adapter is not None:
        with _translated(settings.adapter):
            merge(whole, settings.adapter, full=full, layers=config.num_hidden_layers)
    stack = whole.base_model if full else whole
    kernel = (
        proven_kernel(stack, device, dtype) if packed and settings.attention == "sdpa" else None
    )
    return LoadedModel(
        model=stack,
        answerer=whole if full else None,
        tokenizer=tokenizer,
        config=config,
        device=device,
        dtype=dtype,
        packed=packed,
        attention=f"packed-{'varlen' if kernel else settings.attention}"
        if packed
        else stack.config._attn_implementation,
        identity=_identity(folder, gguf, settings.adapter, config, tokenizer),
        kernel=kernel,
    )


def proven_kernel(
    stack: PreTrainedModel, device: torch.device, dtype: torch.dtype
) -> VariableKernel | None:
    """A kernel for whole rows, if the device has one that reads what the plain form reads."""
    kernel = found_kernel(device, dtype)
    if kernel is None:
        return None
    try:
        proof = kernel_proof(stack, kernel)
    except RuntimeError as error:
        # A width of heads or a card that the kernel does not know: it says so when it is called.
        log.info("replay.kernel_refused", error=str(error).splitlines()[0])
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
    folder, gguf = _located(settings.model)
    source: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    if gguf is not None:
        source["gguf_file"] = gguf.name
    with _translated(settings.model):
        config = AutoConfig.from_pretrained(folder, **source)
        tokenizer = _tokenizer(folder, source, settings.chat_template)
    return _identity(folder, gguf, settings.adapter, config, tokenizer)


def _tokenizer(folder: Path, source: Mapping[str, Any], chat_template: Path | None) -> Any:
    """The model's tokenizer, with the server's own chat template where one is configured."""
    tokenizer = AutoTokenizer.from_pretrained(folder, **source)
    if chat_template is not None:
        try:
            tokenizer.chat_template = read_given(chat_template, LARGEST_TEMPLATE).decode()
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(
                f"replay.chat_template: {chat_template} cannot be read: {error}",
                hint="give the Jinja file that the server is started with",
            ) from error
    return tokenizer


def placement(settings: ReplaySettings) -> tuple[torch.device, torch.dtype]:
    """Device and dtype; ``auto`` is bfloat16 on the first GPU, else float32 on the CPU."""
    name = settings.device
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


def template_of(tokenizer: Any) -> str:
    """The chat template's text; empty for a model without one."""
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default", "")
    return template or ""


def _packable(config: PreTrainedConfig, limit: int) -> bool:
    """Whether one row may hold several prompts without any of them noticing.

    Rotary frequencies that depend on the longest prompt of a row (dynamic, longrope) allow it only
    while every prompt stays within the original positions.
    """
    if config.model_type not in PROVEN_ARCHITECTURES:
        return False
    if getattr(config, "use_bidirectional_attention", None):
        return False
    rope = getattr(config, "rope_parameters", None) or {}
    for part in (rope, *(v for v in rope.values() if isinstance(v, dict))):
        if part.get("rope_type") in ("dynamic", "longrope"):
            original = (
                part.get("original_max_position_embeddings") or config.max_position_embeddings
            )
            if limit > original:
                return False
    return True


def _located(path: Path) -> tuple[Path, Path | None]:
    """The model's folder, and its GGUF file if it is one."""
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"replay.model: no file {path}")
        return path.parent, path
    if not path.is_dir():
        raise ModelError(
            f"replay.model: no folder {path}", hint="give a local model folder or a .gguf file"
        )
    if (path / ADAPTER_CONFIG).is_file():
        raise ModelError(
            f"replay.model: {path} holds a LoRA adapter",
            hint="give the base model's folder here, and this one as replay.adapter",
        )
    if not (path / "config.json").is_file():
        raise ModelError(f"replay.model: {path} holds no config.json")
    if not any(path.glob("*.safetensors")):
        pickles = any(path.glob("*.bin")) or any(path.glob("*.pt"))
        raise ModelError(
            f"replay.model: {path} holds no *.safetensors"
            + ("; pickled weights are never loaded, they can run code" if pickles else ""),
            hint="convert the weights to safetensors",
        )
    return path, None


def _weights(
    folder: Path,
    config: PreTrainedConfig,
    source: Mapping[str, Any],
    *,
    dtype: torch.dtype,
    full: bool,
) -> PreTrainedModel:
    options = dict(source)
    if "gguf_file" not in options:
        options["use_safetensors"] = True
    kind: Any = AutoModelForCausalLM if full else AutoModel
    with quiet():
        try:
            model, report = kind.from_pretrained(
                folder, config=config, dtype=dtype, output_loading_info=True, **options
            )
        except ValueError as error:
            if "attn_implementation" not in str(error) and "attention" not in str(error):
                raise
            options["attn_implementation"] = "eager"
            model, report = kind.from_pretrained(
                folder, config=config, dtype=dtype, output_loading_info=True, **options
            )
    if missing := sorted(report["missing_keys"]):
        raise ModelError(f"{folder}: {len(missing)} weights are missing, first {missing[0]}")
    model.eval().requires_grad_(False)
    loaded: PreTrainedModel = model
    return loaded


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' bars and reports: the weights left out are left out on purpose."""
    log: Any = transformers.logging
    level, bar = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bar:
            log.enable_progress_bar()


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except MonitorError:
        raise
    except torch.OutOfMemoryError as error:
        raise ModelError(f"{path} does not fit into the device's memory: {error}") from error
    except Exception as error:
        # Loading runs through half of transformers, which raises whatever its parts raise.
        raise ModelError(f"{path} cannot be loaded: {type(error).__name__}: {error}") from error


def _identity(
    folder: Path,
    gguf: Path | None,
    adapter: Path | None,
    config: PreTrainedConfig,
    tokenizer: Any,
) -> ModelIdentity:
    if not tokenizer.is_fast:
        raise ModelError(
            f"{folder} has no tokenizer.json", hint="replay needs a fast tokenizer, for its offsets"
        )
    files = [gguf] if gguf else sorted(folder.glob("*.safetensors"))
    vocabulary = json.dumps(json.loads(tokenizer.backend_tokenizer.to_str()), sort_keys=True)
    model_id = gguf.stem if gguf else folder.resolve().name
    weights = weights_hash(files)
    if adapter is not None:
        model_id += f"+{adapter.resolve().name}"
        weights = hashlib.sha256(f"{weights}+{adapter_hash(adapter)}".encode()).hexdigest()
    return ModelIdentity(
        model_id=model_id,
        architecture=config.model_type,
        hidden_size=config.hidden_size,
        layers=config.num_hidden_layers,
        vocab_size=config.vocab_size,
        weights_hash=weights,
        tokenizer_hash=hashlib.sha256(vocabulary.encode()).hexdigest(),
        template_hash=hashlib.sha256(template_of(tokenizer).encode()).hexdigest(),
    )
