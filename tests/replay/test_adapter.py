"""Adapters: merged weights read as peft reads them, and what cannot be merged is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import structlog
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from monitor.errors import ConfigurationError, ModelError
from monitor.replay.engine import ReplayEngine
from monitor.replay.model import identity_of, load_model
from monitor.settings import ReplaySettings
from tests.scenes.adapters import save_adapter
from tests.scenes.models import tiny_llama_config

WEIGHTS = "adapter_model.safetensors"


def settings(folder: Path, **changes: Any) -> ReplaySettings:
    return ReplaySettings(**({"model": folder, "device": "cpu", "dtype": "float32"} | changes))


@pytest.fixture
def adapter(llama_folder: Path, tmp_path: Path) -> Path:
    return save_adapter(llama_folder, tmp_path / "adapter")


def residuals(folder: Path, adapter: Path | None, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Every block's output of the model with the adapter in place, not merged."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    if adapter is not None:
        model = peft.PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        states: tuple[torch.Tensor, ...] = model.eval()(ids, output_hidden_states=True)[
            "hidden_states"
        ]
    return states[1:]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_rslora": True, "rank_pattern": {"v_proj": 2}, "alpha_pattern": {"v_proj": 16}},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"target_modules": "all-linear"},
        {"use_dora": True},
        {"target_modules": ["embed_tokens", "q_proj", "lm_head"]},
        {"trainable_token_indices": {"embed_tokens": [5, 60, 61]}},
    ],
    ids=["plain", "patterns", "whole modules", "all linear", "dora", "embedding", "some tokens"],
)
def test_a_shortened_copy_reads_as_the_adapted_model(
    llama_folder: Path,
    tmp_path: Path,
    changes: dict[str, Any],
    chat: Callable[..., Any],
    feature: Callable[..., Any],
) -> None:
    adapter = save_adapter(llama_folder, tmp_path / "adapter", **changes)
    given = settings(llama_folder, adapter=adapter)
    loaded = load_model(given, 1)
    assert len(loaded.blocks) == 2
    assert not any("lora" in name for name, _ in loaded.model.named_modules())
    prompt = chat("the river ran over old stones", response="and said nothing to anybody")
    [read] = ReplayEngine(loaded, [one := feature(1, skip_tokens=1)], given).replay([prompt])
    [plain] = ReplayEngine(
        load_model(settings(llama_folder), 1), [one], settings(llama_folder)
    ).replay([prompt])
    assert abs(read.readings[0] - plain.readings[0]) > 1e-3
    text = loaded.tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt.messages[0].content}],
        tokenize=False,
        add_generation_prompt=True,
    )
    ids = loaded.tokenizer(text + prompt.response, add_special_tokens=False).input_ids
    raw = given.model_copy(update={"mask_special_tokens": False, "mask_template": False})
    [read] = ReplayEngine(loaded, [one], raw).replay([prompt])
    expected = residuals(llama_folder, adapter, torch.tensor([ids]))[1][0, 1:]
    np.testing.assert_allclose(
        read.readings[0], float((expected @ torch.tensor(one.weight)).mean()), rtol=1e-3, atol=1e-4
    )


def test_the_whole_model_is_adapted_up_to_its_head(llama_folder: Path, tmp_path: Path) -> None:
    adapter = save_adapter(llama_folder, tmp_path / "adapter", modules_to_save=["lm_head"])
    loaded = load_model(settings(llama_folder, adapter=adapter), 3, full=True)
    assert loaded.answerer is not None
    head = load_file(adapter / WEIGHTS)["base_model.model.lm_head.weight"]
    torch.testing.assert_close(loaded.answerer.lm_head.weight, head)
    assert loaded.answerer.model is loaded.model
    assert not any(weight.requires_grad for weight in loaded.answerer.parameters())
    ids = torch.tensor([[0, 5, 9, 30, 31]])
    expected = residuals(llama_folder, adapter, ids)[2][0]
    stack = load_model(settings(llama_folder, adapter=adapter, attention="eager"), 3, full=True)
    stack.model.set_attn_implementation("eager")
    got = stack.model(ids, output_hidden_states=True).hidden_states[3][0]
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("both", [False, True])
def test_tied_ends_are_changed_as_they_were_trained(
    tiny_model: Callable[[Any], Path], tmp_path: Path, both: bool
) -> None:
    folder = tiny_model(
        tiny_llama_config(
            400, num_hidden_layers=2, bos_token_id=0, eos_token_id=2, tie_word_embeddings=True
        )
    )
    adapter = save_adapter(
        folder, tmp_path / "adapter", target_modules=["embed_tokens"], ensure_weight_tying=both
    )
    ids = torch.tensor([[0, 5, 9, 30, 31]])
    unmerged = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), adapter)
    with torch.no_grad():
        expected = unmerged.eval()(ids).logits
    loaded = load_model(settings(folder, adapter=adapter), 1, full=True)
    assert loaded.answerer is not None
    loaded.answerer.set_attn_implementation("eager")
    with torch.no_grad():
        torch.testing.assert_close(loaded.answerer(ids).logits, expected, rtol=1e-3, atol=1e-3)
    shortened = load_model(settings(folder, adapter=adapter), 0)
    assert torch.equal(
        shortened.model.get_input_embeddings().weight, loaded.model.get_input_embeddings().weight
    )


def test_an_adapter_of_later_blocks_leaves_earlier_ones(llama_folder: Path, tmp_path: Path) -> None:
    adapter = save_adapter(llama_folder, tmp_path / "late", layers_to_transform=[3])
    adapted = load_model(settings(llama_folder, adapter=adapter), 1)
    plain = load_model(settings(llama_folder), 1)
    for (name, ours), (_, theirs) in zip(
        adapted.model.named_parameters(), plain.model.named_parameters(), strict=True
    ):
        assert torch.equal(ours, theirs), name
    assert adapted.model_hash != plain.model_hash


def test_the_identity_follows_the_adapter(llama_folder: Path, adapter: Path) -> None:
    base = identity_of(settings(llama_folder)).entry()
    adapted = identity_of(settings(llama_folder, adapter=adapter)).entry()
    assert adapted == load_model(settings(llama_folder, adapter=adapter), 0).identity.entry()
    assert {key for key in base if base[key] != adapted[key]} == {"model_id", "weights_hash"}
    assert adapted["model_id"] == f"{llama_folder.name}+adapter"
    tensors = load_file(adapter / WEIGHTS)
    tensors[next(iter(tensors))][0, -1] += 1e-3
    save_file(tensors, adapter / WEIGHTS)
    touched = identity_of(settings(llama_folder, adapter=adapter)).weights_hash
    config = json.loads((adapter / "adapter_config.json").read_text())
    moved = config | {"base_model_name_or_path": "elsewhere"}
    (adapter / "adapter_config.json").write_text(json.dumps(moved))
    assert identity_of(settings(llama_folder, adapter=adapter)).weights_hash == touched
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 9}))
    rescaled = identity_of(settings(llama_folder, adapter=adapter)).weights_hash
    assert len({base["weights_hash"], adapted["weights_hash"], touched, rescaled}) == 4


def test_another_architecture_keeps_its_names(
    tiny_model: Callable[[Any], Path], tmp_path: Path, chat: Callable[..., Any]
) -> None:
    from transformers import GPT2Config

    folder = tiny_model(
        GPT2Config(
            vocab_size=400, n_embd=32, n_layer=3, n_head=4, n_positions=128, bos_token_id=0,
            eos_token_id=2,
        )
    )  # fmt: skip
    adapter = save_adapter(
        folder, tmp_path / "adapter", target_modules=["c_attn"], fan_in_fan_out=True
    )
    adapted, plain = (load_model(settings(folder, adapter=given), 1) for given in (adapter, None))
    ours = adapted.blocks[1].attn.c_attn.weight
    delta = torch.linalg.matrix_rank(ours - plain.blocks[1].attn.c_attn.weight, atol=1e-5)
    assert delta == 4


def changed(adapter: Path, **changes: Any) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def rewritten(adapter: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(adapter / WEIGHTS)
    change(tensors)
    save_file(tensors, adapter / WEIGHTS)


def pickled(adapter: Path) -> None:
    torch.save(load_file(adapter / WEIGHTS), adapter / "adapter_model.bin")
    (adapter / WEIGHTS).unlink()


def spoiled(tensors: dict[str, torch.Tensor]) -> None:
    tensors[sorted(tensors)[0]][0, 0] = float("nan")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (shutil.rmtree, "replay.adapter: no folder"),
        (lambda a: (a / "adapter_config.json").unlink(), r"holds no adapter_config\.json"),
        (lambda a: (a / "adapter_config.json").write_text("{"), "cannot be read"),
        (lambda a: (a / "adapter_config.json").write_text("[]"), "peft_type is None"),
        (lambda a: changed(a, peft_type="IA3"), "peft_type is 'IA3'; only LORA"),
        (lambda a: changed(a, megatron_config={"a": 1}), "cannot be merged"),
        (lambda a: changed(a, alora_invocation_tokens=[1]), "cannot be merged"),
        (lambda a: changed(a, r=8), "adapter cannot be loaded: RuntimeError"),
        (pickled, "never loaded, they can run code"),
        (
            lambda a: (a / WEIGHTS).write_bytes((a / WEIGHTS).read_bytes()[:-40]),
            r"adapter_model\.safetensors cannot be read",
        ),
        (lambda a: (a / WEIGHTS).write_bytes(b""), "cannot be read"),
        (lambda a: rewritten(a, dict.clear), "holds no tensors"),
        (lambda a: rewritten(a, spoiled), "is not finite"),
        (
            lambda a: rewritten(a, lambda t: t.pop(next(k for k in sorted(t) if "lora_B" in k))),
            "lacks 1 tensors",
        ),
    ],
)
def test_a_damaged_adapter_is_refused(
    llama_folder: Path, adapter: Path, harm: Callable[[Path], Any], message: str
) -> None:
    harm(adapter)
    with pytest.raises(ModelError, match=message):
        load_model(settings(llama_folder, adapter=adapter), 3, full=True)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"hidden_size": 64}, "made for a model of another width"),
        ({"num_hidden_layers": 5}, r"changes model\.layers\.4\..* which the model does not have"),
    ],
)
def test_an_adapter_of_another_model_is_refused(
    llama_folder: Path,
    tiny_model: Callable[[Any], Path],
    tmp_path: Path,
    shape: dict[str, int],
    message: str,
) -> None:
    other = tiny_llama_config(**({"vocab_size": 400} | shape))
    adapter = save_adapter(tiny_model(other), tmp_path / "adapter")
    for full, site in ((True, 3), (False, 1)):
        with pytest.raises(ModelError, match=message) as refused:
            load_model(settings(llama_folder, adapter=adapter), site, full=full)
        assert "the base model that the adapter was trained on" in refused.value.hint


def test_an_adapter_in_place_of_a_model_is_told_apart(adapter: Path) -> None:
    with pytest.raises(ModelError, match="holds a LoRA adapter") as refused:
        load_model(settings(adapter), 0)
    assert "replay.adapter" in refused.value.hint


def test_another_base_name_is_logged(llama_folder: Path, adapter: Path) -> None:
    for base, said in ((f"hub/{llama_folder.name}", []), ("hub/other", ["hub/other"])):
        changed(adapter, base_model_name_or_path=base)
        with structlog.testing.capture_logs() as lines:
            load_model(settings(llama_folder, adapter=adapter), 0)
        assert [line["base"] for line in lines if "base" in line] == said


def test_without_peft_the_extra_is_named(
    llama_folder: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(ConfigurationError, match="needs peft") as refused:
        load_model(settings(llama_folder, adapter=adapter), 0)
    assert ".[research]" in refused.value.hint
