"""What is no checkpoint, or must not be read, is refused with a sentence that says why."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from monitor.errors import BadInput
from monitor.research.saes.detect import FORMATS, load_autoencoder

D, N = 6, 10
Draw = Callable[..., torch.Tensor]


class _Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("name", ["layer3.sae.pt", "Model-SAE-l19.pth", "ae.pt"])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, name: str, legacy: bool) -> None:
    mark = tmp_path / "ran"
    content = {"W_enc": torch.zeros(2, 2), "evil": _Malicious(mark)}
    path = tmp_path / name
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    (tmp_path / "config.json").write_text('{"trainer": {"dict_class": "BatchTopKSAE", "layer": 1}}')
    with pytest.raises(BadInput, match=r"refused.*could run code"):
        load_autoencoder(path)
    assert not mark.exists()


def test_code_in_an_npz_is_refused_and_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    evil: Any = np.array([_Malicious(mark)], dtype=object)
    np.savez(tmp_path / "params.npz", W_enc=evil)
    with pytest.raises(BadInput, match="cannot read"):
        load_autoencoder(tmp_path)
    assert not mark.exists()


def test_a_pickle_named_safetensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "params.safetensors").write_bytes(pickle.dumps({"w_enc": 1}))
    with pytest.raises(BadInput, match="cannot read") as refusal:
        load_autoencoder(tmp_path)
    assert "not loaded" in refusal.value.hint


@pytest.mark.parametrize("name", ["params.safetensors", "params.npz", "layer3.sae.pt"])
@pytest.mark.parametrize("keep", [0, 0.6])
def test_truncated_files_are_refused(tmp_path: Path, draw: Draw, name: str, keep: float) -> None:
    path = tmp_path / name
    weights = {"w_enc": draw(40, 50)}
    if path.suffix == ".safetensors":
        save_file(weights, path)
    elif path.suffix == ".npz":
        np.savez(path, w_enc=weights["w_enc"].numpy())
    else:
        torch.save(weights, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(BadInput, match=r"cannot read|holds"):
        load_autoencoder(path)


def test_a_pickle_that_is_no_state_dict_is_refused(tmp_path: Path) -> None:
    torch.save([torch.zeros(2)], tmp_path / "layer3.sae.pt")
    with pytest.raises(BadInput, match="state dict"):
        load_autoencoder(tmp_path / "layer3.sae.pt")


def test_tensors_of_no_known_format_are_named(tmp_path: Path) -> None:
    torch.save({"lista_step": torch.zeros(2)}, tmp_path / "sae.pt")
    with pytest.raises(BadInput, match="no known format has the tensors lista_step"):
        load_autoencoder(tmp_path / "sae.pt")


def test_a_folder_without_a_checkpoint_says_what_would_be_one(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="holds no checkpoint") as refusal:
        load_autoencoder(tmp_path)
    assert "cfg.json + sae_weights.safetensors" in refusal.value.hint
    with pytest.raises(BadInput, match="no checkpoint"):
        load_autoencoder(tmp_path / "nowhere")
    for name in ("1.pt", "2.pt"):
        torch.save({}, tmp_path / name)
    with pytest.raises(BadInput, match="2 pickles: name one"):
        load_autoencoder(tmp_path)


def test_a_format_can_be_forced(tmp_path: Path, draw: Draw) -> None:
    weights = {"W_enc": draw(N, D), "W_dec": draw(D, N), "b_enc": draw(N), "b_dec": draw(D)}
    torch.save(weights, tmp_path / "layer3.sae.pt")
    with pytest.raises(BadInput, match="'qwen' is unknown; known: saelens"):
        load_autoencoder(tmp_path, "qwen")
    with pytest.raises(BadInput, match=r"encoder_linear\.weight is missing"):
        load_autoencoder(tmp_path, "goodfire")
    for name in FORMATS:
        with pytest.raises(BadInput):
            load_autoencoder(tmp_path, name)


def test_a_legacy_pickle_of_tensors_alone_is_read(tmp_path: Path, draw: Draw) -> None:
    weights = {
        "encoder_linear.weight": draw(N, D),
        "encoder_linear.bias": draw(N),
        "decoder_linear.weight": draw(D, N),
        "decoder_linear.bias": draw(D),
    }
    path = tmp_path / "Model-SAE-l19.pth"
    torch.save(weights, path, _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(path)
    assert load_autoencoder(path).site == 19


def test_integers_are_no_weights(tmp_path: Path) -> None:
    torch.save(
        {
            "encoder_linear.weight": torch.ones(N, D, dtype=torch.long),
            "decoder_linear.weight": torch.ones(D, N),
        },
        tmp_path / "Model-SAE-l19.pth",
    )
    with pytest.raises(BadInput, match="floating point"):
        load_autoencoder(tmp_path)
