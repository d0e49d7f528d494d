"""LoRA adapters: low-rank changes of a model's weights, merged into the copy when it is loaded, or put beside it.

A served model is often a base model with an adapter, and a candidate for release nearly always is.
The folder is what peft's ``save_pretrained`` writes: ``adapter_config.json`` and
``adapter_model.safetensors``. Pickled weights are refused, and nothing is fetched.

Shapes: d_in, d_out = width of a linear layer's input and output, r = rank.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import nn
from transformers import GenerationMixin, PreTrainedModel

from monitor.errors import ConfigurationError, ModelError
from monitor.given import LARGEST_JSON, read_given
from monitor.logs import get_logger
from monitor.replay.layers import MEDIA, blocks, text_stack
from monitor.replay.swapped import Place, swapped

CONFIG_FILE: Final = "adapter_config.json"
TENSOR_FILE: Final = "adapter_model.safetensors"
FIELD: Final = "replay.adapter"
"""The setting that names an adapter to merge."""
PEFT_PREFIX: Final = "base_model.model."
UNMERGEABLE: Final = {
    "alora_invocation_tokens": "it is active only behind an invocation (aLoRA)",
    "arrow_config": "it is routed per token (Arrow)",
    "layer_replication": "it adds blocks to the model",
    "megatron_config": "it was made for a Megatron model",
}
_NOT_IN_HASH: Final = frozenset(
    {"base_model_name_or_path", "inference_mode", "peft_version", "revision", "task_type"}
)
log = get_logger(__name__)


def adapter_hash(folder: Path) -> str:
    """SHA-256 of the adapter's tensors, all of them, and of the settings that scale them."""
    config = _config(folder)
    kept = {name: value for name, value in config.items() if name not in _NOT_IN_HASH}
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode())
    with (folder / TENSOR_FILE).open("rb") as stream:
        digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def merge(whole: PreTrainedModel, folder: Path, *, full: bool, layers: int) -> None:
    """Add the adapter in ``folder`` to the weights of ``whole``, in place: W + (alpha / r) B A.

    ``whole`` is the model with LM head if ``full``, else its stack of blocks, which may end before
    the model's own ``layers``; what the adapter changes behind it, or where images and sound are
    read, is left out. The product is taken in float32 and rounded once, to the weights' dtype. Raises
    `ModelError` when the adapter is damaged, of another kind, or made for another model,
    `ConfigurationError` without peft.
    """
    adapted = _attached(whole, folder, FIELD, full=full, layers=layers)
    if adapted is None:
        return
    adapted.merge_and_unload(safe_merge=True)
    whole.train(False).requires_grad_(False)


@dataclass(frozen=True, slots=True)
class Beside:
    """An adapter that is not merged: the model is as it was but within `at_work`. Its weights are shared."""

    places: Sequence[Place]

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Within the context the model is the adapted one, whatever happens in it."""
        with swapped(self.places):
            yield

    @property
    def bytes(self) -> int:
        """What it takes in memory beside the model."""
        shared = {id(weight) for place in self.places for weight in place.plain.parameters()}
        own = {
            id(weight): weight.nbytes
            for place in self.places
            for weight in place.other.parameters()
            if id(weight) not in shared
        }
        return sum(own.values())


def beside(whole: PreTrainedModel, folder: Path, field: str) -> Beside:
    """The adapter in ``folder``, which ``field`` of the settings names, for ``whole``, loaded in full.

    Nothing of ``whole`` is changed. Raises as `merge` does.
    """
    before = [
        (parent, name, module)
        for parent in whole.modules()
        for name, module in parent.named_children()
    ]
    known = whole.__dict__.pop("peft_config", None)  # of an adapter that was merged
    try:
        _attached(whole, folder, field, full=True, layers=0, untie=False)
        whole.train(False).requires_grad_(False)
        places = [
            Place(parent, name, module, getattr(parent, name))
            for parent, name, module in before
            if getattr(parent, name) is not module
        ]
    finally:
        for parent, name, module in before:
            if getattr(parent, name) is not module:
                setattr(parent, name, module)
        whole.__dict__.pop("peft_config", None)
        if known is not None:
            whole.__dict__["peft_config"] = known
    return Beside(places)


def _attached(
    whole: PreTrainedModel,
    folder: Path,
    field: str,
    *,
    full: bool,
    layers: int,
    untie: bool = True,
) -> Any:
    """peft's model around ``whole``, whose modules it has replaced; None where the adapter changes none of them.

    ``untie``: an LM head that shares its weights gets its own, which only a merge needs.
    """
    peft = _peft(field)
    given = _config(folder, field)
    if base := _other_name(given, whole):
        log.warning("adapter.base_named_differently", adapter=folder.name, base=base)
    prefix = whole.base_model_prefix
    # Some multimodal models have no class of their own without an LM head.
    named = isinstance(whole, GenerationMixin)
    target: nn.Module = whole if named else _Named(prefix, whole)
    later = range(len(blocks(text_stack(whole))), layers)
    tensors = _fitting(
        _tensors(folder), target, folder, lambda name: _left_out(name, prefix, later, full=full)
    )
    if not tensors:
        return None
    config = peft.LoraConfig.from_pretrained(str(folder))
    config.inference_mode = True
    names = [name for name, _ in target.named_modules()]
    # peft refuses a module that the shortened copy does not have, such as the LM head.
    config.modules_to_save = [
        module
        for module in config.modules_to_save or ()
        if any(name.endswith(module) for name in names)
    ] or None
    if full and untie:
        _untie(whole, {_module_name(key) for key in tensors})
    elif not full:
        config.ensure_weight_tying = False
    adapted = peft.PeftModel(target, config)
    result = peft.set_peft_model_state_dict(adapted, tensors)
    if lacking := [key for key in result.missing_keys if ".lora_" in key]:
        raise ModelError(
            f"{folder / TENSOR_FILE} lacks {len(lacking)} tensors that its configuration "
            f"announces, first {lacking[0].removeprefix(PEFT_PREFIX)}",
            hint="save the adapter again",
        )
    return adapted


def _untie(whole: PreTrainedModel, changed: Collection[str]) -> None:
    """Give the LM head its own weights where the adapter changes weights that it shares with the input.

    Training changes the output of one end, or of each; merged into shared weights, one change would
    reach both ends, and two would add up.
    """
    model: Any = whole
    ends = model.get_input_embeddings(), model.get_output_embeddings()
    if ends[0].weight is ends[1].weight and any(
        module in ends for name, module in whole.named_modules() if name in changed
    ):
        ends[1].weight = nn.Parameter(ends[1].weight.detach().clone(), requires_grad=False)


class _Named(nn.Module):
    """The stack under the name that it has in the whole model, which adapters spell out."""

    def __init__(self, name: str, stack: nn.Module) -> None:
        super().__init__()
        self.add_module(name, stack)


def _peft(field: str) -> Any:
    try:
        import peft
    except ImportError:
        raise ConfigurationError(
            f"{field} needs peft",
            hint="pip install '.[research]' in a checkout of the monitor",
        ) from None
    return peft


def _config(folder: Path, field: str = FIELD) -> Mapping[str, Any]:
    """The adapter's configuration, after everything was refused that cannot be merged."""
    if not folder.is_dir():
        raise ModelError(f"{field}: no folder {folder}")
    file = folder / CONFIG_FILE
    try:
        config: Any = json.loads(read_given(file, LARGEST_JSON))
    except FileNotFoundError:
        raise ModelError(
            f"{field}: {folder} holds no {CONFIG_FILE}",
            hint="give the folder that peft's save_pretrained wrote",
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file} cannot be read: {error}") from None
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind != "LORA" or not isinstance(config, dict):
        raise ModelError(f"{file}: peft_type is {kind!r}; only LORA adapters are merged")
    for name, reason in UNMERGEABLE.items():
        if config.get(name):
            raise ModelError(f"{file}: {name} is set: {reason}, so it cannot be merged")
    if not (folder / TENSOR_FILE).is_file():
        pickles = any(folder.glob("*.bin")) or any(folder.glob("*.pt"))
        raise ModelError(
            f"{field}: {folder} holds no {TENSOR_FILE}"
            + ("; pickled weights are never loaded, they can run code" if pickles else ""),
            hint="save the adapter again with safetensors",
        )
    return config


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    file = folder / TENSOR_FILE
    try:
        tensors = load_tensors(file.read_bytes())
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{file} cannot be read: {error}", hint="fetch it again") from None
    if not tensors:
        raise ModelError(f"{file} holds no tensors", hint="save the adapter again")
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ModelError(f"{file}: {key} is not finite", hint="the training diverged")
    return tensors


