"""Supervised fine-tuning on chats: the loss counts response tokens and the end of the turn alone.

Nothing is drawn but the order of the rows and LoRA's first weights, both from the seed: no dropout,
so a run that was stopped goes on as if it had not been. On a GPU that holds within the kernels'
own rounding.

Legend: b = rows of a batch, t = tokens of its longest row, v = vocabulary.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.nn import functional
from transformers import PreTrainedModel

from monitor.errors import BadInput, ConfigurationError, ModelError, StopLoudly
from monitor.replay.answer import padding, stock_attention
from monitor.replay.checkpoint import quiet
from monitor.replay.model import LoadedModel
from monitor.replay.taps import Edit, steered
from monitor.research.tuning.examples import IGNORED, batches, collated, digest, examples
from monitor.values.prompts import Prompt
from monitor.writing import replacing

Method = Literal["lora", "full"]
MOMENTS: Final = ("step", "exp_avg", "exp_avg_sq")
ADAPTER: Final = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneSettings:
    """How to fine-tune. ``lora`` adapts every linear layer but the LM head, ``full`` trains all weights.

    The learning rate rises linearly over ``warmup_steps``, then stays or falls to zero at ``steps``
    along half a cosine. Gradients are clipped to norm ``clip``. AdamW; ``bfloat16`` computes forward
    and backward in that type while the trained weights stay float32. Raises `BadInput` for nonsense.
    """

    learning_rate: float
    steps: int
    method: Method = "lora"
    rank: int = 32
    alpha: int = 64
    batch: int = 4
    warmup_steps: int = 5
    schedule: Literal["constant", "cosine"] = "cosine"
    weight_decay: float = 0.0
    clip: float = 1.0
    max_tokens: int = 512
    bfloat16: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "rank", "alpha", "batch"):
            if getattr(self, name) < 1:
                raise BadInput(f"tuning: {name} must be at least 1")
        for name in ("learning_rate", "clip"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise BadInput(f"tuning: {name} must be a positive number")
        if self.warmup_steps < 0 or not 0.0 <= self.weight_decay < math.inf or self.seed < 0:
            raise BadInput("tuning: warmup_steps, weight_decay and seed must not be negative")
        if self.max_tokens < 16:
            raise BadInput("tuning: max_tokens must be at least 16")

    def rate(self, step: int) -> float:
        """The learning rate of step number ``step``, from 0."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return self.learning_rate
        done = (step - self.warmup_steps) / max(self.steps - self.warmup_steps, 1)
        return self.learning_rate * 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))


