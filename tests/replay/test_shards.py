"""Sharded checkpoints: only the shards that a replay needs are opened, and only those need be there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from safetensors.torch import load_file, save_file

from monitor.errors import ModelError
from monitor.replay.engine import ReplayEngine
from monitor.replay.model import LoadedModel, load_model
from monitor.settings import ReplaySettings
from monitor.values.features import Feature
from monitor.values.prompts import Prompt
from monitor.values.scores import Replayed


def settings(folder: Path) -> ReplaySettings:
    return ReplaySettings(model=folder, device="cpu", dtype="float32")


@pytest.fixture
def sharded(llama_folder: Path, tmp_path: Path) -> Path:
    """A copy with a shard for the embeddings, one for each block, and one for final norm and LM head."""
    folder = Path(shutil.copytree(llama_folder, tmp_path / "sharded"))
    [file] = folder.glob("*.safetensors")
    weights = load_file(file)
    file.unlink()
    shards: dict[str, dict[str, Any]] = {}
    for name, weight in weights.items():
        block = name.split(".layers.")[1].partition(".")[0] if ".layers." in name else ""
        place = f"block{block}" if block else ("first" if "embed" in name else "last")
        shards.setdefault(f"model-{place}.safetensors", {})[name] = weight
    for name, held in shards.items():
        save_file(held, folder / name, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {w: s for s, held in shards.items() for w in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def readings(loaded: LoadedModel, feature: Callable[..., Feature], prompt: Prompt) -> Any:
    [outcome] = ReplayEngine(loaded, [feature(1)], settings(Path("."))).replay([prompt])
    assert isinstance(outcome, Replayed)
    return outcome.readings


def test_a_copy_reads_without_the_later_shards(
    sharded: Path, llama_folder: Path, feature: Callable[..., Feature], chat: Callable[..., Prompt]
) -> None:
    for place in ("block2", "block3", "last"):
        (sharded / f"model-{place}.safetensors").unlink()
    prompt = chat("the patient heron waited for its evening fish")
    found = readings(load_model(settings(sharded), 1), feature, prompt)
    whole = readings(load_model(settings(llama_folder), 1), feature, prompt)
    np.testing.assert_array_equal(found, whole)


def test_a_shard_that_is_needed_is_named(sharded: Path) -> None:
    (sharded / "model-block2.safetensors").unlink()
    assert len(load_model(settings(sharded), 1).blocks) == 2
    for site, full in ((2, False), (1, True)):
        with pytest.raises(ModelError, match=r"lacks 1 of the shards .* model-block2\.safetensors"):
            load_model(settings(sharded), site, full=full)


def test_bytes_of_the_needed_blocks_are_read_and_no_others(
    sharded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: dict[str, int] = {}

    class Counting:
        """The library's own reader, which notes the bytes of every tensor that is taken out of it."""

        def __init__(self, file: Any, *given: Any, **options: Any) -> None:
            self.name = Path(file).name
            self.inner = safetensors.safe_open(file, *given, **options)
            read[self.name] = 0

        def get_slice(self, name: str) -> Any:
            return Slice(self.name, self.inner.get_slice(name))

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *error: Any) -> None:
            self.inner.__exit__(*error)

    class Slice:
        def __init__(self, name: str, inner: Any) -> None:
            self.name, self.inner = name, inner

        def __getitem__(self, where: Any) -> Any:
            taken = self.inner[where]
            read[self.name] += taken.numel() * taken.element_size()
            return taken

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

    monkeypatch.setattr("transformers.modeling_utils.safe_open", Counting)
    loaded = load_model(settings(sharded), 1)
    assert set(read) == {f"model-{p}.safetensors" for p in ("first", "block0", "block1")}
    held = sum(
        weight.numel() * weight.element_size()
        for name, weight in loaded.model.named_parameters()
        if name != "norm.weight"
    )
    assert sum(read.values()) == held


@pytest.mark.parametrize(
    "index",
    [
        b"",
        b"[]",
        b'{"weight_map": [1]}',
        b'{"weight_map": {"a": "../x.safetensors"}}',
        b'{"weight_map": {"a": "x.bin"}}',
        b'{"weight_map": {"a": 3}}',
    ],
)
def test_an_index_that_is_none_is_refused(sharded: Path, index: bytes) -> None:
    (sharded / "model.safetensors.index.json").write_bytes(index)
    with pytest.raises(ModelError, match=r"index\.json"):
        load_model(settings(sharded), 1)


def test_a_final_norm_that_is_not_used_may_lack(sharded: Path, llama_folder: Path) -> None:
    [file] = llama_folder.glob("*.safetensors")
    whole = {n: w for n, w in load_file(file).items() if n != "model.norm.weight"}
    for shard in [*sharded.glob("*.safetensors"), *sharded.glob("*.index.json")]:
        shard.unlink()
    save_file(whole, sharded / "model.safetensors", metadata={"format": "pt"})
    assert len(load_model(settings(sharded), 3).blocks) == 4
    with pytest.raises(ModelError, match=r"1 weights are missing, first model\.norm\.weight"):
        load_model(settings(sharded), 3, full=True)
    del whole["model.embed_tokens.weight"]
    save_file(whole, sharded / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"missing, first embed_tokens\.weight"):
        load_model(settings(sharded), 3)
