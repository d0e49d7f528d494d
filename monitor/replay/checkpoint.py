"""Where a model lies on disk: its folder or GGUF file, configuration, tokenizer, and the shards that are needed.

Nothing is fetched, no pickle is loaded, and no code from a model folder is ever run.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig

from monitor.errors import ModelError, MonitorError
from monitor.given import LARGEST_JSON, read_given
from monitor.replay.adapter import CONFIG_FILE as ADAPTER_CONFIG
from monitor.replay.gguf_reading import without_vocabulary
from monitor.replay.layers import MEDIA, text_config
from monitor.replay.quantised.form import Format
from monitor.replay.quantised.formats import taken_format
from monitor.settings import ReplaySettings

LARGEST_TEMPLATE = 4 * 1024 * 1024
PROCESSOR_TEMPLATE = "chat_template.json"
WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
"""Where the name of a tensor tells its block: the first number is the block's, later ones an expert's."""
_NORM = re.compile(
    r"(?:^|\.)(?:norm|norm_f|ln_f|final_norm|final_layernorm|final_layer_norm|embedding_norm)"
    r"\.(?:weight|bias)$"
)
_HEAD = re.compile(r"(?:^|\.)(?:lm_head|embed_out|output)\.(?:weight|bias)$")
"""Final norms and LM heads. Within a block the same words name other things, but those have its number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A model that was found, its weights not read.

    ``config`` is that of the whole model, ``text`` that of what reads text in it: the same, unless
    the model is multimodal. ``source`` are the options that transformers reads the folder with.
    ``tokenizer`` is that of every copy in this process: nobody may change it.
    ``form`` is how the weights are stored where they are quantised; ``config`` no longer says it.
    """

    folder: Path
    gguf: Path | None
    source: Mapping[str, Any]
    config: PreTrainedConfig
    text: PreTrainedConfig
    tokenizer: Any
    tokenizer_hash: str
    form: Format | None = None


@dataclass(frozen=True)
class _Parsed:
    """What is read of a model's files beside its weights. Nobody may change it."""

    config: PreTrainedConfig
    tokenizer: Any

    @cached_property
    def tokenizer_hash(self) -> str:
        content = json.loads(self.tokenizer.backend_tokenizer.to_str())
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def found(settings: ReplaySettings) -> Checkpoint:
    """The model that ``settings`` name. Raises `ModelError` when it is none, or none that can be replayed."""
    folder, gguf = _located(settings.model)
    template = settings.chat_template
    with translated(settings.model):
        parsed = _parsed(folder, gguf, template, _stamps(folder, gguf, template))
        config = copy.deepcopy(parsed.config)
        text = text_config(config)
        form = taken_format(config) if gguf is None else None
    if not parsed.tokenizer.is_fast:
        raise ModelError(
            f"{folder} has no tokenizer.json", hint="replay needs a fast tokenizer, for its offsets"
        )
    return Checkpoint(
        folder=folder,
        gguf=gguf,
        source=_source(gguf),
        config=config,
        text=text,
        tokenizer=parsed.tokenizer,
        tokenizer_hash=parsed.tokenizer_hash,
        form=form,
    )


@lru_cache(maxsize=2)
def _parsed(folder: Path, gguf: Path | None, template: Path | None, stamps: object) -> _Parsed:
    """Read once for each state of the files: a large vocabulary takes seconds, of a GGUF file a minute.

    Two are kept, as many as are compared with each other.
    """
    source = _source(gguf)
    with without_vocabulary() if gguf else nullcontext():
        return _Parsed(
            config=AutoConfig.from_pretrained(folder, **source),
            tokenizer=_tokenizer(folder, source, template),
        )


def _stamps(folder: Path, gguf: Path | None, template: Path | None) -> object:
    """Changes with every file that `_parsed` may read."""
    files = [gguf] if gguf else [one for one in folder.iterdir() if one.suffix != ".safetensors"]
    seen = [
        (one, one.stat()) for one in (*files, *([template] if template else ())) if one.is_file()
    ]
    return frozenset((str(one), stat.st_size, stat.st_mtime_ns) for one, stat in seen)


def _source(gguf: Path | None) -> dict[str, Any]:
    source: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    return source | {"gguf_file": gguf.name} if gguf is not None else source


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


