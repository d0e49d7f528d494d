"""Files of vectors that were made to harm: code, sizes that lie, archives that unfold, depths without end."""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from monitor.errors import BadInput
from monitor.research.vectors.files import LARGEST, content_of, tensors_in
from monitor.research.vectors.published import Asked, published
from monitor.values.identity import ModelIdentity
from tests.scenes.vectors import stack, write_control, write_torch

pytestmark = pytest.mark.timeout(30)

MODEL = ModelIdentity(
    model_id="tiny", architecture="llama", hidden_size=32, layers=4, vocab_size=258
)


def read(path: Path, **asked: Any) -> Any:
    return published([path], Asked(**({"layers": (1,), "counting": "blocks"} | asked)), MODEL)


class Runs:
    """What a pickle can be: a call."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize(
    "saved", [torch.save, lambda one, path: path.write_bytes(pickle.dumps(one))]
)
@pytest.mark.parametrize("name", ["v.pt", "v.pth", "v.npy", "v.safetensors", "v.gguf"])
def test_no_code_of_a_file_is_run(tmp_path: Path, saved: Callable[..., Any], name: str) -> None:
    mark = tmp_path / "ran"
    saved({"vector": Runs(mark)}, tmp_path / name)
    with pytest.raises(BadInput, match=name):
        read(tmp_path / name, **({"format": "repeng", "counting": None} if "gguf" in name else {}))
    assert not mark.exists()


def test_an_array_of_objects_is_refused_unread(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    np.save(tmp_path / "v.npy", np.array([Runs(mark)], dtype=object), allow_pickle=True)
    with pytest.raises(BadInput, match="floating point"):
        read(tmp_path / "v.npy")
    assert not mark.exists()


@pytest.mark.parametrize(
    "put",
    [
        lambda path: path.symlink_to("/dev/zero"),
        os.mkfifo,
        Path.mkdir,
        lambda path: path.symlink_to(path),
        lambda path: path.touch() or os.truncate(path, LARGEST + 1),
    ],
    ids=["an endless device", "a pipe", "a folder", "a link to itself", "a sparse file"],
)
@pytest.mark.parametrize("suffix", [".npy", ".safetensors", ".pt", ".gguf"])
def test_what_is_no_plain_file_or_too_large_is_refused_unread(
    tmp_path: Path, put: Callable[[Path], Any], suffix: str
) -> None:
    path = tmp_path / f"v{suffix}"
    put(path)
    with pytest.raises(BadInput, match="cannot read"):
        content_of(path)


def npy(header: str) -> bytes:
    padded = header.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(padded)) + padded.encode()


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999, 0), }",
        "{'descr': '<c8', 'fortran_order': False, 'shape': (0,), }",
        "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (0,), }",
        "(" * 90,
        "__import__('os')",
    ],
)
def test_an_npy_header_that_lies_is_refused(tmp_path: Path, header: str) -> None:
    (tmp_path / "v.npy").write_bytes(npy(header))
    with pytest.raises(BadInput):
        read(tmp_path / "v.npy")


@pytest.mark.parametrize("length", [0, 2, 2**20, 2**40, 2**64 - 1])
def test_a_safetensors_header_that_lies_about_its_length_is_refused(
    tmp_path: Path, length: int
) -> None:
    (tmp_path / "v.safetensors").write_bytes(struct.pack("<Q", length) + b"{}")
    with pytest.raises(BadInput):
        read(tmp_path / "v.safetensors")


@pytest.mark.parametrize(
    "header",
    [
        '{"a":' * 200_000,
        '{"__metadata__":' + '{"a":' * 100_000 + "1" + "}" * 100_001,
        json.dumps({"v": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}),
        json.dumps({"v": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}),
        json.dumps({"v": {"dtype": "F64", "shape": [32], "data_offsets": [8, 4]}}),
    ],
    ids=["deep", "deep metadata", "large", "negative", "backwards"],
)
def test_a_safetensors_header_of_any_kind_is_refused(tmp_path: Path, header: str) -> None:
    raw = header.encode()
    (tmp_path / "v.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw + b"\0" * 8)
    with pytest.raises(BadInput):
        read(tmp_path / "v.safetensors")


def test_a_safetensors_header_of_many_tensors_is_refused_unread(tmp_path: Path) -> None:
    tensor = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    raw = json.dumps({f"t{n}": tensor for n in range(100_000)}).encode()
    (tmp_path / "v.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw)
    with pytest.raises(BadInput, match="larger than"):
        read(tmp_path / "v.safetensors")


def repacked(path: Path, compression: int, add: bytes = b"") -> None:
    with zipfile.ZipFile(path) as old:
        held = {one.filename: old.read(one) for one in old.infolist()}
    with zipfile.ZipFile(path, "w", compression) as new:
        for name, content in held.items():
            new.writestr(name, content + (add if name.endswith("/data/0") else b""))


def test_an_archive_that_unfolds_is_refused(tmp_path: Path) -> None:
    path = write_torch(tmp_path / "v.pt", torch.ones(32))
    repacked(path, zipfile.ZIP_DEFLATED, b"\0" * 10_000_000)
    assert path.stat().st_size < 100_000
    with pytest.raises(BadInput, match="compressed"):
        read(path)


def test_views_that_are_larger_than_their_numbers_are_refused(tmp_path: Path) -> None:
    wide = torch.ones(1).expand(2**40, 32)
    with pytest.raises(BadInput, match="which row is which layer"):
        read(write_torch(tmp_path / "v.pt", {"vector": wide}))
    with pytest.raises(BadInput, match="another model"):
        read(write_torch(tmp_path / "v.pt", {"vector": torch.ones(1).expand(2**45)}))


@pytest.mark.parametrize(
    "content",
    [
        [torch.ones(32)],
        {},
        {"vector": torch.ones(32, device="meta")},
        {"vector": torch.eye(32)[0].to_sparse()},
        {"vector": torch.ones(32, dtype=torch.complex64)},
        {"vector": torch.quantize_per_tensor(torch.ones(32), 1.0, 0, torch.qint8)},
    ],
    ids=["a list", "nothing", "meta", "sparse", "complex", "quantised"],
)
def test_tensors_of_other_kinds_are_refused(tmp_path: Path, content: Any) -> None:
    with pytest.raises(BadInput, match=r"v\.pt"):
        read(write_torch(tmp_path / "v.pt", content))


@pytest.mark.parametrize(
    "code",
    [
        b"\x80\x02c__builtin__\nbytearray\n\x8a\x06\x00\x00\x00\x00\x00\x10\x85R.",
        b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".",
        b"\x80\x02\x8a\xff" + b"\x7f" * 255 + b".",
        b"\x80\x02(((((t.",
        b"\x80\x02R.",
        b"\x80\x02N.",
        b"",
    ],
    ids=["bytearray", "deep", "a long number", "open tuples", "empty stack", "none", "empty"],
)
def test_a_pickle_of_any_kind_is_refused(tmp_path: Path, code: bytes) -> None:
    path = write_torch(tmp_path / "v.pt", torch.ones(32))
    with zipfile.ZipFile(path) as old:
        held = {one.filename: old.read(one) for one in old.infolist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, content in held.items():
            new.writestr(name, code if name.endswith("data.pkl") else content)
    with pytest.raises(BadInput, match=r"v\.pt"):
        read(path)


def head(tensors: int, entries: int, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, entries) + rest


def entry(key: str, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", kind) + value


KIND = entry("general.architecture", 8, struct.pack("<Q", 13) + b"controlvector")
PLACE = struct.pack("<Q", 11) + b"direction.1"


@pytest.mark.parametrize(
    "content",
    [
        b"GGUF",
        b"GGUF" + struct.pack(">IQQ", 3, 1, 0),
        head(2**60, 0),
        head(0, 2**60),
        head(1, 0),
        head(0, 1, struct.pack("<Q", 2**62)),
        head(0, 1, entry("a", 9, struct.pack("<IQ", 4, 2**62))),
        head(0, 1, entry("a", 9, struct.pack("<IQ", 8, 2**40))),
        head(0, 1, entry("a", 9, struct.pack("<IQ", 9, 1)) + struct.pack("<IQ", 9, 1) * 100),
        head(0, 1, entry("a", 99, b"")),
        head(1, 1, KIND + PLACE + struct.pack("<IQIQ", 1, 2**60, 0, 0)),
        head(1, 1, KIND + PLACE + struct.pack("<IQIQ", 1, 32, 0, 2**60)),
        head(1, 1, KIND + PLACE + struct.pack("<IQIQ", 1, 0, 0, 0)),
        head(1, 1, KIND + PLACE + struct.pack("<IQIQ", 1, 32, 2, 0)),
        head(1, 1, KIND + PLACE + struct.pack("<I", 2**31)),
        head(1, 2, KIND + entry("general.alignment", 4, struct.pack("<I", 0)) + PLACE
             + struct.pack("<IQIQ", 1, 1, 0, 0)),
        head(0, 1, KIND),
    ],
)  # fmt: skip
def test_a_control_vector_that_lies_about_its_sizes_is_refused(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "v.gguf").write_bytes(content)
    with pytest.raises(BadInput):
        read(tmp_path / "v.gguf", format="repeng", counting=None)


def test_every_cut_control_vector_is_refused(tmp_path: Path) -> None:
    whole = write_control(tmp_path / "v.gguf", stack(3)).read_bytes()
    path = tmp_path / "cut.gguf"
    # The library pads the end of the file; what is cut there is no number.
    for length in range(0, len(whole) - 32, 7):
        with pytest.raises(BadInput):
            tensors_in(path, whole[:length])["direction.3"].any()


@pytest.mark.parametrize("suffix", [".npy", ".safetensors", ".pt", ".gguf"])
def test_noise_is_refused(tmp_path: Path, suffix: str) -> None:
    generator = np.random.default_rng(0)
    for size in (0, 1, 8, 100, 5_000):
        with pytest.raises(BadInput):
            tensors_in(tmp_path / f"v{suffix}", generator.bytes(size))
