"""What a publisher's layer number means here.

Here ``layers.L`` is the output of the 0-based decoder block L, which transformers calls ``hidden_states[L + 1]``.
Two ways of counting are in use, and a file seldom says which:

- ``blocks``: layer L is the output of block L.
- ``hidden-states``: layer N is ``hidden_states[N]``: 0 the embeddings, N the output of block N - 1. The last one,
  ``hidden_states[number of blocks]``, stands behind the final norm: it is no residual stream.

============== =============== ============================== =======================================================
format         counts          file                           source
============== =============== ============================== =======================================================
repeng         blocks          ``.gguf``, ``direction.L``     vgel/repeng ``repeng/extract.py``: ``batched_get_hiddens``
                                                              reads ``hidden_states[layer + 1]``, so of the last block
                                                              behind the final norm
llama.cpp      hidden-states   ``.gguf``, ``direction.N``     ggml-org/llama.cpp ``tools/cvector-generator``: of the
                                                              tensors ``l_out-il`` it names ``direction.{il + 1}``
persona-       hidden-states   ``.pt``, [blocks + 1, d]       safety-research/persona_vectors ``generate_vec.py``:
vectors                                                       stacks ``hidden_states[0 … blocks]``
assistant-axis blocks          ``.pt``, [blocks, d], alone    safety-research/assistant-axis ``activations.py`` (hooks
                               or under ``axis``              on every block) and ``pipeline/5_axis.py``: default minus
                                                              role play, so it falls when a persona appears
plain          as the user     ``.safetensors``, ``.npy``,    –
               says            ``.pt``
============== =============== ============================== =======================================================

The two kinds of control vectors cannot be told apart by their files: the user must say which it is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from monitor.errors import BadInput
from monitor.values.features import Expected, Region

Counting = Literal["blocks", "hidden-states"]
Format = Literal["repeng", "llama.cpp", "persona-vectors", "assistant-axis", "plain"]
CONTROL: Final[tuple[Format, ...]] = ("repeng", "llama.cpp")
SUFFIXES: Final = (".safetensors", ".npy", ".gguf", ".pt", ".pth")
_COUNTING: Final[dict[Format, Counting]] = {
    "repeng": "blocks",
    "llama.cpp": "hidden-states",
    "persona-vectors": "hidden-states",
    "assistant-axis": "blocks",
}
_PERSONA_FILE: Final = re.compile(r"(.+)_(response_avg|prompt_avg|prompt_last)_diff")
_PERSONA_REGIONS: Final[dict[str, Region]] = {
    "response_avg": "response",
    "prompt_avg": "prompt",
    "prompt_last": "last_prompt_token",
}
_AXIS_FILES: Final = frozenset({"axis", "assistant_axis"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Convention:
    """How the numbers of a file's layers are read, and what its kind of vector does by its publisher's word."""

    format: Format
    counting: Counting
    name: str
    """What a feature is called when nobody names it."""
    region: Region
    expected: Expected

    def site(self, layer: int, blocks: int) -> int:
        """The decoder block, from 0, that the publisher's ``layer`` of a model of ``blocks`` means.

        Raises `BadInput` for the embeddings, for what stands behind the final norm, and for what is not in the model.
        """
        hidden = self.counting == "hidden-states"
        if hidden and layer == 0:
            raise BadInput(
                "--layer 0: hidden_states[0] are the embeddings, which are not read",
                hint=f"give a layer from 1 to {blocks - 1}, or --layers-are blocks where 0 is the first block",
            )
        site = layer - 1 if hidden else layer
        if not 0 <= site < blocks:
            raise BadInput(
                f"--layer {layer} is outside the model: it has {blocks} blocks",
                hint=f"give a layer from {int(hidden)} to {blocks - 1}, as {self.counting} count it",
            )
        if site == blocks - 1 and (hidden or self.format == "repeng"):
            raise BadInput(
                f"--layer {layer}: this vector was taken from hidden_states[{blocks}], which stands behind "
                "the final norm and is not the residual stream",
                hint=f"give a layer up to {layer - 1}; if it is the output of the last block itself: "
                f"--format plain --layers-are blocks --layer {blocks - 1}",
            )
        return site

    def rows(self, blocks: int) -> int:
        """How many rows a stack of all layers has."""
        return blocks + (self.counting == "hidden-states")


def convention(
    path: Path, given: Format | None, counting: Counting | None, axis: bool
) -> Convention:
    """How the layers of the file ``path`` are counted, by the options and by what the file is.

    ``axis``: it holds a tensor of that name beside others. Raises `BadInput` where nobody says it, and where
    ``counting`` contradicts the format.
    """
    persona = _PERSONA_FILE.fullmatch(path.stem)
    format = given or _recognised(path, persona is not None, axis)
    known = _COUNTING.get(format)
    if known and counting not in (None, known):
        raise BadInput(
            f"--layers-are {counting}: {path.name} is of format {format}, which counts {known}",
            hint=f"leave --layers-are out; if the file is of another kind: --format plain --layers-are {counting}",
        )
    if (path.suffix == ".gguf") != (format in CONTROL):
        raise BadInput(
            f"--format {format}: {path.name} cannot be of it",
            hint="repeng and llama.cpp are .gguf files, the other formats are none",
        )
    counted = known or counting
    if counted is None:
        raise BadInput(
            f"{path.name} does not say how its layers are counted",
            hint="give --layers-are blocks (layer L is the output of the 0-based decoder block L) or "
            "--layers-are hidden-states (0 is the embeddings), as its publisher does",
        )
    told = persona if format == "persona-vectors" else None
    return Convention(
        format=format,
        counting=counted,
        name=told.group(1) if told else path.stem,
        region=_PERSONA_REGIONS[told.group(2)] if told else "response",
        expected="falls" if format == "assistant-axis" else "rises",
    )


def _recognised(path: Path, persona: bool, axis: bool) -> Format:
    if path.suffix == ".gguf":
        raise BadInput(
            f"{path.name}: repeng and llama.cpp write the same kind of file and count layers differently",
            hint="give --format repeng or --format llama.cpp, by the program that made it: "
            "direction.16 is the output of block 16 for repeng, of block 15 for llama.cpp's generator",
        )
    if path.suffix in (".pt", ".pth"):
        if persona:
            return "persona-vectors"
        if axis or path.stem in _AXIS_FILES:
            return "assistant-axis"
    return "plain"