class Tuner:
    """Fine-tunes a loaded model in place, one optimiser step at a call.

    ``loaded`` may be read between steps (by a `ReplayEngine`, by `answers`): it reads as trained so
    far. ``edits`` hold during training steps alone (preventative steering). A loaded model is tuned
    once; load it again for another run.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        prompts: Sequence[Prompt],
        settings: TuneSettings,
        edits: Sequence[Edit] = (),
    ) -> None:
        """Raises `BadInput` for examples that cannot be used, `ConfigurationError` for a model that
        was not loaded in full, or for ``full`` not in float32, or where peft is missing."""
        if loaded.answerer is None:
            raise ConfigurationError(
                "tuning needs the whole model", hint="load_model(…, full=True)"
            )
        self.loaded = loaded
        self.settings = settings
        self.edits = tuple(edits)
        self.steps_done = 0
        self._rows = examples(loaded, prompts, settings.max_tokens)
        self._adapted = _prepared(loaded.answerer, loaded, settings)
        self._trained = {
            name: weight
            for name, weight in loaded.answerer.named_parameters()
            if weight.requires_grad
        }
        self._optimiser = torch.optim.AdamW(
            self._trained.values(),
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            fused=loaded.device.type in ("cpu", "cuda"),
        )
        self._epoch: tuple[int, list[tuple[int, ...]]] = (-1, [])

    @property
    def model(self) -> PreTrainedModel:
        """The whole model as trained so far."""
        assert self.loaded.answerer is not None
        return self.loaded.answerer

    def step(self) -> float:
        """One optimiser step on the next batch; its mean loss per response token, in nats.

        Raises `StopLoudly` when the loss is not finite, before any weight is touched.
        """
        rows = [self._rows[index] for index in self._batch()]
        ids, targets = collated(rows, padding(self.loaded), self.loaded.device)
        with (
            stock_attention(self.loaded) as whole,
            steered(self.loaded.blocks, self.edits),
            torch.autocast(self.loaded.device.type, torch.bfloat16, enabled=self.settings.bfloat16),
        ):
            loss = response_loss(whole, ids, targets)
            value = float(loss.detach())
            if not math.isfinite(value):
                raise StopLoudly(
                    f"the loss of step {self.steps_done} is {value}",
                    hint="lower the learning rate, or check the model's weights",
                )
            loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._trained.values(), self.settings.clip)
        for group in self._optimiser.param_groups:
            group["lr"] = self.settings.rate(self.steps_done)
        self._optimiser.step()
        # The fused step does not count its writes, by which kept prefixes and packed weights know that they are old.
        torch.autograd.graph.increment_version(list(self._trained.values()))
        self._optimiser.zero_grad(set_to_none=True)
        self.steps_done += 1
        return value

    def save(self, folder: Path, *, adapter_only: bool = False) -> None:
        """Write the model as trained so far: safetensors, configuration and tokenizer.

        An adapter is merged into the weights written (not into those in memory), so that
        ``load_model`` reads the folder as any other; ``adapter_only`` writes peft's own format.
        """
        if adapter_only:
            if self._adapted is None:
                raise BadInput("a fully tuned model has no adapter; save the whole model")
            self._adapted.save_pretrained(str(folder), safe_serialization=True)
            return
        with quiet():
            self.model.save_pretrained(folder, state_dict=merged_weights(self.model))
        tokenizer = self.loaded.tokenizer
        # Whoever padded or cut with it left that in its file, and its hash would differ.
        tokenizer.backend_tokenizer.no_padding()
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.save_pretrained(folder)

    def checkpoint(self, file: Path, notes: Mapping[str, Any] | None = None) -> None:
        """Write all that `resume` needs into one safetensors file, in place of the one before.

        ``notes`` are JSON values of the caller's, which `resume` hands back.
        """
        tensors = {f"weight.{name}": weight.detach() for name, weight in self._trained.items()}
        for name, weight in self._trained.items():
            for moment, value in self._optimiser.state.get(weight, {}).items():
                tensors[f"{moment}.{name}"] = value
        state = {
            "steps_done": self.steps_done,
            "started_with": self._started_with(),
            "notes": dict(notes or {}),
        }
        with replacing(file) as beside:
            save_file(tensors, beside, metadata={"state": json.dumps(state)})

    def resume(self, file: Path) -> dict[str, Any]:
        """Go on from a `checkpoint`, as if the run had not been interrupted; the caller's notes.

        Raises `BadInput` when the file cannot be read or belongs to another run, naming what differs.
        """
        try:
            with safe_open(file, framework="pt", device=str(self.loaded.device)) as opened:
                state = json.loads((opened.metadata() or {})["state"])
                steps_done, begun = int(state["steps_done"]), dict(state["started_with"])
                notes: dict[str, Any] = state["notes"]
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise BadInput(
                f"{file} is no checkpoint, or was cut off: {error}", hint="start the run again"
            ) from None
        self._require_same(begun, file)
        expected = {f"weight.{name}": w.shape for name, w in self._trained.items()}
        if any(n not in tensors or tensors[n].shape != shape for n, shape in expected.items()):
            raise BadInput(f"{file} holds other weights than this run trains")
        with torch.no_grad():
            for name, weight in self._trained.items():
                weight.copy_(tensors[f"weight.{name}"])
                moments = {m: tensors[f"{m}.{name}"] for m in MOMENTS if f"{m}.{name}" in tensors}
                if moments:
                    self._optimiser.state[weight] = moments
        self.steps_done = steps_done
        return notes

    def _batch(self) -> tuple[int, ...]:
        """The rows of the next step: a function of the number of steps done, and of the seed."""
        per_epoch = math.ceil(len(self._rows) / self.settings.batch)
        epoch, at = divmod(self.steps_done, per_epoch)
        if self._epoch[0] != epoch:
            lengths = [len(row.ids) for row in self._rows]
            order = batches(lengths, self.settings.batch, self.settings.seed, epoch)
            self._epoch = (epoch, order)
        return self._epoch[1][at]

    def _started_with(self) -> dict[str, Any]:
        settings = asdict(self.settings)
        if self.settings.schedule == "constant":
            del settings["steps"]  # a longer run begins like a shorter one
        return settings | {
            "model": self.loaded.model_hash,
            "examples": digest(self._rows),
            "edits": _edits_digest(self.edits),
        }

    def _require_same(self, before: Mapping[str, Any], file: Path) -> None:
        now = self._started_with()
        differing = sorted(n for n in now.keys() | before.keys() if now.get(n) != before.get(n))
        if differing:
            raise BadInput(
                f"{file} belongs to a run with another {', '.join(differing)}",
                hint="give the same arguments, or start anew without resuming",
            )


def response_loss(whole: Any, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy, in nats, of ``targets`` (see `collated`) over those that count; float32.

    Logits are made from the token before the earliest target on: the prompts' are never needed.
    """
    kept = targets.shape[1]
    logits = whole(input_ids=ids, use_cache=False, logits_to_keep=kept + 1).logits
    logits = logits[:, -kept - 1 : -1]
    return functional.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED
    )


