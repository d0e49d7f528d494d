"""dictionary_learning: ``ae.pt`` with ``config.json`` (``trainer``, ``buffer``), and the persona SAEs.

Activations are read as its ``encode`` gives them; that its ``from_pretrained`` may rescale them to a
unit decoder changes a latent by a constant factor, which calibration takes out.
Legend: n = latents, d = model width.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch

from monitor.errors import BadInput
from monitor.research.saes.autoencoder import Published, SparseAutoencoder, Stated
from monitor.research.saes.files import Tensors, number, positive, read_json, read_tensors
from monitor.research.saes.places import said
from monitor.research.saes.saelens import gated

WEIGHT_FILE: Final = "ae.pt"
CONFIG_FILE: Final = "config.json"
EVALUATION_FILE: Final = "eval_results.json"

PERSONA_LATENTS: Final = 131_072
PERSONA_MODELS: Final = ("Llama-3.1-8B", "Qwen2.5-7B")
PERSONA_SKIPPED: Final = 8
PERSONA_NORM_MULTIPLE: Final = 10.0

_ELSEWHERE: Final = re.compile(r"attn|attention|mlp|embed")


def load_dictionary_learning(folder: Path, stated: Stated) -> SparseAutoencoder:
    """The dictionary in ``folder``; its class is what ``trainer.dict_class`` says.

    The persona SAEs (BatchTopK, 131,072 latents, Llama-3.1-8B or Qwen2.5-7B) were trained without
    the first 8 tokens and without activations over 10 median norms, which no config states.
    """
    path = folder / CONFIG_FILE
    config = read_json(path)
    trainer, buffer = config.get("trainer"), config.get("buffer") or {}
    if not isinstance(trainer, dict) or not isinstance(buffer, dict):
        raise BadInput(f"{path}: trainer must be an object with dict_class and layer")
    build = _CLASSES.get(str(trainer.get("dict_class")))
    if build is None:
        raise BadInput(
            f"{path}: dict_class {trainer.get('dict_class')!r} is unknown; "
            f"read are {', '.join(_CLASSES)}"
        )
    place = trainer.get("submodule_name")
    if (isinstance(place, str) and _ELSEWHERE.search(place)) or buffer.get("io", "out") != "out":
        raise BadInput(f"{path}: {place!r} is not the output of a decoder block")
    persona = _is_persona(trainer)
    return SparseAutoencoder(
        format="dictionary-learning",
        path=folder / WEIGHT_FILE,
        site=said(_layer(trainer), stated.site, "site", folder),
        skip_tokens=PERSONA_SKIPPED if persona else 1,
        norm_multiple=PERSONA_NORM_MULTIPLE
        if persona
        else number(buffer, "max_activation_norm_multiple"),
        published=_published(folder),
        provenance=config,
        **build(read_tensors(folder / WEIGHT_FILE)),
    )


def _plain(tensors: Tensors) -> dict[str, Any]:
    parts = _linear(tensors, "bias")
    return parts | {"activation": "relu", "subtracted": parts["decoder_bias"]}


def _new(tensors: Tensors) -> dict[str, Any]:
    return _linear(tensors, "decoder.bias") | {"activation": "relu"}


def _top_k(tensors: Tensors) -> dict[str, Any]:
    # Its threshold is a by-product of training: encode takes the k largest.
    parts = _linear(tensors, "b_dec")
    k = tensors.content.get("k")
    places = int(k) if isinstance(k, torch.Tensor) and k.numel() == 1 else k
    places = positive({"k": places}, "k", tensors.path)
    return parts | {"activation": "topk", "subtracted": parts["decoder_bias"], "k": places}


def _batch_top_k(tensors: Tensors) -> dict[str, Any]:
    parts = _linear(tensors, "b_dec")
    return parts | _learned_threshold(tensors, parts)


def _matryoshka(tensors: Tensors) -> dict[str, Any]:
    parts = _matrices(tensors)
    return parts | _learned_threshold(tensors, parts)


def _jumprelu(tensors: Tensors) -> dict[str, Any]:
    parts = _matrices(tensors)
    n = parts["encoder"].shape[0]
    return parts | {"activation": "jumprelu", "threshold": tensors.take("threshold", [n])}


def _gated(tensors: Tensors) -> dict[str, Any]:
    encoder = tensors.take("encoder.weight", [None, None])
    n, d = encoder.shape
    decoder_bias = tensors.take("decoder_bias", [d])
    return {
        "encoder": encoder,
        "decoder": tensors.take("decoder.weight", [d, n]).T,
        "decoder_bias": decoder_bias,
        "subtracted": decoder_bias,
        **gated(*(tensors.take(name, [n]) for name in ("r_mag", "mag_bias", "gate_bias"))),
    }


_CLASSES: Final[Mapping[str, Callable[[Tensors], dict[str, Any]]]] = {
    "AutoEncoder": _plain,
    "AutoEncoderNew": _new,
    "AutoEncoderTopK": _top_k,
    "BatchTopKSAE": _batch_top_k,
    "MatryoshkaBatchTopKSAE": _matryoshka,
    "GatedAutoEncoder": _gated,
    "JumpReluAutoEncoder": _jumprelu,
}


def _linear(tensors: Tensors, decoder_bias: str) -> dict[str, Any]:
    encoder = tensors.take("encoder.weight", [None, None])
    n, d = encoder.shape
    return {
        "encoder": encoder,
        "bias": tensors.take("encoder.bias", [n]),
        "decoder": tensors.take("decoder.weight", [d, n]).T,
        "decoder_bias": tensors.take(decoder_bias, [d]),
    }


def _matrices(tensors: Tensors) -> dict[str, Any]:
    encoder = tensors.take("W_enc", [None, None])
    d, n = encoder.shape
    return {
        "encoder": encoder.T,
        "bias": tensors.take("b_enc", [n]),
        "decoder": tensors.take("W_dec", [n, d]),
        "decoder_bias": tensors.take("b_dec", [d]),
    }


def _learned_threshold(tensors: Tensors, parts: Mapping[str, Any]) -> dict[str, Any]:
    """One threshold for all latents, strictly exceeded: what a batch's top-k became in training."""
    threshold = tensors.scalar("threshold")
    if threshold < 0.0:
        raise BadInput(
            f"{tensors.path}: the threshold was not learned yet ({threshold}); "
            "as plain relu far too many latents would be active"
        )
    return {
        "activation": "jumprelu",
        "threshold": torch.full((parts["encoder"].shape[0],), threshold, dtype=torch.float64),
        "subtracted": parts["decoder_bias"],
    }


def _layer(trainer: Mapping[str, Any]) -> int | None:
    layer = trainer.get("layer")
    return layer if isinstance(layer, int) and not isinstance(layer, bool) else None


def _is_persona(trainer: Mapping[str, Any]) -> bool:
    return (
        trainer.get("dict_class") == "BatchTopKSAE"
        and trainer.get("dict_size") == PERSONA_LATENTS
        and any(name in str(trainer.get("lm_name")) for name in PERSONA_MODELS)
    )


def _published(folder: Path) -> Published:
    path = folder / EVALUATION_FILE
    if not path.is_file():
        return Published()
    results = read_json(path)
    return Published(
        l0=number(results, "l0"), variance_explained=number(results, "frac_variance_explained")
    )