def _other_name(config: Mapping[str, Any], whole: PreTrainedModel) -> str:
    """The base model that the adapter names, where the copy's folder has another name."""
    named = str(config.get("base_model_name_or_path") or "").rstrip("/")
    ours = Path(whole.config._name_or_path).name
    return named if named.rpartition("/")[2] != ours else ""


def _fitting(
    tensors: Mapping[str, torch.Tensor],
    target: nn.Module,
    folder: Path,
    left_out: Callable[[str], bool],
) -> dict[str, torch.Tensor]:
    """The tensors that change a module of ``target``; `ModelError` where one fits no module."""
    modules = dict(target.named_modules())
    kept = {}
    for key, tensor in tensors.items():
        name = _module_name(key)
        if name in modules:
            _check_width(key, tensor, modules[name], folder)
            kept[key] = tensor
        elif not left_out(name):
            raise ModelError(
                f"the adapter {folder} changes {name}, which the model does not have",
                hint="give the base model that the adapter was trained on",
            )
    return kept


def _module_name(key: str) -> str:
    name = key.removeprefix(PEFT_PREFIX)
    # peft saves an adapted embedding's own weights too, under ``base_layer``.
    adapted = re.split(r"\.(?:lora_|token_adapter\.|base_layer\.)", name, maxsplit=1)
    return adapted[0] if len(adapted) > 1 else name.rpartition(".")[0]


def _left_out(name: str, prefix: str, later: range, *, full: bool) -> bool:
    """Whether a copy rightly lacks the module: media always, LM head and ``later`` blocks unless ``full``."""
    if MEDIA.search(f"{name}."):
        return True
    if full:
        return False
    if not name.startswith(f"{prefix}."):
        return True
    block = re.search(r"\.(\d+)(?:\.|$)", name)
    return block is not None and int(block.group(1)) in later


def _check_width(key: str, tensor: torch.Tensor, module: nn.Module, folder: Path) -> None:
    """LoRA's A is [r, d_in] and B is [d_out, r]; a transformers Conv1D keeps its weight [d_in, d_out]."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.ndim != 2:
        return
    outward, inward = weight.shape if isinstance(module, nn.Linear) else reversed(weight.shape)
    for part, axis, width in ((".lora_A.weight", 1, inward), (".lora_B.weight", 0, outward)):
        if key.endswith(part) and tensor.ndim == 2 and tensor.shape[axis] != width:
            raise ModelError(
                f"the adapter {folder} was made for a model of another width: "
                f"{key.removeprefix(PEFT_PREFIX)} is {tensor.shape[axis]} wide, the model's is {width}",
                hint="give the base model that the adapter was trained on",
            )