def merged_weights(whole: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The state of ``whole`` with its adapter, if it has one, added to the weights; new tensors."""
    adapted = {n: m for n, m in whole.named_modules() if hasattr(m, "get_delta_weight")}
    merged = {}
    for key, tensor in whole.state_dict().items():
        name, inside, rest = key.partition(".base_layer.")
        if inside:
            merged[f"{name}.{rest}"] = tensor
        elif ".lora_" not in key:
            merged[key] = tensor
    for name, module in adapted.items():
        change: torch.Tensor = module.get_delta_weight(ADAPTER)
        weight = merged[f"{name}.weight"]
        merged[f"{name}.weight"] = (weight.float() + change.detach().float()).to(weight.dtype)
    return merged


def _prepared(whole: PreTrainedModel, loaded: LoadedModel, settings: TuneSettings) -> Any:
    """Let gradients reach what is trained; the adapter around ``whole``, or None."""
    if hasattr(whole, "peft_config") or any(p.requires_grad for p in whole.parameters()):
        raise ConfigurationError("this model was tuned before", hint="load it again")
    if settings.method == "full":
        if loaded.dtype != torch.float32:
            raise ConfigurationError(
                f"full fine-tuning needs float32 weights, not {loaded.dtype}",
                hint="load with dtype float32; TuneSettings(bfloat16=True) still computes in bfloat16",
            )
        whole.requires_grad_(True)
        return None
    try:
        from peft import LoraConfig, get_peft_model
    except ModuleNotFoundError:
        raise ConfigurationError(
            "LoRA needs peft", hint="pip install '.[research]' in a checkout of the monitor"
        ) from None
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    devices = [loaded.device] if loaded.device.type == "cuda" else []
    with torch.random.fork_rng(devices), warnings.catch_warnings():
        # peft asks transformers by an old name whether activations are checkpointed.
        warnings.simplefilter("ignore", FutureWarning)
        torch.manual_seed(settings.seed)
        try:
            adapted = get_peft_model(whole, config, adapter_name=ADAPTER)
        except ValueError as error:
            raise ModelError(f"{loaded.model_id} takes no LoRA adapter: {error}") from error
    return adapted


def _edits_digest(edits: Sequence[Edit]) -> str:
    content = hashlib.sha256()
    for edit in edits:
        content.update(repr((edit.site, edit.add, edit.project_out, edit.first_position)).encode())
        content.update(edit.direction.detach().float().cpu().numpy().tobytes())
    return content.hexdigest()
