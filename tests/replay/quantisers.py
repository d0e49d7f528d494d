"""Quantisers in few words: they write a tiny checkpoint as the formats' own tools do, and say what it means.

Numbers are packed one by one, in plain Python integers, so that nothing here is what the replay does.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

Parts = dict[str, torch.Tensor]
Quantiser = Callable[[str, torch.Tensor], tuple[Parts, torch.Tensor] | None]
"""From a weight's name and value to the tensors stored for it and its meaning in float64; None: it stays."""
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def quantised(
    source: Path, folder: Path, config: Mapping[str, Any], quantiser: Quantiser, note: str = ""
) -> dict[str, torch.Tensor]:
    """Write ``source`` quantised to ``folder``; what its weights mean, in float64, by name.

    ``note`` is what the file's header says of each quantised weight.
    """
    shutil.copytree(source, folder, dirs_exist_ok=True)
    [file] = folder.glob("*.safetensors")
    stored: Parts = {}
    meant: Parts = {}
    notes = {"format": "pt"}
    for name, weight in load_file(file).items():
        made = quantiser(name, weight) if ".layers." in name or "experts" in name else None
        if made is None:
            stored[name], meant[name] = weight, weight.double()
        else:
            parts, meant[name] = made
            stored |= parts
            notes |= {name: note} if note else {}
    save_file({name: part.contiguous() for name, part in stored.items()}, file, notes)
    read = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(read | {"quantization_config": dict(config)}))
    return meant


