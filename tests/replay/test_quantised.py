"""Quantised checkpoints: read as what their weights mean, taken in float64, or refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from benchmarks.architectures.prove import LIMIT, SITE, stream
from benchmarks.architectures.tiny import save_tiny, tiny_config
from monitor.errors import ModelError
from monitor.replay.answer import answered
from monitor.replay.architectures import largest_difference, proof_prompts, residuals
from monitor.replay.cutting import cut_checkpoint
from monitor.replay.layers import model_class
from monitor.replay.model import identity_of, load_model
from monitor.replay.quantised.formats import taken_format
from monitor.replay.quantised.loading import dequantised
from monitor.settings import ReplaySettings
from tests.replay import quantisers as q

TOLERANCE = 2e-5
"""Largest difference of a token's residual stream from float64, relative to its length: float32's own."""
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}


def settings(folder: Path) -> ReplaySettings:
    return ReplaySettings(model=folder, device="cpu", dtype="float32", max_tokens=LIMIT)


def compressed(
    weights: Mapping[str, Any], form: str, activations: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": dict(weights), "input_activations": activations}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


def packed(bits: int, size: int, *, symmetric: bool) -> dict[str, Any]:
    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric}
    grouping = {"strategy": "group", "group_size": size} if size else {"strategy": "channel"}
    return compressed(weights | grouping, "pack-quantized")


def plain(kind: str, strategy: str, *, symmetric: bool = True, **more: Any) -> dict[str, Any]:
    weights = {"num_bits": 8, "type": kind, "strategy": strategy, "symmetric": symmetric} | more
    return compressed(weights, f"{kind}-quantized", {"num_bits": 8, "type": kind, "dynamic": True})


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": False, "sym": True}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 16, "version": "gemm", "zero_point": True}
NVFP4 = compressed(
    {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16},
    "nvfp4-pack-quantized",
    {"num_bits": 4, "type": "float"},
)
FOUR_BITS = {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False}
NF4 = FOUR_BITS | {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": False}
SIXTEEN = [-1.0, *(step / 8 for step in range(-7, 8)), 1.0]
"""A table of sixteen values: the checkpoint brings its own."""


def torchao(kind: str, **options: Any) -> dict[str, Any]:
    given = {"default": {"_type": kind, "_version": 2, "_data": options}}
    return {"quant_method": "torchao", "quant_type": given}


def hqq(bits: int, size: int, axis: int) -> dict[str, Any]:
    weights = {"nbits": bits, "group_size": size, "axis": axis, "channel_wise": True}
    given = {"weight_quant_params": weights, "scale_quant_params": None, "zero_quant_params": None}
    return {"quant_method": "hqq", "quant_config": given, "skip_modules": ["lm_head"]}


INT8 = q.torchao_note("Int8Tensor", block_size=[1, 16], act_quant_kwargs=None)
INTX = q.torchao_note("IntxUnpackedToInt8Tensor", block_size=[1, 16])
FLOAT8 = q.torchao_note("Float8Tensor", block_size=[1, 16])
INT4 = q.torchao_note("Int4Tensor", block_size=[1, 16], shape=[0, 0])
Case = tuple[str, Mapping[str, Any], q.Quantiser] | tuple[str, Mapping[str, Any], q.Quantiser, str]
"""Architecture, ``quantization_config``, quantiser, and what the header says of each quantised weight."""
CASES: dict[str, Case] = {
    "fp8 in blocks": ("llama", FP8 | {"weight_block_size": [24, 20]}, q.fp8_blocks(24, 20)),
    "fp8 in blocks, experts": (
        "qwen3_moe",
        FP8 | {"weight_block_size": [16, 16]},
        q.fp8_blocks(16, 16, torch.bfloat16),
    ),
    "fp8 in blocks, powers of two": (
        "deepseek_v3",
        FP8 | {"weight_block_size": [16, 16], "scale_fmt": "ue8m0"},
        q.fp8_blocks(16, 16, torch.float8_e8m0fnu),
    ),
    "fp8 in blocks, multimodal": (
        "qwen3_vl",
        FP8 | {"weight_block_size": [16, 16]},
        q.fp8_blocks(16, 16),
    ),
    "fp8 whole": ("ministral3", FP8 | {"weight_block_size": None}, q.fp8_whole),
    "compressed fp8 by rows": (
        "llama",
        plain("float", "channel"),
        q.compressed_plain("float", "channel"),
    ),
    "compressed fp8 whole": (
        "qwen3",
        plain("float", "tensor"),
        q.compressed_plain("float", "tensor"),
    ),
    "compressed fp8 in blocks": (
        "llama",
        plain("float", "block", block_structure=[16, 16]),
        q.compressed_plain("float", "block"),
    ),
    "compressed w8a8": ("llama", plain("int", "channel"), q.compressed_plain("int", "channel")),
    "compressed w8a8, zero points": (
        "qwen2",
        plain("int", "channel", symmetric=False),
        q.compressed_plain("int", "channel", symmetric=False),
    ),
    "compressed w4a16": (
        "llama",
        packed(4, 16, symmetric=True),
        q.compressed_packed(4, 16, symmetric=True),
    ),
    "compressed w4a16, zero points": (
        "qwen3_moe",
        packed(4, 8, symmetric=False),
        q.compressed_packed(4, 8, symmetric=False),
    ),
    "compressed w8a16 by rows": (
        "llama",
        packed(8, 0, symmetric=True),
        q.compressed_packed(8, 0, symmetric=True),
    ),
    "compressed nvfp4": ("llama", NVFP4, q.nvfp4),
    "mxfp4": ("gpt_oss", {"quant_method": "mxfp4"}, q.mxfp4),
    "gptq": ("llama", GPTQ, q.gptq(4, 16, symmetric=True, added=1)),
    "gptq ordered by activations": (
        "qwen3_moe",
        GPTQ | {"desc_act": True, "sym": False},
        q.gptq(4, 16, symmetric=False, added=1, ordered=True),
    ),
    "gptq, second version": (
        "llama",
        GPTQ | {"bits": 8, "group_size": -1, "checkpoint_format": "gptq_v2"},
        q.gptq(8, -1, symmetric=False, added=0),
    ),
    "awq": ("qwen2", AWQ, q.awq(16)),
    "bitsandbytes int8": (
        "qwen3_moe",
        {"quant_method": "bitsandbytes", "load_in_8bit": True, "load_in_4bit": False},
        q.bnb_int8,
    ),
    "bitsandbytes nf4": ("llama", NF4, q.bnb_four_bits("nf4", SIXTEEN[1:], block=48)),
    "bitsandbytes fp4, scales in eight bits": (
        "qwen2",
        NF4 | {"bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": True},
        q.bnb_four_bits("fp4", SIXTEEN[1:], block=64, nested=3),
    ),
    "torchao int8": (
        "qwen3_vl",
        torchao("Int8DynamicActivationInt8WeightConfig"),
        q.torchao_blocks("Int8Tensor", 16),
        INT8,
    ),
    "torchao int4 in int8": (
        "llama",
        torchao("IntxWeightOnlyConfig"),
        q.torchao_blocks("IntxUnpackedToInt8Tensor", 16, 4),
        INTX,
    ),
    "torchao float8": (
        "qwen3_moe",
        torchao("Float8WeightOnlyConfig"),
        q.torchao_blocks("Float8Tensor", 16),
        FLOAT8,
    ),
    "torchao int4, inputs scaled": (
        "llama",
        torchao("Int4WeightOnlyConfig", group_size=16),
        q.torchao_blocks("Int4Tensor", 16, 4),
        INT4,
    ),
    "hqq, four bits": ("qwen2", hqq(4, 16, 1), q.hqq(4, 16, 1, "4bit_u8")),
    "hqq, eight bits, columns": ("qwen3_moe", hqq(8, 8, 0), q.hqq(8, 8, 0, "8bit_u8")),
    "hqq, three bits": ("llama", hqq(3, 32, 1), q.hqq(3, 32, 1, "3bit_32")),
}
WRITTEN = sorted(Path(__file__).parent.joinpath("written").glob("*.safetensors"))


def drawn(kind: str, folder: Path) -> Path:
    changes = {"intermediate_size": 64} if kind == "gpt_oss" else {}
    save_tiny(tiny_config(kind, **changes), folder)
    return folder


@pytest.fixture
def made(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """The folder of a quantised checkpoint, and that of an open one with what its weights mean, in float64."""
    kind, config, quantiser, *note = CASES[request.param]
    source = drawn(kind, tmp_path / "source")
    meant = q.quantised(source, tmp_path / "quantised", config, quantiser, *note)
    opened = Path(shutil.copytree(source, tmp_path / "open"))
    [file] = opened.glob("*.safetensors")
    save_file({name: w.contiguous() for name, w in meant.items()}, file, {"format": "pt"})
    return tmp_path / "quantised", opened


@pytest.mark.parametrize("made", CASES, indirect=True)
def test_a_quantised_checkpoint_reads_as_what_its_weights_mean(made: tuple[Path, Path]) -> None:
    folder, opened = made
    loaded = load_model(settings(folder), SITE)
    held = {name: w for name, w in loaded.model.named_parameters() if not w.dtype.is_floating_point}
    assert not held
    expected = dict(load_model(settings(opened), SITE).model.named_parameters())
    for name, weight in loaded.model.named_parameters():
        torch.testing.assert_close(weight, expected[name], rtol=1e-6, atol=1e-8)
    prompts = proof_prompts(loaded, LIMIT)
    kind: Any = model_class(AutoConfig.from_pretrained(opened), full=True)
    options: dict[str, Any] = {"dtype": torch.float64, "attn_implementation": "eager"}
    whole = kind.from_pretrained(opened, experts_implementation="eager", **options).eval()
    found = residuals(loaded, prompts, LIMIT)
    assert largest_difference(stream(whole, prompts), found) <= TOLERANCE


@pytest.mark.parametrize("file", WRITTEN, ids=lambda file: file.stem)
def test_what_a_library_wrote_means_what_the_library_says(file: Path) -> None:
    with safe_open(file, framework="pt") as held:
        config = json.loads(held.metadata()["config"])
        meant = held.get_tensor("meant")
    architecture = LlamaConfig(quantization_config=config)
    form = taken_format(architecture)
    assert form is not None
    with dequantised([file], form, lambda name: name == "meant") as weights:
        [(name, weight)] = weights.items()
        assert name == "model.layers.0.self_attn.q_proj.weight"
        torch.testing.assert_close(weight[...], meant, rtol=1e-6, atol=1e-8)
    assert len(WRITTEN) == 15


@pytest.mark.parametrize(
    ("made", "option"),
    [("fp8 in blocks, experts", "FineGrainedFP8Config"), ("mxfp4", "Mxfp4Config")],
    indirect=["made"],
)
def test_the_library_dequantises_to_the_same(made: tuple[Path, Path], option: str) -> None:
    import transformers

    folder, _ = made
    config = getattr(transformers, option)(dequantize=True)
    stock: Any = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=config, dtype=torch.float32
    )
    theirs = dict(stock.model.named_parameters())
    ours = dict(load_model(settings(folder), SITE).model.named_parameters())
    assert ours.keys() <= theirs.keys()
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name].float(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("made", ["fp8 in blocks"], indirect=True)
def test_lineage_and_identity_know_a_quantised_checkpoint(made: tuple[Path, Path]) -> None:
    folder, opened = made
    loaded = load_model(settings(folder), 1)
    served = "fp8 weights scaled in blocks of 24 x 20, fp8 activations"
    assert loaded.rules == {"served": served, "fused": "gate heads norm"}
    assert loaded.precision == f"float32, dequantised (served: {served})"
    assert loaded.identity == identity_of(settings(folder))
    assert loaded.model_hash != load_model(settings(opened), 1).model_hash


@pytest.mark.parametrize("made", ["fp8 in blocks"], indirect=True)
def test_a_whole_copy_answers_as_an_open_one(made: tuple[Path, Path]) -> None:
    folder, opened = made
    for one in made:
        (one / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7]}))
    ours, theirs = (load_model(settings(one), 1, full=True) for one in (folder, opened))
    assert ours.answerer is not None
    assert ours.answerer.generation_config.eos_token_id == [2, 7]
    assert answered(ours, [5, 17, 40], 6) == answered(theirs, [5, 17, 40], 6)


@pytest.mark.parametrize("made", ["fp8 in blocks"], indirect=True)
def test_only_shards_of_the_needed_blocks_are_opened(
    made: tuple[Path, Path], tmp_path: Path
) -> None:
    folder, _ = made
    whole = dict(load_model(settings(folder), 1).model.named_parameters())
    [file] = folder.glob("*.safetensors")
    shards: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in load_file(file).items():
        block = name.split(".layers.")[1][0] if ".layers." in name else "0"
        # Weight and scale lie apart, as the borders of shards may have it.
        place = f"block{block}-{'scales' if name.endswith('_inv') else 'weights'}.safetensors"
        shards.setdefault(place, {})[name] = tensor
    file.unlink()
    index = {"weight_map": {name: place for place, held in shards.items() for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for place, tensors in shards.items():
        if place[5] in "01":
            save_file(tensors, folder / place, {"format": "pt"})
    for name, weight in load_model(settings(folder), 1).model.named_parameters():
        assert torch.equal(weight, whole[name])
    with pytest.raises(ModelError, match="lacks 2 of the shards"):
        load_model(settings(folder), 2)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"quant_method": "eetq"}, "quantised by eetq"),
        (FOUR_BITS | {"bnb_4bit_quant_type": "af4"}, "af4"),
        (FOUR_BITS | {"load_in_4bit": False}, "load_in_4bit is False, and load_in_8bit"),
        (torchao("FqnToConfig"), "names no configuration of torchao"),
        ({"quant_method": "hqq", "quant_config": {}}, "says nothing about the weights"),
        (FP8 | {"fmt": "e5m2"}, "e5m2"),
        (GPTQ | {"bits": 3}, "bits is 3"),
        (GPTQ | {"checkpoint_format": "marlin"}, "marlin"),
        (GPTQ | {"dynamic": {"+:.*down.*": {"bits": 8}}}, "dynamic"),
        (AWQ | {"version": "gemv"}, "gemv"),
        ({"quant_method": "mxfp4"}, "mxfp4 of llama"),
        (plain("float", "channel") | {"format": "marlin-24"}, "marlin-24"),
        (
            plain("float", "channel") | {"transform_config": {"config_groups": {"R1": {}}}},
            "rotated",
        ),
        (plain("int", "channel") | {"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse"),
    ],
)
def test_what_is_not_read_is_refused_by_name(
    config: Mapping[str, Any], named: str, tmp_path: Path
) -> None:
    q.quantised(drawn("llama", tmp_path / "source"), tmp_path / "made", config, lambda _n, _w: None)
    with pytest.raises(ModelError, match=named) as refused:
        identity_of(settings(tmp_path / "made"))
    assert "bfloat16 or float32" in refused.value.hint


def _garbled() -> torch.Tensor:
    return torch.tensor(list(b"{nothing")).byte()


Change = Callable[[dict[str, torch.Tensor]], object]
Q_PROJ = "model.layers.1.self_attn.q_proj"


@pytest.mark.parametrize(
    ("made", "change", "named"),
    [
        ("fp8 in blocks", lambda t: t.pop(f"{Q_PROJ}.weight_scale_inv"), "stored in F8_E4M3"),
        ("fp8 in blocks", lambda t: t.pop(f"{Q_PROJ}.weight"), "lacks its part 'weight'"),
        (
            "fp8 in blocks",
            lambda t: t.update({f"{Q_PROJ}.weight_scale_inv": torch.ones(1, 1)}),
            "q_proj.weight_scale_inv has the shape",
        ),
        (
            "compressed w8a8",
            lambda t: t.update({f"{Q_PROJ}.weight": torch.ones(32, 32)}),
            "stored in F32; only I8",
        ),
        (
            "compressed w4a16",
            lambda t: t.update({f"{Q_PROJ}.weight_g_idx": torch.zeros(32)}),
            "weight_g_idx belongs to a quantised weight",
        ),
        (
            "compressed w4a16",
            lambda t: t.update({f"{Q_PROJ}.weight_shape": torch.tensor([32, 24])}),
            "does not hold 32 x 24 numbers",
        ),
        (
            "gptq",
            lambda t: t.update({f"{Q_PROJ}.g_idx": torch.full((32,), 9, dtype=torch.int32)}),
            "names groups that are not there",
        ),
        (
            "gptq",
            lambda t: t.update({f"{Q_PROJ}.qzeros": torch.full((2, 4), -1, dtype=torch.int32)}),
            "zero points that servers read differently",
        ),
        ("awq", lambda t: t.pop(f"{Q_PROJ}.scales"), "lacks its part 'scales'"),
        ("bitsandbytes int8", lambda t: t.pop(f"{Q_PROJ}.SCB"), "lacks its part 'scales'"),
        (
            "bitsandbytes int8",
            lambda t: t.update({f"{Q_PROJ}.weight_format": torch.tensor(2).byte()}),
            "laid out for one kind of GPU",
        ),
        (
            "bitsandbytes nf4",
            lambda t: t.update({f"{Q_PROJ}.weight.absmax": torch.ones(3)}),
            "has 3 scales for 1024 numbers in blocks of 48",
        ),
        (
            "bitsandbytes nf4",
            lambda t: t.update({f"{Q_PROJ}.weight.quant_state.bitsandbytes__nf4": _garbled()}),
            "bitsandbytes__nf4 cannot be read",
        ),
        (
            "torchao int8",
            lambda t: t.pop("model.language_model.layers.1.self_attn.q_proj._weight_scale"),
            "lacks its part 'scales'",
        ),
        (
            "torchao float8",
            lambda t: t.update({f"{Q_PROJ}._weight_scale": torch.ones(32, 5)}),
            r"_weight_scale has the shape \[32, 5\]",
        ),
        (
            "hqq, four bits",
            lambda t: t.update({f"{Q_PROJ}.packing": _garbled()}),
            "is packed as",
        ),
        (
            "hqq, four bits",
            lambda t: t.update({f"{Q_PROJ}.quant_scale": torch.tensor(1)}),
            "scales or zero points are quantised",
        ),
    ],
    indirect=["made"],
)
def test_damaged_parts_are_refused_by_name(
    made: tuple[Path, Path], change: Change, named: str
) -> None:
    folder, _ = made
    [file] = folder.glob("*.safetensors")
    with safe_open(file, framework="pt") as held:
        notes = held.metadata()
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, notes)
    with pytest.raises(ModelError, match=named):
        load_model(settings(folder), SITE)
    # What lies behind the deepest site is not looked at.
    load_model(settings(folder), 0)


@pytest.mark.parametrize("made", ["torchao int4 in int8"], indirect=True)
def test_what_the_header_says_is_needed_and_goes_with_a_cut_copy(
    made: tuple[Path, Path], tmp_path: Path
) -> None:
    folder, _ = made
    whole = dict(load_model(settings(folder), 1).model.named_parameters())
    cut_checkpoint(folder, 1, tmp_path / "cut")
    for name, weight in load_model(settings(tmp_path / "cut"), 1).model.named_parameters():
        assert torch.equal(weight, whole[name])
    [file] = folder.glob("*.safetensors")
    save_file(load_file(file), file, {"format": "pt"})
    with pytest.raises(ModelError, match=r"the header of its file does not say how it is stored"):
        load_model(settings(folder), 1)
    note = q.torchao_note("Int4TilePackedTo4dTensor")
    save_file(load_file(file), file, dict.fromkeys(whole_names(file), note))
    with pytest.raises(ModelError, match=r"for one kind of hardware \(Int4TilePackedTo4dTensor\)"):
        load_model(settings(folder), 1)


def whole_names(file: Path) -> list[str]:
    """What the weights are called that ``file`` holds the numbers of."""
    ends = "._weight_qdata"
    return [name.replace(ends, ".weight") for name in load_file(file) if name.endswith(ends)]


@pytest.mark.parametrize("made", ["fp8 in blocks", "compressed w8a8"], indirect=True)
def test_quantised_weights_that_nothing_announces_are_refused(made: tuple[Path, Path]) -> None:
    folder, _ = made
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"is stored in (F8_E4M3|I8), and config.json has no"):
        load_model(settings(folder), SITE)


def test_layers_that_lie_the_other_way_are_refused(tmp_path: Path) -> None:
    def whole(name: str, weight: torch.Tensor) -> Any:
        stays = not name.endswith("c_proj.weight")
        return None if stays else q.fp8_whole(name.replace("c_proj", "proj"), weight)

    source = drawn("gpt2", tmp_path / "source")
    q.quantised(source, tmp_path / "made", FP8, whole)
    with pytest.raises(ModelError, match="gpt2: its quantised weights are not read"):
        load_model(settings(tmp_path / "made"), SITE)
