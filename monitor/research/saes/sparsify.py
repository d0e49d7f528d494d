"""EleutherAI's sparsify: ``<hookpoint>/cfg.json`` and ``sae.safetensors``.

Legend: n = latents, d = model width.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from monitor.errors import BadInput
from monitor.research.saes.autoencoder import SparseAutoencoder, Stated
from monitor.research.saes.files import positive, read_json, read_tensors
from monitor.research.saes.places import said

CONFIG_FILE: Final = "cfg.json"
WEIGHT_FILE: Final = "sae.safetensors"
_HOOKPOINT: Final = re.compile(r"(?:.*\.)?(?:layers|h)\.(\d+)")


def load_sparsify(folder: Path, stated: Stated) -> SparseAutoencoder:
    """Top-k with ``b_dec`` subtracted; the folder is named after the hookpoint, ``layers.L``.

    ReLU comes before their top-k and after ours, which is the same latents: a negative
    pre-activation reads 0 either way.
    """
    path = folder / CONFIG_FILE
    config = read_json(path)
    for name in ("transcode", "skip_connection", "signed"):
        if config.get(name):
            raise BadInput(f"{path}: {name} is not supported; only an SAE of one place is")
    if config.get("activation", "topk") != "topk":
        raise BadInput(f"{path}: activation {config['activation']!r} is unknown, not topk")
    d = positive(config, "d_in", path)
    n = config.get("num_latents") or d * positive(config, "expansion_factor", path)
    hookpoint = _HOOKPOINT.fullmatch(folder.absolute().name)
    if hookpoint is None and stated.site is None:
        raise BadInput(
            f"{folder}: the folder's name is not a hookpoint layers.L, so nothing says the block",
            hint="give it with --site",
        )
    tensors = read_tensors(folder / WEIGHT_FILE)
    decoder_bias = tensors.take("b_dec", [d])
    return SparseAutoencoder(
        format="sparsify",
        path=tensors.path,
        site=said(int(hookpoint[1]) if hookpoint else None, stated.site, "site", folder),
        activation="topk",
        encoder=tensors.take("encoder.weight", [n, d]),
        bias=tensors.take("encoder.bias", [n]),
        decoder=tensors.take("W_dec", [n, d]),
        decoder_bias=decoder_bias,
        subtracted=decoder_bias,
        k=positive(config, "k", path),
        provenance=config,
    )
