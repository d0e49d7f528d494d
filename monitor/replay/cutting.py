"""A checkpoint cut behind a block, as a folder of its own: for engines that only load what a folder holds.

The folder has the first blocks, the embeddings and the final norm, a configuration that says so, and the
tokenizer. Files that are taken whole are hard links where the disk allows it. `cut.json` says which model it
was cut from, so that packs made for that model fit the copy.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from safetensors import safe_open
from transformers import AutoConfig, PreTrainedConfig

from monitor.errors import BadInput, ModelError
from monitor.given import LARGEST_JSON, read_given
from monitor.replay.checkpoint import (
    INDEX,
    WHOLE,
    Checkpoint,
    found,
    is_final_norm,
    is_head,
    later,
    shards_of,
    translated,
)
from monitor.replay.cut import CUT_FILE, Cut, cut_of
from monitor.replay.model import identity_of
from monitor.replay.weights import read_header, weights_hash
from monitor.settings import ReplaySettings

BESIDE: Final = (".json", ".jinja", ".txt", ".model", ".tiktoken")
"""Endings of the small files that are taken along: tokenizer, template, what generates and processes. No code."""
COPIED_BYTES: Final = 16 * 1024 * 1024
COUNTED_FROM_THE_END: Final = "num_kv_shared_layers"
DRAFTING: Final = "num_nextn_predict_layers"
BLOCKS: Final = "num_hidden_layers"


@dataclass(frozen=True, slots=True, kw_only=True)
class CutCheckpoint:
    """What was written: ``blocks`` of ``of``; bytes that are links, and bytes that were copied."""

    folder: Path
    blocks: int
    of: int
    linked_bytes: int
    copied_bytes: int
    head: bool


def cut_checkpoint(
    model: Path,
    after_block: int,
    folder: Path,
    *,
    head: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> CutCheckpoint:
    """Write ``model`` up to block ``after_block`` into ``folder``, which must be new or empty.

    Without ``head`` the copy has no LM head of its own: its configuration ties it to the embeddings, so that
    engines load it, and what it would generate means nothing either way. Blocks for as long as the disk
    takes. Raises `ModelError` when the model cannot be cut there, `BadInput` when ``folder`` is in use.
    """
    settings = ReplaySettings(model=model, device="cpu")
    checkpoint = found(settings)
    blocks = _require_cuttable(checkpoint, model, after_block)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadInput(f"--to: {folder} is in use", hint="name a new folder, or empty this one")
    report("reading which model it is")
    of = identity_of(settings)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        _write_config(checkpoint, blocks, folder, head=head)
        for file in _beside(model):
            _linked(file, folder / file.name)
        linked, copied = _write_weights(checkpoint, blocks, folder, head=head, report=report)
        _require_same_config(checkpoint, blocks, folder)
        record = Cut(blocks=blocks, of=of, files_hash=weights_hash(_weight_files(folder)))
        (folder / CUT_FILE).write_text(record.text(), encoding="utf-8")
    except BaseException:
        # Half a copy must not be taken for one.
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return CutCheckpoint(
        folder=folder,
        blocks=blocks,
        of=of.layers,
        linked_bytes=linked,
        copied_bytes=copied,
        head=head,
    )


def _require_cuttable(checkpoint: Checkpoint, model: Path, after_block: int) -> int:
    """The number of blocks that are left."""
    text = checkpoint.text
    if checkpoint.gguf is not None:
        raise ModelError(
            f"{model} is a GGUF file", hint="cut the safetensors that it was made from"
        )
    if cut_of(checkpoint.folder) is not None:
        raise ModelError(f"{model} was cut already", hint="cut the model that it was cut from")
    if not 0 <= after_block < text.num_hidden_layers:
        raise BadInput(
            f"--after-block {after_block}: {model} has blocks 0 to {text.num_hidden_layers - 1}",
            hint="give the deepest site of the pack; `monitor pack inspect` shows it",
        )
    if getattr(text, "hidden_size_per_layer_input", None):
        raise ModelError(
            f"{text.model_type} has embeddings for each block in one matrix, which would have to be cut, too",
            hint="replay the whole folder: our own copy leaves the later blocks out while it is loaded",
        )
    return after_block + 1


# --- the configuration -----------------------------------------------------------------------------


def _write_config(checkpoint: Checkpoint, blocks: int, folder: Path, *, head: bool) -> None:
    file = checkpoint.folder / "config.json"
    raw: dict[str, Any] = json.loads(read_given(file, LARGEST_JSON))
    text = raw
    if checkpoint.text is not checkpoint.config:
        name = next(
            (n for n in raw if getattr(checkpoint.config, n, None) is checkpoint.text), None
        )
        if name is None:
            raise ModelError(
                f"{file} does not hold the configuration of the model's text part in one place",
                hint="export its language model to a folder of its own",
            )
        text = raw[name]
    whole: int = checkpoint.text.num_hidden_layers
    for key, value in list(text.items()):
        text[key] = _first(key, value, whole, blocks)
    counted = {BLOCKS, _own_name(checkpoint.text)} & text.keys() or {BLOCKS}
    text |= dict.fromkeys(counted, blocks)
    if not head:
        raw["tie_word_embeddings"] = text["tie_word_embeddings"] = True
    (folder / "config.json").write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")


def _own_name(text: PreTrainedConfig) -> str:
    """What the architecture itself calls the number of its blocks."""
    return str((getattr(text, "attribute_map", None) or {}).get(BLOCKS, BLOCKS))


def _first(key: str, value: Any, whole: int, blocks: int) -> Any:
    """What is left of an entry of the configuration: of one for each block, the first ``blocks``."""
    if key == COUNTED_FROM_THE_END and isinstance(value, int):
        return max(0, blocks - (whole - value))
    if key == DRAFTING:
        return 0
    if _for_each_block(key, value, whole):
        return value[:blocks]
    return value


def _for_each_block(key: str, value: Any, whole: int) -> bool:
    if isinstance(value, str):
        return key.endswith("_pattern") and len(value) == whole
    return isinstance(value, list | tuple) and len(value) == whole and "token_id" not in key


def _require_same_config(checkpoint: Checkpoint, blocks: int, folder: Path) -> None:
    """What the library makes of the cut configuration says of each block that is left what the whole one says.

    Some configurations fill in what is not written, counted from the last block.
    """
    with translated(folder):
        cut: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
    if checkpoint.text is not checkpoint.config:
        cut = cut.get_text_config()
    whole, left = checkpoint.text.to_dict(), cut.to_dict()
    layers: int = checkpoint.text.num_hidden_layers
    changed = {BLOCKS, _own_name(checkpoint.text), "tie_word_embeddings"}
    changed |= {"quantization_config", "transformers_version", "_name_or_path"}
    for key in sorted(whole.keys() - changed):
        expected = json.loads(json.dumps(_first(key, whole[key], layers, blocks), default=str))
        if json.loads(json.dumps(left.get(key), default=str)) != expected:
            raise ModelError(
                f"{checkpoint.text.model_type}: {key} of the first blocks depends on how many follow",
                hint="replay the whole folder: our own copy leaves the later blocks out while it is loaded",
            )


# --- files -----------------------------------------------------------------------------------------


def _beside(model: Path) -> list[Path]:
    written = {"config.json", INDEX, CUT_FILE}
    return sorted(
        file
        for file in model.iterdir()
        if file.suffix in BESIDE and file.name not in written and file.is_file()
    )


def _linked(file: Path, to: Path) -> bool:
    """``to`` is ``file``: a hard link where the disk allows it, else a copy."""
    try:
        os.link(file.resolve(), to)
    except OSError:
        shutil.copyfile(file, to)
        return False
    return True


def _weight_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _write_weights(
    checkpoint: Checkpoint,
    blocks: int,
    folder: Path,
    *,
    head: bool,
    report: Callable[[str], None],
) -> tuple[int, int]:
    """Bytes that are linked, and that were copied."""

    def kept(name: str) -> bool:
        if is_final_norm(name) or (head and is_head(name)):
            return True
        return not later(name, blocks) and not is_head(name)

    linked = copied = 0
    weight_map: dict[str, str] = {}
    total = 0
    for file in _files_with(checkpoint.folder, kept):
        report(f"cutting {file.name}")
        size = file.stat().st_size
        with file.open("rb") as stream:
            begins, tensors = read_header(stream, size)
            taken = {name: entry for name, entry in tensors.items() if kept(name)}
            if not taken:
                continue
            to = folder / file.name
            if len(taken) == len(tensors) and _linked(file, to):
                linked += size
            else:
                with safe_open(file, framework="pt") as held:
                    notes = held.metadata() or {"format": "pt"}
                _copy_tensors(stream, 8 + begins, taken, notes, to)
                copied += to.stat().st_size
        weight_map |= dict.fromkeys(taken, file.name)
        total += sum(end - start for start, end in (t["data_offsets"] for t in taken.values()))
    if set(weight_map.values()) != {WHOLE}:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return linked, copied


def _files_with(folder: Path, kept: Callable[[str], bool]) -> Iterator[Path]:
    """The files that hold something of what is kept; others need not be there."""
    if (folder / WHOLE).is_file():
        yield folder / WHOLE
        return
    shards = {name: file for name, file in shards_of(folder / INDEX).items() if kept(name)}
    for file in sorted(set(shards.values())):
        if not (folder / file).is_file():
            raise ModelError(f"{folder} lacks the shard {file}", hint="fetch the model again")
        yield folder / file


def _copy_tensors(
    source: Any, begins: int, taken: Mapping[str, Any], notes: Mapping[str, str], to: Path
) -> None:
    """A safetensors file of the tensors ``taken`` out of ``source``, byte by byte, in whatever precision.

    ``notes`` are those of its header: some formats say there how their weights are stored.
    """
    order = sorted(taken, key=lambda name: taken[name]["data_offsets"])
    header: dict[str, Any] = {"__metadata__": dict(notes)}
    place = 0
    for name in order:
        start, end = taken[name]["data_offsets"]
        header[name] = taken[name] | {"data_offsets": (place, place + end - start)}
        place += end - start
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with to.open("xb") as into:
        into.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            start, end = taken[name]["data_offsets"]
            source.seek(begins + start)
            left = end - start
            while left:
                piece = source.read(min(left, COPIED_BYTES))
                if not piece:
                    raise ModelError(f"{source.name} is cut short", hint="fetch the model again")
                into.write(piece)
                left -= len(piece)
