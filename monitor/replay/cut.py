"""What a cut copy of a checkpoint says of itself: `cut.json`, beside its weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from monitor.errors import ModelError
from monitor.given import LARGEST_JSON, read_given
from monitor.values.identity import ModelIdentity

CUT_FILE: Final = "cut.json"
VERSION: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """``blocks`` are left of the model ``of``. ``files_hash`` is that of the copy's own weights."""

    blocks: int
    of: ModelIdentity
    files_hash: str

    def text(self) -> str:
        content = {
            "version": VERSION,
            "blocks": self.blocks,
            "model": self.of.entry(),
            "files_hash": self.files_hash,
        }
        return json.dumps(content, indent=2) + "\n"

    def require_blocks(self, folder: Path, deepest_site: int, *, full: bool) -> None:
        """Raises `ModelError` where the copy ends before what is wanted of it."""
        ends = f"{folder} was cut behind block {self.blocks - 1}"
        if full:
            raise ModelError(
                f"{ends}, and the whole model is needed to answer or to weigh an answer",
                hint="give the model that it was cut from, or switch off what needs it whole",
            )
        if deepest_site >= self.blocks:
            raise ModelError(
                f"{ends}, and site {deepest_site} is wanted",
                hint=f"cut the model again: monitor model cut … --after-block {deepest_site}",
            )

    def require_files(self, folder: Path, files_hash: str) -> None:
        """Raises `ModelError` when the weights are not those that were written with `CUT_FILE`."""
        if files_hash != self.files_hash:
            raise ModelError(
                f"the weights in {folder} are not those that {CUT_FILE} was written for",
                hint="cut the model again: monitor model cut",
            )


def cut_of(folder: Path) -> Cut | None:
    """What ``folder`` says; None for a model that was not cut. Raises `ModelError` for a file that is none."""
    file = folder / CUT_FILE
    if not file.is_file():
        return None
    try:
        content: Any = json.loads(read_given(file, LARGEST_JSON))
        return Cut(
            blocks=int(content["blocks"]),
            of=ModelIdentity(**content["model"]),
            files_hash=str(content["files_hash"]),
        )
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        raise ModelError(
            f"{file} cannot be read", hint="cut the model again: monitor model cut"
        ) from None
