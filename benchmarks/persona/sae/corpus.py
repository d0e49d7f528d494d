"""Text that is at hand without a network: what installed packages document, this project's texts, and
what the model itself answers. Documents are `Prompt`s, so that they are read as production reads.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.persona.rows import Voice, narrow
from monitor.errors import BadInput
from monitor.replay.model import LoadedModel
from monitor.replay.residuals import ResidualReader
from monitor.research.answers.generate import answers
from monitor.research.progress import Progress
from monitor.research.texts import Texts, answer_prompts, exchange
from monitor.values.prompts import Message, Prompt, RecordKey

PACKAGES = ("numpy", "scipy", "torch", "transformers", "sqlalchemy", "pydantic")
"""Documented in prose, and there wherever this project is installed."""
SHORTEST, LONGEST = 200, 1_200
"""Characters of a document; longer ones are cut at a line."""
VOICES: Final[tuple[Voice, ...]] = ("sound", "reckless", "pirate")
OWN_TOKENS = 64
OWN_TEMPERATURE = 0.8
HELD_OUT_EVERY = 10
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Documents:
    """One kind of text; ``held_out`` takes part in no training."""

    train: tuple[Prompt, ...]
    held_out: tuple[Prompt, ...]


def project_documents(texts: Texts, seed: int) -> Documents:
    """Benign exchanges, persona answers and the organisms' training texts, as chats.

    Held out are the contrast questions and benign exchanges that packs are tested on. ``elsewhere``
    and the organisms' held-out rows stay out altogether: latents are tested on them.
    """
    organisms = [row.said(voice) for row in narrow(held_out=False) for voice in VOICES]
    return Documents(
        train=_shuffled((*texts.fit, *_everyone(texts, "train"), *organisms), seed),
        held_out=_shuffled((*texts.check, *_everyone(texts, "held_out")), seed),
    )


def _everyone(texts: Texts, split: str) -> list[Prompt]:
    contrasts = texts.train if split == "train" else texts.held_out
    return [p for persona in (None, *texts.personas) for p in answer_prompts(contrasts, persona)]


def own_documents(
    loaded: LoadedModel, texts: Texts, count: int, seed: int, progress: Progress
) -> Documents:
    """What the model itself answers to ``count`` training questions and benign prompts, drawn."""
    asked = _shuffled((*texts.fit, *answer_prompts(texts.train, None)), seed)[:count]
    said = answers(
        loaded,
        asked,
        max_new_tokens=OWN_TOKENS,
        temperature=OWN_TEMPERATURE,
        seed=seed,
        batch=32,
        progress=progress,
    )
    return _split([replace(p, response=text) for p, text in zip(asked, said, strict=True) if text])


def documentation(characters: int, seed: int) -> Documents:
    """About ``characters`` of documentation: docstrings as answers to "What does … do?", then READMEs.

    Files are visited in an order drawn with ``seed``; which texts there are depends on the installed
    versions. Nothing is imported. Raises `BadInput` when there is not that much.
    """
    found: dict[str, Prompt] = {}
    left = characters
    generator = np.random.default_rng(seed)
    sources = (_docstrings(generator), _readmes(generator))
    for source, room in zip(sources, (int(0.8 * characters), characters), strict=True):
        for document in source:
            if left <= characters - room:
                break
            body = document.response or document.text or ""
            key = hashlib.sha256(body.encode()).hexdigest()
            if key not in found:
                found[key] = document
                left -= len(body)
    if left > 0:
        raise BadInput(
            f"installed packages document {characters - left:,} characters, {characters:,} were "
            "asked for",
            hint="ask for fewer tokens",
        )
    return _split(_shuffled(tuple(found.values()), seed))


def _docstrings(generator: np.random.Generator) -> Iterator[Prompt]:
    files = [(name, root, file) for name in PACKAGES for root, file in _modules(name)]
    for index in generator.permutation(len(files)):
        name, root, file = files[index]
        parts = [name, *file.relative_to(root).with_suffix("").parts]
        if any(part.startswith("_") or "test" in part for part in parts):
            continue
        for called, text in _documented(file):
            question = f"What does {'.'.join((*parts, called))} do?"
            yield exchange((Message(role="user", content=question),), _cut(text))


def _modules(package: str) -> list[tuple[Path, Path]]:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return []
    root = Path(next(iter(spec.submodule_search_locations)))
    return [(root, file) for file in sorted(root.rglob("*.py"))]


def _documented(file: Path) -> Iterator[tuple[str, str]]:
    """Names and docstrings of the public functions and classes of ``file``, where they are long enough."""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return
    for node in tree.body:
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name.startswith("_"):
            continue
        text = inspect.cleandoc(ast.get_docstring(node) or "")
        if len(text) >= SHORTEST:
            yield node.name, text


def _readmes(generator: np.random.Generator) -> Iterator[Prompt]:
    """The long descriptions of installed distributions, in pieces, as raw text."""
    described = {}
    for distribution in importlib.metadata.distributions():
        body = distribution.metadata.get_payload()  # type: ignore[attr-defined]
        if isinstance(body, str) and len(body) >= SHORTEST:
            described[distribution.metadata["Name"]] = body
    pieces = [
        body[start : start + LONGEST]
        for _, body in sorted(described.items())
        for start in range(0, len(body) - SHORTEST, LONGEST)
    ]
    for index in generator.permutation(len(pieces)):
        yield raw(_cut(pieces[index]))


def raw(text: str) -> Prompt:
    """A prompt without chat template."""
    key = RecordKey(topic="research", partition=0, offset=0)
    return Prompt(key=key, recorded_at=_EPOCH, text=text)


def within(reader: ResidualReader, documents: Sequence[Prompt], tokens: int) -> list[Prompt]:
    """As many of the first ``documents`` as have at most ``tokens`` readable tokens between them."""
    total = np.cumsum(reader.token_counts(documents, "all"))
    return list(documents[: int(np.searchsorted(total, tokens, side="right"))])


def _cut(text: str) -> str:
    if len(text) <= LONGEST:
        return text
    return text[: max(text.rfind("\n", SHORTEST, LONGEST), 0) or LONGEST]


def _split(documents: Sequence[Prompt]) -> Documents:
    return Documents(
        train=tuple(d for i, d in enumerate(documents) if i % HELD_OUT_EVERY),
        held_out=tuple(documents[::HELD_OUT_EVERY]),
    )


def _shuffled(documents: Sequence[Prompt], seed: int) -> tuple[Prompt, ...]:
    order = np.random.default_rng(seed).permutation(len(documents))
    return tuple(documents[index] for index in order)
