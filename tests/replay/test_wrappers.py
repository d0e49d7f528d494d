"""Multimodal checkpoints: what reads text is loaded in place, and reads as the whole model does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig

from benchmarks.architectures.prove import proved
from benchmarks.architectures.tiny import save_tiny, tiny_config
from monitor.errors import ModelError
from monitor.replay.answer import answered
from monitor.replay.engine import ReplayEngine
from monitor.replay.layers import model_class
from monitor.replay.model import identity_of, load_model
from monitor.settings import ReplaySettings
from monitor.values.features import Feature
from monitor.values.prompts import Prompt
from monitor.values.scores import Replayed

TOLERANCE = 2e-4
WRAPPERS = (
    *("aya_vision", "gemma3", "gemma4", "glm4v", "internvl", "kimi_k25", "llama4", "llava"),
    *("minimax_m3_vl", "mistral3", "qwen2_5_vl", "qwen3_5", "qwen3_vl", "smolvlm"),
)


def settings(folder: Path) -> ReplaySettings:
    return ReplaySettings(
        model=folder, device="cpu", dtype="float32", max_tokens=256, min_shared_tokens=4
    )


@pytest.mark.parametrize("kind", WRAPPERS)
def test_the_text_part_reads_as_the_whole_model(kind: str, tmp_path: Path) -> None:
    found = proved(kind, tmp_path)
    assert found.difference is not None, found.way
    assert found.difference <= TOLERANCE


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gemma3")
    save_tiny(tiny_config("gemma3"), folder)
    return folder


@pytest.mark.parametrize("full", [False, True])
def test_nothing_that_sees_is_loaded(gemma: Path, full: bool) -> None:
    loaded = load_model(settings(gemma), 1, full=full)
    assert loaded.packing.ground == "tested"
    held = {name for name, _ in (loaded.answerer or loaded.model).named_parameters()}
    assert held
    assert not any("vision" in name or "projector" in name for name in held)
    assert len(loaded.blocks) == (4 if full else 2)
    assert loaded.identity == identity_of(settings(gemma))
    assert loaded.identity.architecture == "gemma3_text"
    assert loaded.identity.layers == 4


@pytest.mark.parametrize("kind", ["gemma3", "mistral3", "qwen2_5_vl", "llama4", "qwen3_5"])
def test_the_whole_copy_answers_as_the_whole_model(kind: str, tmp_path: Path) -> None:
    save_tiny(tiny_config(kind), tmp_path)
    loaded = load_model(settings(tmp_path), 1, full=True)
    asked = [5, 17, 40, 8, 99]
    answer = answered(loaded, asked, 6)
    whole: Any = model_class(AutoConfig.from_pretrained(tmp_path), full=True)
    stock = whole.from_pretrained(tmp_path, dtype=torch.float32).eval()
    expected = stock.generate(
        input_ids=torch.tensor([asked]), max_new_tokens=6, do_sample=False, pad_token_id=0
    )
    assert list(answer) == expected[0, len(asked) :].tolist()


def test_the_processors_template_serves_where_the_tokenizer_has_none(
    gemma: Path, tmp_path: Path, chat: Callable[..., Prompt]
) -> None:
    folder = Path(shutil.copytree(gemma, tmp_path / "copy"))
    before = identity_of(settings(folder))
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "w5 w6"}))
    [difference] = before.differences(identity_of(settings(folder)))
    assert difference.field == "template_hash"
    (folder / "chat_template.json").write_text("[]")
    with pytest.raises(ModelError, match=r"chat_template\.json cannot be read"):
        identity_of(settings(folder))


def test_an_adapter_of_the_wrapper_changes_its_text_part(
    gemma: Path, tmp_path: Path, feature: Callable[..., Feature], chat: Callable[..., Prompt]
) -> None:
    from peft import LoraConfig, get_peft_model

    whole: Any = model_class(AutoConfig.from_pretrained(gemma), full=True)
    adapted = get_peft_model(
        whole.from_pretrained(gemma, dtype=torch.float32),
        LoraConfig(r=2, target_modules=r".*language_model.*\.q_proj"),
    )
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.normal_(0.0, 0.3)
    adapted.save_pretrained(tmp_path / "adapter")
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    for file in gemma.glob("token*"):
        (tmp_path / "merged" / file.name).write_bytes(file.read_bytes())

    def reading(given: ReplaySettings) -> Any:
        engine = ReplayEngine(load_model(given, 1), [feature(1)], given)
        [outcome] = engine.replay([chat(text="w5 w9 w11 w80 w3")])
        assert isinstance(outcome, Replayed)
        return outcome.readings

    merged = reading(settings(tmp_path / "merged"))
    ours = reading(settings(gemma).model_copy(update={"adapter": tmp_path / "adapter"}))
    np.testing.assert_allclose(ours, merged, rtol=1e-4)
    assert abs(ours - reading(settings(gemma))).max() > 1e-2
