"""A copy of the model, ready to be replayed."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from monitor.replay.layers import blocks
from monitor.replay.plan import PADDING, Way
from monitor.replay.swapped import Place, swapped
from monitor.replay.variable import VariableKernel
from monitor.values.identity import ModelIdentity

Ground = Literal["tested", "proven", "batched", "disproven", "excluded"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """How the copy's prompts are run, and on what ground.

    ``tested``: packed, an architecture that the project's tests compare with transformers.
    ``proven``: packed, since this very copy read short prompts packed as it reads them alone.
    ``batched``: in batches of like length, since it read short prompts so as it reads them alone;
    ``reason`` says why not packed.
    ``disproven``: one by one, since it did neither: ``reason`` says what happened.
    ``excluded``: one by one, by a rule that no short prompt could find out: ``reason`` names it.

    ``difference`` is the largest that the proof of this way found, relative to a token's residual
    stream, and ``seconds`` is what proving took. ``padding`` is the largest share of a batch that may be
    filled up: 0 where only prompts of equal length were read in batches as alone.
    """

    ground: Ground
    reason: str = ""
    difference: float | None = None
    seconds: float = 0.0
    padding: float = PADDING

    @property
    def way(self) -> Way:
        if self.ground == "batched":
            return "batched"
        return "packed" if self.ground in ("tested", "proven") else "alone"

    @property
    def sentence(self) -> str:
        """For people: what is done, and why."""
        if self.ground == "tested":
            return "packed"
        if self.ground == "proven":
            return f"packed, {self._proof}"
        if self.ground == "batched":
            length = "like" if self.padding else "equal"
            return f"in batches of {length} length, {self._proof}: {self.reason}"
        if self.ground == "disproven":
            return f"one prompt at a time, found out in {self.seconds:.1f} s: {self.reason}"
        return f"one prompt at a time: {self.reason}"

    @property
    def _proof(self) -> str:
        return f"proven on this copy in {self.seconds:.1f} s (difference {self.difference:.1g})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fused:
    """Modules of the copy that have a faster equal, and where: see `monitor.replay.fused`."""

    places: tuple[Place, ...] = ()

    def at_work(self) -> AbstractContextManager[None]:
        """Within the context the faster ones stand in their places, but for modules that somebody has changed."""
        return swapped([place for place in self.places if place.untouched])

    @property
    def kinds(self) -> str:
        """Which kinds of pieces there are, in words with a blank between."""
        return " ".join(sorted({type(place.other).__name__.lower() for place in self.places}))


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A copy ready to be replayed.

    ``model`` is the stack of blocks without LM head, ``answerer`` the whole model around the same
    weights when it was loaded in full, ``config`` the full model's own configuration (of a
    multimodal one, that of its text part). ``packing`` says whether several prompts may be
    run at once, and how. ``kernel`` takes the attention of such a row
    at once, where one was found and proven. ``identity`` is that of the full model,
    every hash known. ``served`` is the precision that a quantised checkpoint is served in, empty for
    an open one: the copy has its weights dequantised, and activations that are not quantised. ``fused``
    are the faster equals of some of its modules, which stand there while a replay runs. ``recurrent``
    are its parts with a state, and what takes a packed row apart for them. ``places`` are the devices of its blocks where these are not all on ``device``, on which everything else stands.
    """

    model: PreTrainedModel
    answerer: PreTrainedModel | None
    tokenizer: Any
    config: PreTrainedConfig
    device: torch.device
    dtype: torch.dtype
    packing: Packing
    attention: str
    identity: ModelIdentity
    kernel: VariableKernel | None = None
    served: str = ""
    fused: Fused = Fused()
    recurrent: tuple[Place, ...] = ()
    places: tuple[torch.device, ...] = ()

    def place(self, site: int) -> torch.device:
        """The device on which the residual stream of ``site`` stands: behind the last block of a whole model, the first one."""
        if not self.places or (self.answerer is not None and site + 1 == len(self.places)):
            return self.device
        return self.places[site]

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """Every device that the copy stands on, the first one first."""
        return tuple(dict.fromkeys((self.device, *self.places)))

    @property
    def packed(self) -> bool:
        return self.packing.way == "packed"

    @property
    def rules(self) -> dict[str, object]:
        """What the lineage says of the copy beside its own fields: only what not every copy has."""
        rules: dict[str, object] = {}
        if self.packing.ground != "tested":
            rules["packing"] = self.packing.ground
        if self.served:
            rules["served"] = self.served
        if self.fused.places:
            rules["fused"] = self.fused.kinds
        return rules

    @property
    def precision(self) -> str:
        """For people: the precision it is replayed in, and of a quantised checkpoint that it is served in."""
        replayed = str(self.dtype).removeprefix("torch.")
        return f"{replayed}, dequantised (served: {self.served})" if self.served else replayed

    @property
    def model_id(self) -> str:
        return self.identity.model_id

    @property
    def model_hash(self) -> str:
        return str(self.identity.weights_hash)

    @property
    def blocks(self) -> torch.nn.ModuleList:
        return blocks(self.model)
