"""Which model it is: of a copy, of the pack that was made for it, of the scores in a baseline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final, NamedTuple

from monitor.values.checks import frozen

_SHORT: Final = 12
"""Characters of a hash that are shown, and that a baseline keeps."""


class Difference(NamedTuple):
    """A field in which two identities differ."""

    field: str
    ours: Any
    theirs: Any

    @property
    def short(self) -> tuple[str, str]:
        """Both values for a sentence: hashes cut."""
        if not self.field.endswith("_hash"):
            return str(self.ours), str(self.theirs)
        return f"{self.ours!s:.{_SHORT}}…", f"{self.theirs!s:.{_SHORT}}…"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelIdentity:
    """A model with its tokenizer and chat template. A hash of None is not known.

    An adapter is merged into the weights: it is part of ``model_id`` and ``weights_hash``. These are
    the fields of ``model`` in ``pack.json``, in their order.
    """

    model_id: str
    """What its folder is called: a matter of where it lies, and never compared."""
    architecture: str
    hidden_size: int
    layers: int
    """Decoder blocks of the full model."""
    vocab_size: int
    weights_hash: str | None = None
    tokenizer_hash: str | None = None
    template_hash: str | None = None

    def differences(
        self, other: ModelIdentity, *, weights: bool = True, unknown_differs: bool = False
    ) -> tuple[Difference, ...]:
        """What differs in ``other`` (``theirs``), field by field, all but ``model_id``.

        ``weights`` False: other weights are no difference, as in a fine-tune that is read token by
        token like its base. What one of the two does not know is compared only if ``unknown_differs``.
        """
        found = []
        for name in (field.name for field in fields(self)):
            ours, theirs = getattr(self, name), getattr(other, name)
            if name == "model_id" or (name == "weights_hash" and not weights) or ours == theirs:
                continue
            if unknown_differs or (ours is not None and theirs is not None):
                found.append(Difference(name, ours, theirs))
        return tuple(found)

    def with_any_weights(self) -> ModelIdentity:
        """The same, its weights not known: what was made for other weights of the model fits it."""
        return replace(self, weights_hash=None)

    def entry(self) -> dict[str, Any]:
        """As reports and ``pack.json`` hold it."""
        return asdict(self)


class Copy(NamedTuple):
    """A copy that scores were measured with, as a baseline remembers it."""

    model: str
    """The beginning of its weights' hash."""
    dtype: str

    @classmethod
    def of(cls, model_hash: str, dtype: str) -> Copy:
        return cls(model_hash[:_SHORT], dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineFingerprint:
    """What a baseline was made from. Stored as a mapping of strings, see `stored`."""

    copies: tuple[Copy, ...] = ()
    served_models: tuple[str, ...] = ()
    """The served models that its records named, as ``model@revision``; see `store.packs.served_models`."""
    facts: Mapping[str, str]
    """The rest: ``pack_id``, ``start``, ``end``, ``n``, ``bucket_seconds``, ``sampling_rate``."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "copies", tuple(sorted(set(self.copies))))
        object.__setattr__(self, "facts", frozen(self.facts))

    @classmethod
    def read(cls, stored: Mapping[str, str]) -> BaselineFingerprint:
        """From the mapping in Postgres."""
        facts = dict(stored)
        words = facts.pop("lineages", "").split()
        served = facts.pop("served_models", "").split()
        pairs = (word.partition("/") for word in words)
        copies = tuple(Copy(model, dtype) for model, _, dtype in pairs)
        return cls(copies=copies, served_models=tuple(served), facts=facts)

    def stored(self) -> dict[str, str]:
        """The mapping for Postgres: facts, ``lineages`` (``model/dtype``) and ``served_models``."""
        return {
            **self.facts,
            "lineages": " ".join(f"{copy.model}/{copy.dtype}" for copy in self.copies),
            "served_models": " ".join(self.served_models),
        }

    def with_facts(self, facts: Mapping[str, str]) -> BaselineFingerprint:
        return replace(self, facts={**self.facts, **facts})

    def strange(self, model_hash: str) -> str | None:
        """The beginning of the weights' hash when the baseline was made with other models.

        None when it was made with this one, or does not know what it was made with.
        """
        model = model_hash[:_SHORT]
        return model if self.models and model not in self.models else None

    def in_another_dtype(self, dtype: str) -> bool:
        """Whether all of the baseline was made in other dtypes; False when it does not know."""
        return bool(self.dtypes) and dtype not in self.dtypes

    @property
    def dtypes(self) -> tuple[str, ...]:
        """What its copies computed in, each once."""
        return tuple(dict.fromkeys(copy.dtype for copy in self.copies))

    @property
    def models(self) -> tuple[str, ...]:
        """The beginnings of the weights' hashes, each once."""
        return tuple(dict.fromkeys(copy.model for copy in self.copies))
