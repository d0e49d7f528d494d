"""Packs that were made to harm: what their files are, how large they say they are, how deep they go."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from monitor.errors import PackError
from monitor.score.pack import load_pack, manifest, save_pack
from tests.score.packs import pack

FILES = ("pack.json", "features.safetensors")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_pack(pack(), tmp_path / "pack")
    return tmp_path / "pack"


@pytest.mark.parametrize("name", FILES)
def test_a_pack_of_links_is_read_as_a_mounted_config_map_is(folder: Path, name: str) -> None:
    (folder / "..data").mkdir()
    (folder / name).rename(folder / "..data" / name)
    (folder / name).symlink_to(Path("..data") / name)
    assert load_pack(folder).pack_id == pack().pack_id


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "put",
    [
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.symlink_to("/proc/self/mem"),
        os.mkfifo,
        Path.mkdir,
        lambda path: path.symlink_to(path),
    ],
    ids=["an endless device", "own memory", "a pipe", "a folder", "a link to itself"],
)
def test_what_is_no_plain_file_is_refused_unread(
    folder: Path, name: str, put: Callable[[Path], Any]
) -> None:
    (folder / name).unlink()
    put(folder / name)
    with pytest.raises(PackError, match=f"{name}"):
        load_pack(folder)


@pytest.mark.timeout(20)
def test_tensors_that_are_larger_than_announced_are_refused_unread(folder: Path) -> None:
    with (folder / "features.safetensors").open("r+b") as file:
        file.truncate(2**40)
    with pytest.raises(PackError, match="larger than"):
        load_pack(folder)


@pytest.mark.parametrize("length", [0, 2, 2**20, 2**40, 2**64 - 1])
def test_a_header_that_lies_about_its_length_is_refused(folder: Path, length: int) -> None:
    file = folder / "features.safetensors"
    file.write_bytes(struct.pack("<Q", length) + file.read_bytes()[8:])
    with pytest.raises(PackError, match="not a safetensors"):
        load_pack(folder)


def test_a_header_of_a_million_tensors_is_refused_unread(folder: Path) -> None:
    tensor = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"t{n}": tensor for n in range(100_000)}).encode()
    (folder / "features.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(PackError, match="larger than"):
        load_pack(folder)


def deep(depth: int) -> str:
    return '{"a":' * depth + "1" + "}" * depth


@pytest.mark.parametrize("field", ["report", "provenance"])
@pytest.mark.parametrize("depth", [200, 500, 900, 990, 2_000, 100_000])
def test_a_manifest_as_deep_as_you_like_is_read_or_refused(
    folder: Path, field: str, depth: int
) -> None:
    content = manifest(pack())
    content[field] = "HERE"
    text = json.dumps(content).replace('"HERE"', deep(depth))
    (folder / "pack.json").write_text(text)
    with pytest.raises(PackError):
        load_pack(folder)


@pytest.mark.parametrize("value", ["1" * 5_000, "1e999", "-1e999", "NaN", "Infinity", '"\\ud800"'])
def test_values_that_json_should_not_hold_are_refused(folder: Path, value: str) -> None:
    content = manifest(pack())
    content["report"] = {"auc": "HERE"}
    text = json.dumps(content).replace('"HERE"', value)
    (folder / "pack.json").write_text(text)
    with pytest.raises(PackError):
        load_pack(folder)


def test_of_a_hundred_thousand_wrong_fields_some_are_named(folder: Path) -> None:
    content = manifest(pack())
    content["features"] = [{"x": 1}] * 20_000
    (folder / "pack.json").write_text(json.dumps(content))
    with pytest.raises(PackError, match=r"and [0-9,]+ more") as refused:
        load_pack(folder)
    assert len(str(refused.value)) < 5_000
