"""Which format a checkpoint has, by the files that lie there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from monitor.errors import BadInput
from monitor.research.saes import dictionary_learning, saelens, scopes, single, sparsify
from monitor.research.saes.autoencoder import SparseAutoencoder, Stated
from monitor.research.saes.files import read_tensors

Loader = Callable[[Path, Stated], SparseAutoencoder]

FOLDERS: Final[Mapping[str, tuple[tuple[str, ...], Loader]]] = {
    "saelens": ((saelens.CONFIG_FILE, saelens.WEIGHT_FILE), saelens.load_saelens),
    "sparsify": ((sparsify.CONFIG_FILE, sparsify.WEIGHT_FILE), sparsify.load_sparsify),
    "llama-scope": ((scopes.LLAMA_CONFIG, scopes.LLAMA_FILE), scopes.load_llama_scope),
    "gemma-scope": ((scopes.GEMMA_FILE,), scopes.load_gemma_scope),
    "gemma-scope-2": ((scopes.GEMMA_2_FILE,), scopes.load_gemma_scope_2),
    "dictionary-learning": (
        (dictionary_learning.CONFIG_FILE, dictionary_learning.WEIGHT_FILE),
        dictionary_learning.load_dictionary_learning,
    ),
}
"""Formats that are a folder: the files that make it one, and its loader."""

SINGLE_FILES: Final[Mapping[str, tuple[tuple[str, ...], Loader]]] = {
    "openai": (("pre_bias", "latent_bias", "encoder.weight"), single.load_openai),
    "goodfire": (("encoder_linear.weight", "decoder_linear.weight"), single.load_goodfire),
    "qwen-scope": (("W_enc", "W_dec", "b_enc", "b_dec"), single.load_qwen_scope),
}
"""Formats that are one pickle: the tensors that make it one, and its loader."""

FORMATS: Final = (*FOLDERS, *SINGLE_FILES)


def load_autoencoder(
    path: Path, format: str | None = None, stated: Stated | None = None
) -> SparseAutoencoder:
    """The SAE at ``path``, a folder or a file in one. ``format`` is one of `FORMATS`; None: detect it.

    Tensors stay on disk until they are used, except in npz files. Raises `BadInput` for what no
    loader knows, and for what the format's loader refuses.
    """
    if not path.exists():
        raise BadInput(f"no checkpoint {path}", hint="give a local folder or file")
    if format is not None and format not in FORMATS:
        raise BadInput(f"format {format!r} is unknown; known: {', '.join(FORMATS)}")
    stated = stated or Stated()
    place, load = _detected(path) if format is None else _forced(path, format)
    sae = load(place, stated)
    for name in ("site", "k", "norm_factor"):
        asked, found = getattr(stated, name), getattr(sae, name)
        if asked is not None and asked != found:
            raise BadInput(f"{path}: {name} is {found} by the checkpoint, {asked} was asked for")
    return sae


def _forced(path: Path, format: str) -> tuple[Path, Loader]:
    if format in SINGLE_FILES:
        return _only_pickle(path), SINGLE_FILES[format][1]
    files, load = FOLDERS[format]
    return _home(path, files), load


def _detected(path: Path) -> tuple[Path, Loader]:
    for files, load in FOLDERS.values():
        home = _home(path, files)
        if all((home / name).is_file() for name in files):
            return home, load
    file = _only_pickle(path)
    tensors = read_tensors(file)
    for names, load in SINGLE_FILES.values():
        if all(name in tensors for name in names):
            return file, load
    raise BadInput(
        f"{file}: no known format has the tensors {', '.join(sorted(tensors.content)[:12])}",
        hint=f"known formats: {', '.join(FORMATS)}; force one with --format",
    )


def _home(path: Path, files: tuple[str, ...]) -> Path:
    """The checkpoint's folder, also when one of its files was named."""
    if path.is_dir():
        return path
    for name in files:
        if path.name == Path(name).name:
            return path.parents[name.count("/")]
    return path


def _only_pickle(path: Path) -> Path:
    if path.is_file():
        return path
    pickles = sorted(file for file in path.iterdir() if file.suffix in (".pt", ".pth"))
    if len(pickles) != 1:
        raise BadInput(
            f"{path} holds no checkpoint of a known format"
            + (f", but {len(pickles)} pickles: name one" if pickles else ""),
            hint="a folder of "
            + "; ".join(f"{n}: {' + '.join(f)}" for n, (f, _) in FOLDERS.items()),
        )
    return pickles[0]
