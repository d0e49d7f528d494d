"""One copy on several devices: its blocks stand in stretches, one device after the other, and the rest on the first.

What a block is called with is moved to its device, and in a whole model what the last one gives back to the first, where final norm
and LM head are. Nothing else comes back while passes run: a device that waits for no later one may begin the next
pass while those are at the last.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, Final

import torch
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import PreTrainedModel

from monitor.errors import ModelError
from monitor.logs import get_logger
from monitor.replay.layers import blocks, text_stack
from monitor.replay.memory import GIB, sizes
from monitor.settings import ReplaySettings

LARGEST_SHARE: Final = 0.9
"""Of a device's free memory that weights may take: what runs through them needs the rest."""
log = get_logger(__name__)


def devices(settings: ReplaySettings) -> tuple[torch.device, ...]:
    """Those that the copy is spread over: every GPU that this process sees; none where it is not to be spread."""
    if settings.device_map is None or not torch.cuda.is_available():
        return ()
    return tuple(torch.device("cuda", index) for index in range(torch.cuda.device_count()))


def free_bytes(device: torch.device) -> int:
    """Memory of a GPU that nobody uses."""
    return int(torch.cuda.mem_get_info(device)[0])


def spread(
    whole: PreTrainedModel, over: Sequence[torch.device], free: Sequence[int], *, full: bool
) -> tuple[torch.device, ...]:
    """Put ``whole`` on the devices ``over``, of which ``free`` bytes each can be had; the device of each block.

    ``full``: it has its LM head, so that what its last block gives is brought back to the first device.

    Raises `ModelError` when it does not fit, or when blocks on different devices share a weight.
    """
    stack = blocks(text_stack(whole))
    taken = sizes(whole)
    counts = shares(taken.blocks, taken.rest, free)
    if not counts:
        raise ModelError(
            f"replay.device_map: the copy's weights take {taken.bytes / GIB:.1f} GiB, and its devices have "
            + " + ".join(f"{one / GIB:.1f}" for one in free)
            + " GiB free",
            hint="give more or larger GPUs, replay.dtype bfloat16, or replay.backend vllm",
        )
    places = tuple(device for device, count in zip(over, counts, strict=True) for _ in range(count))
    _require_own_weights(whole, stack, places)
    _move(whole, stack, places, over[0])
    _link(stack, places, over[0], back=full)
    log.info(
        "model.placement",
        blocks={str(device): count for device, count in zip(over, counts, strict=True)},
        gib=round(taken.bytes / GIB, 2),
    )
    return places


def shares(block_bytes: Sequence[int], rest: int, free: Sequence[int]) -> list[int]:
    """How many blocks, in order, each device gets, so that the fullest is as empty as can be; empty if none fits.

    The first device also holds ``rest``.
    """
    ends = [0, *accumulate(block_bytes)]
    fullest = [math.inf] * len(ends)
    fullest[0] = 0.0
    cuts: list[list[int]] = []
    for place, room in enumerate(free):
        own = rest if place == 0 else 0

        def share(first: int, last: int, room: int = room, own: int = own) -> float:
            used = ends[last] - ends[first] + own
            return used / room if room else math.inf * (used > 0) if used else 0.0

        best = [
            min((max(fullest[first], share(first, last)), first) for first in range(last + 1))
            for last in range(len(ends))
        ]
        fullest = [largest for largest, _ in best]
        cuts.append([first for _, first in best])
    if fullest[-1] > LARGEST_SHARE:
        return []
    counts: list[int] = []
    last = len(block_bytes)
    for cut in reversed(cuts):
        counts.append(last - cut[last])
        last = cut[last]
    return counts[::-1]


def _require_own_weights(
    whole: PreTrainedModel, stack: torch.nn.ModuleList, places: Sequence[torch.device]
) -> None:
    where: dict[int, torch.device] = {}
    for block, place in zip(stack, places, strict=True):
        for weight in block.parameters():
            if where.setdefault(id(weight), place) != place:
                raise ModelError(
                    f"replay.device_map: blocks of {whole.config.model_type} share weights, and cannot stand apart",
                    hint="leave replay.device_map out, or use replay.backend vllm",
                )


def _move(
    whole: PreTrainedModel,
    stack: torch.nn.ModuleList,
    places: Sequence[torch.device],
    first: torch.device,
) -> None:
    at = {
        module: place
        for block, place in zip(stack, places, strict=True)
        for module in block.modules()
    }
    new: dict[int, torch.nn.Parameter] = {}
    # Modules one by one, not ``whole.to``, which would take the blocks along; what is tied stays tied.
    for module in whole.modules():
        place = at.get(module, first)
        for name, weight in module.named_parameters(recurse=False):
            if id(weight) not in new:
                new[id(weight)] = torch.nn.Parameter(weight.detach().to(place), requires_grad=False)
            setattr(module, name, new[id(weight)])
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(place))


def _link(
    stack: torch.nn.ModuleList, places: Sequence[torch.device], first: torch.device, *, back: bool
) -> None:
    """Hooks that stay as long as the weights stand where they do: they are a part of the copy."""
    brought = {place: WeakTensorKeyDictionary() for place in places}
    for block, place in zip(stack, places, strict=True):
        if place != first:
            block.register_forward_pre_hook(_bringing(place, brought[place]), with_kwargs=True)
    if back and places[-1] != first:
        stack[-1].register_forward_hook(lambda _module, _inputs, output: moved(output, first))


def _bringing(place: torch.device, brought: WeakTensorKeyDictionary) -> Any:
    """What stays the same for all blocks is ``brought`` once a pass: each time, its device waits for this one."""

    def hook(_module: Any, inputs: tuple[Any, ...], options: Mapping[str, Any]) -> Any:
        named = {name: moved(one, place, brought) for name, one in options.items()}
        return moved(inputs, place), named

    return hook


def moved(value: Any, place: torch.device, brought: WeakTensorKeyDictionary | None = None) -> Any:
    """``value`` on ``place`` where it is a tensor, or a list or tuple with tensors inside; else as it is."""
    if isinstance(value, torch.Tensor):
        if brought is None or value.device == place:
            return value.to(place)
        if value not in brought:
            brought[value] = value.to(place)
        return brought[value]
    if type(value) in (list, tuple):
        return type(value)(moved(one, place, brought) for one in value)
    return value