def fp8_blocks(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> Quantiser:
    def quantise(name: str, weight: torch.Tensor) -> tuple[Parts, torch.Tensor] | None:
        if weight.ndim != 2 or not name.endswith("proj.weight"):
            return None
        height, width = weight.shape
        values = torch.empty_like(weight, dtype=torch.float8_e4m3fn)
        scales = torch.empty(-(-height // rows), -(-width // columns))
        meant = torch.empty_like(weight, dtype=torch.float64)
        for i in range(scales.shape[0]):
            for j in range(scales.shape[1]):
                where = slice(i * rows, (i + 1) * rows), slice(j * columns, (j + 1) * columns)
                scale = (weight[where].abs().max() / 448).to(dtype)
                if dtype == torch.float8_e8m0fnu:
                    scale = torch.exp2(torch.ceil(torch.log2(weight[where].abs().max() / 448)))
                scales[i, j] = scale.float()
                values[where] = (weight[where] / scale.float()).to(torch.float8_e4m3fn)
                meant[where] = values[where].double() * scales[i, j].double()
        return {name: values, f"{name}_scale_inv": scales.to(dtype)}, meant

    return quantise


def fp8_whole(name: str, weight: torch.Tensor) -> tuple[Parts, torch.Tensor] | None:
    if not name.endswith("proj.weight"):
        return None
    scale = weight.abs().max() / 448
    values = (weight / scale).to(torch.float8_e4m3fn)
    activation = {name.replace("weight", "activation_scale"): torch.tensor(0.02)}
    return {name: values, f"{name}_scale_inv": scale} | activation, values.double() * scale.double()


def words(numbers: np.ndarray, bits: int) -> torch.Tensor:
    """Unsigned numbers packed along the last axis, lowest bits first, in int32."""
    many = 32 // bits
    flat = numbers.reshape(-1, numbers.shape[-1])
    packed = np.zeros((flat.shape[0], -(-flat.shape[1] // many)), dtype=np.uint32)
    for (line, column), number in np.ndenumerate(flat):
        packed[line, column // many] |= np.uint32(int(number) << (bits * (column % many)))
    return torch.from_numpy(packed.view(np.int32).reshape(*numbers.shape[:-1], -1).copy())


def integers(
    weight: torch.Tensor, bits: int, size: int, *, symmetric: bool
) -> tuple[np.ndarray, np.ndarray, torch.Tensor]:
    """Unsigned numbers [m, n], zero points [m, g] and scales [m, g] for groups of ``size`` columns."""
    grouped = weight.double().reshape(weight.shape[0], -1, size)
    most = 2**bits - 1
    if symmetric:
        scales = (grouped.abs().amax(-1) * 2 / most).half().float()
        zeros = torch.full_like(scales, 2 ** (bits - 1))
    else:
        low = grouped.amin(-1).clamp(max=0)
        scales = ((grouped.amax(-1).clamp(min=0) - low) / (most - 1)).half().float()
        zeros = (-low / scales).round().clamp(1, most - 1)
    numbers = (grouped / scales.unsqueeze(-1) + zeros.unsqueeze(-1)).round().clamp(0, most)
    return (
        numbers.reshape(weight.shape).numpy().astype(np.int64),
        zeros.numpy().astype(np.int64),
        scales,
    )


def meaning(numbers: np.ndarray, zeros: np.ndarray, scales: torch.Tensor) -> torch.Tensor:
    size = numbers.shape[1] // zeros.shape[1]
    wide = np.repeat(zeros, size, axis=1)
    factor = np.repeat(scales.double().numpy(), size, axis=1)
    return torch.from_numpy((numbers - wide) * factor)


def compressed_plain(kind: str, strategy: str, *, symmetric: bool = True) -> Quantiser:
    """FP8 or int8, one number for each weight."""

    def quantise(name: str, weight: torch.Tensor) -> tuple[Parts, torch.Tensor] | None:
        if not name.endswith("proj.weight"):
            return None
        if strategy == "block":
            made = fp8_blocks(16, 16)(name, weight)
            assert made is not None
            parts, meant = made
            return {name: parts[name], f"{name}_scale": parts[f"{name}_scale_inv"]}, meant
        stem = name.removesuffix(".weight")
        top = weight.abs().amax(1, keepdim=True) if strategy == "channel" else weight.abs().max()
        if kind == "int":
            numbers, zeros, scales = integers(weight, 8, weight.shape[1], symmetric=symmetric)
            parts = {name: torch.from_numpy(numbers - 128).to(torch.int8), f"{name}_scale": scales}
            if not symmetric:
                parts[f"{name}_zero_point"] = torch.from_numpy(zeros - 128).to(torch.int8)
            return parts, meaning(numbers, zeros, scales)
        scale = (top / 448).to(torch.bfloat16).reshape(-1, 1)
        if strategy == "tensor":
            scale = scale.reshape(1)
        values = (weight / scale.float()).to(torch.float8_e4m3fn)
        parts = {name: values, f"{name}_scale": scale, f"{stem}.input_scale": torch.ones(1)}
        return parts, values.double() * scale.double()

    return quantise


def compressed_packed(bits: int, size: int, *, symmetric: bool) -> Quantiser:
    def quantise(name: str, weight: torch.Tensor) -> tuple[Parts, torch.Tensor] | None:
        if not name.endswith("proj.weight"):
            return None
        numbers, zeros, scales = integers(
            weight, bits, size or weight.shape[1], symmetric=symmetric
        )
        parts = {
            f"{name}_packed": words(numbers, bits),
            f"{name}_scale": scales.to(torch.float16),
            f"{name}_shape": torch.tensor(weight.shape),
        }
        if not symmetric:
            parts[f"{name}_zero_point"] = words(zeros.T.copy(), bits).T
        return parts, meaning(numbers, zeros, scales)

    return quantise


def e2m1(values: np.ndarray) -> np.ndarray:
    """The four bits of the nearest value of E2M1."""
    nearest = np.abs(np.abs(values)[..., None] - np.array(E2M1)).argmin(-1)
    return np.where(np.signbit(values), nearest + 8, nearest).astype(np.int64)


def of_e2m1(bits: np.ndarray) -> np.ndarray:
    table = np.array(E2M1 + [-value for value in E2M1])
    return np.asarray(table[bits])


def paired(bits: np.ndarray) -> torch.Tensor:
    """Two halves in a byte, the first one low."""
    return torch.from_numpy((bits[..., 0::2] | (bits[..., 1::2] << 4)).astype(np.uint8))


def nvfp4(name: str, weight: torch.Tensor) -> tuple[Parts, torch.Tensor] | None:
    if not name.endswith("proj.weight"):
        return None
    grouped = weight.double().reshape(weight.shape[0], -1, 16)
    whole = (448 * 6 / weight.abs().max()).float()
    scales = (grouped.abs().amax(-1) / 6 * whole.double()).to(torch.float8_e4m3fn)
    factor = scales.double() / whole.double()
    bits = e2m1((grouped / factor.unsqueeze(-1)).numpy())
    meant = torch.from_numpy(of_e2m1(bits)) * factor.unsqueeze(-1)
    return {
        f"{name}_packed": paired(bits.reshape(*weight.shape)),
        f"{name}_scale": scales,
        f"{name}_global_scale": whole.reshape(1),
    }, meant.reshape(weight.shape)


def mxfp4(name: str, weight: torch.Tensor) -> tuple[Parts, torch.Tensor] | None:
    """Experts [e, in, out], stored by outputs."""
    if not name.endswith(("gate_up_proj", "down_proj")):
        return None
    turned = weight.double().transpose(1, 2)
    grouped = turned.reshape(*turned.shape[:2], -1, 32)
    exponents = torch.ceil(torch.log2(grouped.abs().amax(-1) / 6))
    factor = torch.exp2(exponents)
    bits = e2m1((grouped / factor.unsqueeze(-1)).numpy())
    meant = (torch.from_numpy(of_e2m1(bits)) * factor.unsqueeze(-1)).reshape(turned.shape)
    return {
        f"{name}_blocks": paired(bits),
        f"{name}_scales": (exponents + 127).to(torch.uint8),
    }, meant.transpose(1, 2)


def gptq(bits: int, size: int, *, symmetric: bool, added: int, ordered: bool = False) -> Quantiser:
    """``added``: what the format's first version takes off the zero points; ``ordered``: by activations."""

    def quantise(name: str, weight: torch.Tensor) -> tuple[Parts, torch.Tensor] | None:
        if not name.endswith("proj.weight"):
            return None
        inputs = weight.shape[1]
        order = np.random.default_rng(3).permutation(inputs) if ordered else np.arange(inputs)
        group = size if size > 0 else inputs
        numbers, zeros, scales = integers(weight[:, order], bits, group, symmetric=symmetric)
        back = np.argsort(order)
        meant = meaning(numbers, zeros, scales)[:, back]
        stem = name.removesuffix("weight")
        return {
            f"{stem}qweight": words(numbers[:, back], bits).T,
            f"{stem}qzeros": words((zeros - added).T.copy(), bits),
            f"{stem}scales": scales.T.to(torch.float16),
            f"{stem}g_idx": torch.from_numpy((back // group).astype(np.int32)),
        }, meant

    return quantise


def awq(size: int) -> Quantiser:
    def quantise(name: str, weight: torch.Tensor) -> tuple[Parts, torch.Tensor] | None:
        if not name.endswith("proj.weight"):
            return None
        numbers, zeros, scales = integers(weight, 4, size, symmetric=False)
        stem = name.removesuffix("weight")

        def shuffled(values: np.ndarray) -> np.ndarray:
            eights = values.T.reshape(values.shape[1], -1, 8)
            return eights[..., [0, 2, 4, 6, 1, 3, 5, 7]].reshape(values.shape[1], -1)

        return {
            f"{stem}qweight": words(shuffled(numbers), 4),
            f"{stem}qzeros": words(shuffled(zeros), 4),
            f"{stem}scales": scales.T.to(torch.float16),
        }, meaning(numbers, zeros, scales)

    return quantise


def bnb_int8(name: str, weight: torch.Tensor) -> tuple[Parts, torch.Tensor] | None:
    if not name.endswith("proj.weight"):
        return None
    top = weight.abs().amax(1)
    numbers = (weight / top.unsqueeze(1) * 127).round().to(torch.int8)
    stem = name.removesuffix("weight")
    parts = {name: numbers, f"{stem}SCB": top, f"{stem}weight_format": torch.tensor(0).byte()}
    return parts, numbers.double() * top.double().unsqueeze(1) / 127


def bnb_four_bits(kind: str, table: list[float], *, block: int, nested: int = 0) -> Quantiser:
    """``nested``: how many scales in eight bits share one; 0: scales are float32."""

    def quantise(name: str, weight: torch.Tensor) -> tuple[Parts, torch.Tensor] | None:
        if not name.endswith("proj.weight"):
            return None
        flat = weight.double().flatten().numpy()
        blocks = [flat[start : start + block] for start in range(0, len(flat), block)]
        scales = np.array([np.abs(one).max() for one in blocks], dtype=np.float32)
        state: dict[str, Any] = {"quant_type": kind, "blocksize": block, "dtype": "bfloat16"}
        parts: Parts = {f"{name}.absmax": torch.from_numpy(scales)}
        meant_scales = scales.astype(np.float64)
        if nested:
            steps = np.linspace(-1, 1, 256).astype(np.float32)
            offset = float(scales.mean())
            groups = range(0, len(scales), nested)
            tops = [np.abs(scales[one : one + nested] - offset).max() for one in groups]
            share = np.repeat(np.array(tops, dtype=np.float32), nested)[: len(scales)]
            bytes_ = np.abs((scales - offset)[:, None] / share[:, None] - steps).argmin(-1)
            meant_scales = steps[bytes_].astype(np.float64) * share + offset
            state |= {
                "nested_blocksize": nested,
                "nested_offset": offset,
                "nested_dtype": "float32",
            }
            parts = {
                f"{name}.absmax": torch.from_numpy(bytes_.astype(np.uint8)),
                f"{name}.nested_absmax": torch.tensor(np.array(tops, dtype=np.float32)),
                f"{name}.nested_quant_map": torch.from_numpy(steps),
            }
        values = np.array(table, dtype=np.float32)
        wide = np.repeat(meant_scales, block)[: len(flat)]
        bits = np.abs(flat[:, None] / wide[:, None] - values).argmin(-1)
        packed = torch.from_numpy(((bits[0::2] << 4) | bits[1::2]).astype(np.uint8)).unsqueeze(1)
        said = json.dumps(state | {"shape": list(weight.shape)}).encode()
        parts |= {
            # Bytes may be kept as another type; nested checkpoints are trained further so.
            name: packed.flatten().view(torch.bfloat16).unsqueeze(1) if nested else packed,
            f"{name}.quant_map": torch.from_numpy(values),
            f"{name}.quant_state.bitsandbytes__{kind}": torch.tensor(list(said)).byte(),
        }
        meant = values[bits].astype(np.float64) * wide
        return parts, torch.from_numpy(meant.reshape(weight.shape))

    return quantise


def torchao_note(kind: str, **attributes: Any) -> str:
    return json.dumps({"_type": kind, "_data": attributes})


def torchao_blocks(kind: str, size: int, bits: int = 8) -> Quantiser:
    """Integers in int8, or FP8, with a scale for each ``size`` columns; ``Int4Tensor`` has two in a byte."""

    def quantise(name: str, weight: torch.Tensor) -> tuple[Parts, torch.Tensor] | None:
        if not name.endswith("proj.weight"):
            return None
        stem = name.removesuffix("weight") + "_weight_"
        grouped = weight.double().reshape(weight.shape[0], -1, size)
        if kind == "Float8Tensor":
            scales = (grouped.abs().amax(-1) / 448).float()
            values = (grouped / scales.double().unsqueeze(-1)).to(torch.float8_e4m3fn)
            parts = {f"{stem}qdata": values.reshape(weight.shape), f"{stem}scale": scales}
            meant = values.double() * scales.double().unsqueeze(-1)
            return parts, meant.reshape(weight.shape)
        numbers, zeros, scales = integers(weight, bits, size, symmetric=False)
        half = 2 ** (bits - 1)
        if kind == "Int4Tensor":
            shift = ((half - torch.from_numpy(zeros)) * scales.double()).float()
            inputs = torch.linspace(0.5, 2, weight.shape[1])
            parts = {
                f"{stem}qdata": paired((numbers - half) & 0xF).view(torch.int8),
                f"{stem}scale": scales.T,
                f"{stem}zero_point": shift.T,
                f"{stem}act_pre_scale": inputs,
            }
            wide = shift.double().repeat_interleave(size, dim=1)
            plain = meaning(numbers - half, np.zeros_like(zeros), scales) + wide
            return parts, plain * inputs.double()
        parts = {
            f"{stem}qdata": torch.from_numpy(numbers - half).to(torch.int8),
            f"{stem}scale": scales,
            f"{stem}zero_point": torch.from_numpy(zeros - half).to(torch.int8),
        }
        return parts, meaning(numbers, zeros, scales)

    return quantise


def hqq(bits: int, size: int, axis: int, packing: str) -> Quantiser:
    """Numbers of one byte or word stand a whole part of the rows apart, the first in the highest bits."""
    many = {"4bit_u8": 2, "3bit_32": 10, "8bit_u8": 1}[packing]

    def said(**values: Any) -> Parts:
        texts = {key: list(text.encode()) for key, text in values.items() if isinstance(text, str)}
        held = {key: torch.tensor(text).byte() for key, text in texts.items()}
        numbers = {key: one for key, one in values.items() if key not in texts}
        return held | {key: torch.tensor(one, dtype=torch.int32) for key, one in numbers.items()}

    def quantise(name: str, weight: torch.Tensor) -> tuple[Parts, torch.Tensor] | None:
        if not name.endswith("proj.weight"):
            return None
        shape = (-1, size) if axis == 1 else (size, -1)
        grouped = weight.double().reshape(shape)
        low = grouped.amin(axis, keepdim=True)
        scales = ((grouped.amax(axis, keepdim=True) - low) / (2**bits - 1)).float()
        zeros = (-low / scales).float()
        numbers = (grouped / scales + zeros).round().clamp(0, 2**bits - 1).long().numpy()
        step = -(-len(numbers) // many)
        packed = np.zeros((step, numbers.shape[1]), dtype=np.uint32)
        for (row, column), number in np.ndenumerate(numbers):
            shift = bits * (many - 1 - row // step)
            packed[row % step, column] |= np.uint32(int(number) << shift)
        words_ = packed.view(np.int32) if many == 10 else packed.astype(np.uint8)
        parts = {"W_q": torch.from_numpy(words_.copy()), "scale": scales, "zero": zeros}
        parts |= said(packing=packing, axis=axis, shape=list(weight.shape), group_size=size)
        parts |= said(nbits=bits, quant_scale=0, quant_zero=0, compute_dtype="torch.float32")
        meant = (torch.from_numpy(numbers).double() - zeros.double()) * scales.double()
        stem = name.removesuffix("weight")
        return {stem + key: part for key, part in parts.items()}, meant.reshape(weight.shape)

    return quantise
