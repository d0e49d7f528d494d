"""The shape of ``pack.json``: every field checked by name before anything is built from it.

Arrays: weights live in ``features.safetensors`` as ``weights`` float32 [k, d], rows in the order of
``features``, the weights of composites at their further sites as ``parts`` [p, d], feature by
feature, the patterns of those that have one as ``patterns`` [q, d], covariates as ``covariates`` [c, d], and
whole encoders as ``NAME.weight`` [n, d], ``NAME.bias`` [n]; everything else is here.
JSON has no NaN: a canary's absent reading is ``null``.

A pack is of version 4 when a feature has a ``pattern``, else of version 3 when it has a composite
(``parts``) or covariates, else of version 2 when it uses what version 1 did not know (encoders, ``largest_norm``). Any other is still written as version 1, with
the bytes and the id that it always had.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from monitor.errors import PackError
from monitor.values.features import Activation, Expected, FeatureKind, InputNorm, Pooling, Region

FIRST_VERSION = 1
ENCODER_VERSION = 2
PARTS_VERSION = 3
PATTERN_VERSION = 4
VERSIONS = (FIRST_VERSION, ENCODER_VERSION, PARTS_VERSION, PATTERN_VERSION)

Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[
    str, Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:/-]*$")
]


class Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


class ModelEntry(Entry):
    """The model that the pack reads; null hashes are not compared."""

    model_id: str
    architecture: str
    hidden_size: int = Field(ge=1)
    layers: int = Field(ge=1)
    vocab_size: int = Field(ge=1)
    weights_hash: str | None
    tokenizer_hash: str | None
    template_hash: str | None


class CalibrationEntry(Entry):
    tokens: list[float]
    means: list[float]
    deviations: list[float]


class FeatureEntry(Entry):
    """`monitor.values.features.Feature` without its tensors."""

    name: Name
    kind: FeatureKind
    site: int = Field(ge=0)
    region: Region
    pooling: Pooling
    calibration: CalibrationEntry
    bias: float
    activation: Activation
    threshold: float
    input_norm: InputNorm
    rolling_tokens: int = Field(ge=1)
    skip_tokens: int = Field(ge=1)
    tail_threshold: float
    expected: Expected
    tags: list[str]
    description: str
    encoder: Name | None = None
    latent: int | None = Field(default=None, ge=0)
    largest_norm: float | None = Field(default=None, gt=0)
    parts: list[Annotated[int, Field(ge=0)]] | None = Field(default=None, min_length=1)
    """A composite's further sites, in the order of their rows in the tensor ``parts``."""
    pattern: Literal[True] | None = None
    """Whether the feature has a row in the tensor ``patterns``."""


class CovariateEntry(Entry):
    """A reading of the prompt side, for scores given the prompt alone; its row is in ``covariates``."""

    name: Name
    site: int = Field(ge=0)
    region: Literal["prompt", "last_prompt_token"]


class EncoderEntry(Entry):
    """`monitor.values.features.Encoder` without its tensors."""

    name: Name
    latents: int = Field(ge=1)
    places: int = Field(ge=1)


class MessageEntry(Entry):
    role: str
    content: str


class CanaryEntry(Entry):
    name: Name
    messages: list[MessageEntry]
    text: str | None
    response: str | None
    readings: list[float | None]


class Manifest(Entry):
    schema_version: int
    id: Hash
    name: Name
    version: Name
    model: ModelEntry
    features: list[FeatureEntry] = Field(min_length=1)
    encoders: list[EncoderEntry] = Field(default_factory=list)
    covariates: list[CovariateEntry] = Field(default_factory=list)
    canaries: list[CanaryEntry]
    provenance: dict[str, Any]
    report: dict[str, Any]


def canonical(content: Any) -> bytes:
    """One byte string per JSON value: sorted keys, no spaces, shortest floats, no NaN."""
    return json.dumps(
        content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def parse(text: bytes, where: str) -> Manifest:
    """The manifest in ``text``. Raises `PackError` naming each wrong field and the file ``where``."""
    try:
        content = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise PackError(f"{where} is not JSON: {error}", hint=REBUILD) from None
    if not isinstance(content, dict):
        raise PackError(f"{where} must hold one JSON object", hint=REBUILD)
    version = content.get("schema_version")
    if version not in VERSIONS or isinstance(version, bool):
        raise PackError(
            f"{where}: schema_version {version!r} is unknown; this version reads "
            f"{', '.join(map(str, VERSIONS))}",
            hint="install the version of persona-monitor that made the pack, or build the pack again.",
        )
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        raise PackError(f"{where} is not valid:\n{_explained(error)}", hint=REBUILD) from None


SHOWN_ERRORS = 20
REBUILD = "fetch the pack again, or build it again with `monitor pack build`."


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _explained(error: ValidationError) -> str:
    lines = []
    for item in error.errors(include_url=False, include_input=False)[:SHOWN_ERRORS]:
        where = ".".join(str(step) for step in item["loc"]) or "(top)"
        message = "unknown field: remove it" if item["type"] == "extra_forbidden" else item["msg"]
        lines.append(f"  {where}: {message}")
    if error.error_count() > SHOWN_ERRORS:
        lines.append(f"  and {error.error_count() - SHOWN_ERRORS:,} more")
    return "\n".join(lines)


ACTIVATION_OF_KIND: dict[FeatureKind, tuple[Activation, ...]] = {
    "direction": ("identity",),
    "probe": ("sigmoid",),
    "latent": ("relu", "jumprelu", "topk"),
}
