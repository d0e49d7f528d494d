"""Weights as the libraries themselves write them, each beside what its library says that it means.

Run by hand, in an environment with bitsandbytes 0.50, torchao 0.18, hqq 0.2.8, termcolor and this project's torch and transformers:
`python tests/replay/written/write.py`. A file holds one linear layer of a tiny Llama, saved by transformers (HQQ: by its own
`state_dict`), under its own names, with the header's notes; ``meant`` is the library's dequantised weight in float32.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import torch
from hqq.core.quantize import BaseQuantizeConfig, HQQLinear
from safetensors import safe_open
from safetensors.torch import save_file
from torchao.quantization import (
    Float8WeightOnlyConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    IntxWeightOnlyConfig,
    PerTensor,
)
from torchao.quantization.granularity import PerGroup
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TorchAoConfig

from benchmarks.architectures.tiny import save_tiny, tiny_config

HERE = Path(__file__).parent
LAYER = "model.layers.0.self_attn.q_proj"
LIBRARY = {
    "bitsandbytes-int8": BitsAndBytesConfig(load_in_8bit=True),
    "bitsandbytes-nf4": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    "bitsandbytes-fp4": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="fp4"),
    "bitsandbytes-nf4-nested": BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_quant_storage=torch.bfloat16,
    ),
    "torchao-int8": TorchAoConfig(Int8WeightOnlyConfig()),
    "torchao-int8-activations": TorchAoConfig(Int8DynamicActivationInt8WeightConfig()),
    "torchao-float8-rows": TorchAoConfig(Float8WeightOnlyConfig()),
    "torchao-float8-whole": TorchAoConfig(Float8WeightOnlyConfig(granularity=PerTensor())),
    "torchao-intx4": TorchAoConfig(
        IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(16))
    ),
}
HQQ = {
    f"hqq-{bits}-bits-axis-{axis}": {"nbits": bits, "group_size": 16, "axis": axis}
    for bits, axis in [(8, 1), (4, 0), (4, 1), (3, 1), (2, 0), (1, 1)]
}


def meaning(module: Any) -> torch.Tensor:
    """What the module's library says of its weight, in float32."""
    weight = module.weight
    if isinstance(module, bnb.nn.Linear4bit):
        return bnb.functional.dequantize_4bit(weight.data, weight.quant_state).float()
    if isinstance(module, bnb.nn.Linear8bitLt):
        return bnb.functional.int8_vectorwise_dequant(weight.data, weight.SCB).float()
    return weight.dequantize().float()


def written(
    name: str,
    parts: Mapping[str, torch.Tensor],
    notes: Mapping[str, str],
    config: Any,
    meant: torch.Tensor,
) -> None:
    notes = {"config": json.dumps(config)} | {
        key: text for key, text in notes.items() if LAYER in key
    }
    notes.pop("tensor_names", None)
    tensors = {key: part.detach().contiguous() for key, part in parts.items() if LAYER in key}
    save_file(tensors | {"meant": meant.contiguous()}, HERE / f"{name}.safetensors", notes)


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        source, saved = Path(place, "source"), Path(place, "saved")
        save_tiny(tiny_config("llama", hidden_size=64), source)
        options: dict[str, Any] = {"dtype": torch.float32, "device_map": "cpu"}
        for name, config in LIBRARY.items():
            model = AutoModelForCausalLM.from_pretrained(
                source, quantization_config=config, **options
            )
            model.save_pretrained(saved)
            said = json.loads((saved / "config.json").read_text())["quantization_config"]
            with safe_open(saved / "model.safetensors", framework="pt") as file:
                parts = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                notes = file.metadata()
            written(name, parts, notes, said, meaning(model.get_submodule(LAYER)))
        plain = AutoModelForCausalLM.from_pretrained(source, **options)
        for name, given in HQQ.items():
            said = BaseQuantizeConfig(**given)
            options = {"compute_dtype": torch.float32, "device": "cpu", "del_orig": False}
            layer = HQQLinear(plain.get_submodule(LAYER), quant_config=said, **options)
            parts = {f"{LAYER}.{key}": part for key, part in layer.state_dict().items()}
            config = {"quant_method": "hqq", "quant_config": said, "skip_modules": ["lm_head"]}
            written(name, parts, {}, config, layer.dequantize())


if __name__ == "__main__":
    main()