def _tokenizer(folder: Path, source: Mapping[str, Any], chat_template: Path | None) -> Any:
    """The model's tokenizer, with the server's own chat template where one is configured."""
    tokenizer = AutoTokenizer.from_pretrained(folder, **source)
    if tokenizer.chat_template is None and (folder / PROCESSOR_TEMPLATE).is_file():
        tokenizer.chat_template = _of_processor(folder / PROCESSOR_TEMPLATE)
    if chat_template is not None:
        try:
            tokenizer.chat_template = read_given(chat_template, LARGEST_TEMPLATE).decode()
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(
                f"replay.chat_template: {chat_template} cannot be read: {error}",
                hint="give the Jinja file that the server is started with",
            ) from error
    return tokenizer


def _of_processor(file: Path) -> str:
    """The chat template that a multimodal model's processor has, and its tokenizer lacks."""
    try:
        template: Any = json.loads(read_given(file, LARGEST_TEMPLATE))["chat_template"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ModelError(
            f"{file} cannot be read: {type(error).__name__}", hint="fetch the model again"
        ) from None
    return str(template)


def template_of(tokenizer: Any) -> str:
    """The chat template's text; empty for a model without one."""
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default", "")
    return template or ""


@contextmanager
def needed_shards(folder: Path, layers: int | None) -> Iterator[Path]:
    """A folder to read the first ``layers`` blocks from (None: the whole model): ``folder``, or links into it.

    Of a sharded checkpoint it holds only the shards in which something of those blocks or of the
    embeddings lies. What else is missing comes out when the weights are read. Raises `ModelError`
    for an index that is none.
    """
    index = folder / INDEX
    if (folder / WHOLE).is_file() or not index.is_file():
        yield folder
        return
    shards = shards_of(index)
    if layers is not None:
        shards = {name: file for name, file in shards.items() if not later(name, layers)}
    if lacking := sorted({file for file in shards.values() if not (folder / file).is_file()}):
        raise ModelError(
            f"{folder} lacks {len(lacking)} of the shards that are needed, first {lacking[0]}",
            hint="fetch the model again",
        )
    if layers is None:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="monitor-shards-") as name:
        links = Path(name)
        for file in sorted(set(shards.values())):
            (links / file).symlink_to((folder / file).resolve())
        (links / INDEX).write_text(
            json.dumps({"metadata": {}, "weight_map": shards}), encoding="utf-8"
        )
        yield links


def held_files(folder: Path) -> list[Path]:
    """The files of ``folder``, as `needed_shards` gives it, that hold the weights."""
    if (folder / WHOLE).is_file() or not (folder / INDEX).is_file():
        return [folder / WHOLE]
    return [folder / file for file in sorted(set(shards_of(folder / INDEX).values()))]


def shards_of(index: Path) -> dict[str, str]:
    """From the name of a tensor to its file, a neighbour of ``index``."""
    try:
        content: Any = json.loads(read_given(index, LARGEST_JSON))
        shards = dict(content["weight_map"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ModelError(
            f"{index} cannot be read: {type(error).__name__}", hint="fetch the model again"
        ) from None
    for file in set(shards.values()):
        if (
            not isinstance(file, str)
            or Path(file).name != file
            or not file.endswith(".safetensors")
        ):
            raise ModelError(
                f"{index} names {file!r:.80}, which is no safetensors file beside it",
                hint="convert the weights to safetensors",
            )
    return shards


def later(name: str, layers: int | None) -> bool:
    """Whether a replay of the first ``layers`` blocks (None: of the whole model) never runs the tensor."""
    if MEDIA.search(name) or layers is None:
        return MEDIA.search(name) is not None
    block = _BLOCK.search(name)
    return int(block.group(1)) >= layers if block else is_final_norm(name) or is_head(name)


def is_final_norm(name: str) -> bool:
    return _BLOCK.search(name) is None and _NORM.search(name) is not None


def is_head(name: str) -> bool:
    return _BLOCK.search(name) is None and _HEAD.search(name) is not None


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Whatever loading from ``path`` raises, as `ModelError`."""
    try:
        yield
    except MonitorError:
        raise
    except torch.OutOfMemoryError as error:
        raise ModelError(f"{path} does not fit into the device's memory: {error}") from error
    except Exception as error:
        # Loading runs through half of transformers, which raises whatever its parts raise.
        raise ModelError(f"{path} cannot be loaded: {type(error).__name__}: {error}") from error


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
