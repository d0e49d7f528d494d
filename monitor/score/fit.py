"""Does a pack fit a model? One place decides, and words the refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from monitor.errors import PackError
from monitor.score.pack import MANIFEST_FILE, SHIPPED, Pack, load_pack
from monitor.values.identity import ModelIdentity

_SENTENCES: Final = {
    "architecture": "the pack reads a {ours}, the model is a {theirs}",
    "hidden_size": "the pack's features are {ours} wide, the model's residual stream is {theirs}",
    "layers": "the pack was made for {ours} decoder blocks, the model has {theirs}",
    "vocab_size": "the pack was made for a vocabulary of {ours} tokens, the model's has {theirs}",
    "weights_hash": "the model's weights differ from those the pack was made for ({theirs} against {ours})",
    "tokenizer_hash": "the tokenizer differs from the one the pack was made for ({theirs} against {ours})",
    "template_hash": "the chat template differs from the pack's, so other tokens are read ({theirs} against {ours})",
}


def fit_problems(pack: Pack, model: ModelIdentity) -> list[str]:
    """What about the model does not fit, in sentences; empty means it fits.

    What either side does not know is not compared (`ModelIdentity.with_any_weights` lets a fine-tune
    of the pack's model pass), nor is the model's name.
    """
    problems = []
    for difference in pack.model.differences(model):
        ours, theirs = difference.short
        problems.append(_SENTENCES[difference.field].format(ours=ours, theirs=theirs))
    return problems


def require_fit(
    pack: Pack, model: ModelIdentity, what: str = "the model", *, hint: str = ""
) -> None:
    """Raises `PackError` with every problem when ``pack`` was not made for ``model``.

    ``what`` names the model for people; ``hint`` says what to do beside using its own pack.
    """
    if problems := fit_problems(pack, model):
        raise PackError(
            f"the pack {pack.name} does not fit {what}: " + "; ".join(problems),
            hint=hint
            or "use the pack made for this model, or build one: `monitor pack build contrast`",
        )


def shipped_pack(model: ModelIdentity) -> Path | None:
    """The folder of the pack that ships with this package and fits the model, if there is one."""
    for path in sorted(SHIPPED.glob(f"*/{MANIFEST_FILE}")):
        if not fit_problems(load_pack(path.parent), model):
            return path.parent
    return None


def pack_or_shipped(folder: Path | None, model: ModelIdentity, *, where: Path, hint: str) -> Pack:
    """The pack in ``folder``; without one, the one that ships for the model.

    Raises `PackError`, with ``hint``, when none ships for the model in ``where``. A pack that was
    named is read whether it fits or not: see `require_fit`.
    """
    path = folder or shipped_pack(model)
    if path is None:
        raise PackError(f"no pack is shipped for the model in {where}", hint=hint)
    return load_pack(path)
