"""Model, GGUF and adapter files that were made to harm: refused with a reason, at once, and unread beyond their bounds."""

from __future__ import annotations

import json
import os
import resource
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from monitor.errors import ModelError
from monitor.replay.adapter import adapter_hash
from monitor.replay.model import identity_of
from monitor.replay.weights import weights_hash
from monitor.settings import ReplaySettings


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    """What is read in full here would be terabytes: it fails, and does not take the machine along."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (64 * 2**30, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def header(content: Any, length: int | None = None) -> bytes:
    text = json.dumps(content).encode() if not isinstance(content, bytes) else content
    return struct.pack("<Q", len(text) if length is None else length) + text


TENSOR = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
HEADERS = {
    "empty": b"",
    "as long as the file says, not as it is": header({}, 2**40),
    "longer than any": header({}, 2**63),
    "a list": header([1, 2, 3]),
    "a tensor without offsets": header({"a": {}}),
    "offsets that end before they begin": header({"a": TENSOR | {"data_offsets": [2**40, 0]}}),
    "offsets below nothing": header({"a": TENSOR | {"data_offsets": [-(2**40), 4]}}),
    "offsets that are none": header({"a": TENSOR | {"data_offsets": ["x", None]}}),
    "deeper than Python goes": header(b"[" * 200_000),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("content", HEADERS.values(), ids=HEADERS)
def test_weights_with_a_header_that_lies_are_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    os.truncate(file, max(len(content), 2**41))  # of which nothing takes room
    with pytest.raises(ModelError, match="no safetensors"):
        weights_hash([file])


def adapter(folder: Path, config: bytes) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_bytes(config)
    (folder / "adapter_model.safetensors").write_bytes(header({}))
    return folder


@pytest.mark.parametrize(
    "config",
    [b"", b"[]", b"null", b"[" * 200_000, b'{"a":' * 200_000, b"1" * 10_000, b"\xff\xfe{"],
    ids=["empty", "a list", "null", "deep lists", "deep objects", "a long number", "no UTF-8"],
)
def test_an_adapter_whose_configuration_is_none_is_refused(tmp_path: Path, config: bytes) -> None:
    with pytest.raises(ModelError, match="adapter_config"):
        adapter_hash(adapter(tmp_path / "adapter", config))


@pytest.mark.timeout(60)
def test_an_adapter_of_devices_and_pipes_is_refused(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "adapter", b'{"peft_type": "LORA"}')
    (folder / "adapter_config.json").unlink()
    (folder / "adapter_config.json").symlink_to("/dev/zero")
    with pytest.raises(ModelError, match="no plain file"):
        adapter_hash(folder)
    (folder / "adapter_config.json").unlink()
    os.mkfifo(folder / "adapter_config.json")
    with pytest.raises(ModelError, match="no plain file"):
        adapter_hash(folder)


def gguf(tensors: int = 0, keys: int = 0, rest: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + rest


def text(length: int, content: bytes = b"") -> bytes:
    return struct.pack("<Q", length) + content


GGUFS = {
    "empty": b"",
    "another magic": b"FUGG" + bytes(20),
    "a version that is none": gguf(version=2**31),
    "tensors without end": gguf(tensors=2**63),
    "keys without end": gguf(keys=2**63),
    "a key of terabytes": gguf(keys=1, rest=text(2**42)),
    "a value of terabytes": gguf(keys=1, rest=text(1, b"a") + struct.pack("<I", 8) + text(2**42)),
    "an array of arrays": gguf(
        keys=1, rest=text(1, b"a") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 2**40) * 50
    ),
    "a type that is none": gguf(keys=1, rest=text(1, b"a") + struct.pack("<I", 77)),
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("content", GGUFS.values(), ids=GGUFS)
def test_a_gguf_file_that_lies_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.gguf"):
        identity_of(ReplaySettings(model=file))
