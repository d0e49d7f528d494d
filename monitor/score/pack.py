"""Packs: a versioned, hashed set of persona features for one model, as a folder.

``pack.json`` (see `monitor.score.manifest`) and ``features.safetensors`` with ``weights`` float32
[k, d], with ``parts`` [p, d] where composites read further sites, with ``patterns`` [q, d] and
``covariates`` [c, d] where there are some, and with the whole encoder (n latents) of each top-k SAE that a
feature is a latent of. The id is the SHA-256 of the canonical manifest (without the id) and the tensors' bytes: the same
features have the same id wherever they lie, and altered content is refused. No pickles.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors.numpy import save

from monitor.errors import BadInput, PackError
from monitor.given import LARGEST_JSON, read_given
from monitor.score import manifest as schema
from monitor.score import tensors
from monitor.values.arrays import Floats
from monitor.values.features import Calibration, Covariate, Encoder, Feature, Part
from monitor.values.identity import ModelIdentity
from monitor.values.prompts import CANARY, Message, Prompt, RecordKey
from monitor.values.verdicts import Decision, followed, verdicts
from monitor.writing import write_whole

MANIFEST_FILE: Final = "pack.json"
TENSOR_FILE: Final = "features.safetensors"
SHIPPED: Final = Path(__file__).resolve().parent.parent / "packs"
PICKLES: Final = frozenset({".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt", ".npy", ".npz"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary:
    """A fixed prompt and its recorded readings [k]; NaN where the region is absent."""

    name: str
    readings: Floats
    messages: tuple[Message, ...] = ()
    text: str | None = None
    response: str | None = None

    def prompt(self, index: int, at: datetime) -> Prompt:
        """The canary as a prompt of the reserved segment, to be replayed at time ``at``."""
        return Prompt(
            key=RecordKey(topic=CANARY, partition=0, offset=index),
            recorded_at=at,
            messages=self.messages,
            text=self.text,
            response=self.response,
            prompt_id=f"{CANARY}:{self.name}",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """Features of one model with calibration, canaries, provenance and validation report.

    ``pack_id`` is computed from the content when the pack is built, so it cannot lie. Raises
    `PackError` when the parts contradict each other (names, widths, sites, canary lengths).
    """

    name: str
    version: str
    model: ModelIdentity
    """A hash of None is not compared."""
    features: tuple[Feature, ...]
    canaries: tuple[Canary, ...] = ()
    covariates: tuple[Covariate, ...] = ()
    """Read beside the features, never watched: what scores given the prompt are fitted on."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    report: Mapping[str, Any] = field(default_factory=dict)
    pack_id: str = field(init=False)

    def __post_init__(self) -> None:
        _check_consistent(self)
        object.__setattr__(self, "pack_id", _content_hash(_body(self), _tensors(self)))

    @property
    def verdicts(self) -> dict[str, Decision]:
        return verdicts(self.report)

    @property
    def selectable(self) -> tuple[Feature, ...]:
        """The features with the tags by which rules select."""
        return followed(self.features, self.verdicts)

    @property
    def weights(self) -> Floats:
        """The features' weights at their own sites, stacked: [k, d]."""
        return tensors.stacked(self.features)

    @property
    def encoders(self) -> tuple[Encoder, ...]:
        """The encoders of the features' SAEs, each once, in the order of the features."""
        return tuple(dict.fromkeys(f.encoder for f in self.features if f.encoder is not None))

    @property
    def deepest_site(self) -> int:
        """The last decoder block (from 0) that is read: how much of the model must be loaded."""
        read = [feature.sites[-1] for feature in self.features]
        return max(read + [one.site for one in self.covariates])


def manifest(pack: Pack) -> dict[str, Any]:
    """The content of ``pack.json``: JSON values only, with the id."""
    return {"id": pack.pack_id, **_body(pack)}


def save_pack(pack: Pack, path: Path) -> str:
    """Write ``pack`` into the folder ``path`` (made if need be) and return its id.

    The same pack gives the same bytes. Raises `PackError` when the folder cannot be written.
    """
    content = schema.canonical(manifest(pack))
    schema.parse(content, MANIFEST_FILE)
    try:
        write_whole(path / TENSOR_FILE, save(_tensors(pack)))
        write_whole(path / MANIFEST_FILE, content + b"\n")
    except BadInput as error:
        raise PackError(f"the pack is not saved: {error}") from None
    return pack.pack_id


def load_pack(path: Path) -> Pack:
    """The pack in the folder ``path``.

    Raises `PackError`: missing or unreadable files, unknown schema version, wrong fields, shapes or
    types, non-finite numbers, pickles, or content that does not match the id.
    """
    if not path.is_dir():
        raise PackError(
            f"pack folder {path} does not exist",
            hint="set pack.path to a folder with pack.json, or leave it null for the shipped pack.",
        )
    _refuse_pickles(path)
    entry = schema.parse(_read(path / MANIFEST_FILE, LARGEST_JSON), str(path / MANIFEST_FILE))
    file = path / TENSOR_FILE
    found = tensors.parse(_read(file, tensors.most_bytes(entry)), entry, str(file))
    try:
        pack = Pack(
            name=entry.name,
            version=entry.version,
            model=ModelIdentity(**entry.model.model_dump()),
            features=tuple(
                _feature(one, weight, further, pattern, found.encoders)
                for one, weight, further, pattern in zip(
                    entry.features, found.weights, found.parts, found.patterns, strict=True
                )
            ),
            canaries=tuple(map(_canary, entry.canaries)),
            covariates=tuple(
                Covariate(**one.model_dump(), weight=weight)
                for one, weight in zip(entry.covariates, found.covariates, strict=True)
            ),
            provenance=entry.provenance,
            report=entry.report,
        )
    except ValueError as error:
        raise PackError(f"{path / MANIFEST_FILE}: {error}", hint=schema.REBUILD) from None
    if pack.pack_id != entry.id:
        raise PackError(
            f"pack {path} was altered: its content hashes to {pack.pack_id[:12]}…, "
            f"its id says {entry.id[:12]}…",
            hint="fetch the pack again; a pack is never edited in place.",
        )
    return pack


def _check_consistent(pack: Pack) -> None:
    names = [feature.name for feature in pack.features]
    if not names:
        raise PackError("features: a pack needs at least one")
    if len(set(names)) != len(names):
        raise PackError("features: names must differ")
    if len({one.name for one in pack.covariates}) != len(pack.covariates):
        raise PackError("covariates: names must differ")
    read = [(f"feature {f.name}", f.weight, f.sites[-1]) for f in pack.features]
    read += [(f"covariate {one.name}", one.weight, one.site) for one in pack.covariates]
    for where, weight, site in read:
        if weight.shape != (pack.model.hidden_size,):
            raise PackError(
                f"{where}: weight has shape {weight.shape}, "
                f"the model is {pack.model.hidden_size} wide"
            )
        if site >= pack.model.layers:
            raise PackError(
                f"{where}: site {site} is beyond the last block, {pack.model.layers - 1}"
            )
    for feature in pack.features:
        where = f"feature {feature.name}"
        allowed = schema.ACTIVATION_OF_KIND[feature.kind]
        if feature.activation not in allowed:
            raise PackError(
                f"{where}: a {feature.kind} has activation {' or '.join(allowed)}, "
                f"not {feature.activation}"
            )
        if feature.encoder is not None and not np.array_equal(
            feature.weight, feature.encoder.weight[feature.latent or 0]
        ):
            raise PackError(f"{where}: weight is not that of latent {feature.latent}")
    if len({encoder.name for encoder in pack.encoders}) != len(pack.encoders):
        raise PackError("encoders: names must differ")
    for canary in pack.canaries:
        if canary.readings.shape != (len(names),):
            raise PackError(f"canary {canary.name}: needs one reading per feature, {len(names)}")
        if np.isinf(canary.readings).any():
            raise PackError(f"canary {canary.name}: readings must be finite, or NaN for absent")
        if bool(canary.messages) == (canary.text is not None):
            raise PackError(f"canary {canary.name}: give either messages or text")
        if any(m != Message(role=m.role, content=m.content) for m in canary.messages):
            raise PackError(f"canary {canary.name}: a message holds a role and content, no more")


def _body(pack: Pack) -> dict[str, Any]:
    encoders = [{"name": e.name, "latents": len(e.bias), "places": e.places} for e in pack.encoders]
    covariates = [
        {"name": one.name, "site": one.site, "region": one.region} for one in pack.covariates
    ]
    return {
        "schema_version": _schema_version(pack),
        "name": pack.name,
        "version": pack.version,
        "model": pack.model.entry(),
        "features": [_feature_entry(feature) for feature in pack.features],
        **({"encoders": encoders} if encoders else {}),
        **({"covariates": covariates} if covariates else {}),
        "canaries": [_canary_entry(canary) for canary in pack.canaries],
        "provenance": dict(pack.provenance),
        "report": dict(pack.report),
    }


def _schema_version(pack: Pack) -> int:
    """The oldest that knows all of ``pack``: others keep their bytes and their id."""
    if any(feature.pattern is not None for feature in pack.features):
        return schema.PATTERN_VERSION
    if pack.covariates or any(feature.parts for feature in pack.features):
        return schema.PARTS_VERSION
    later = bool(pack.encoders) or any(f.largest_norm is not None for f in pack.features)
    return schema.ENCODER_VERSION if later else schema.FIRST_VERSION


def _feature_entry(feature: Feature) -> dict[str, Any]:
    apart = ("weight", "parts", "pattern")
    names = [f.name for f in dataclasses.fields(feature) if f.name not in apart]
    entry = {name: getattr(feature, name) for name in names}
    # Left out where they say nothing: packs of version 1 keep their bytes.
    for name in ("encoder", "latent", "largest_norm"):
        if entry[name] is None:
            del entry[name]
    if feature.encoder is not None:
        entry["encoder"] = feature.encoder.name
    if feature.parts:
        entry["parts"] = [part.site for part in feature.parts]
    if feature.pattern is not None:
        entry["pattern"] = True
    calibration = dataclasses.asdict(feature.calibration)
    entry["calibration"] = {name: [float(v) for v in knots] for name, knots in calibration.items()}
    entry["tags"] = list(feature.tags)
    for name in ("bias", "threshold", "tail_threshold"):
        entry[name] = float(entry[name])
    return entry


def _feature(
    entry: schema.FeatureEntry,
    weight: Floats,
    further: Floats,
    pattern: Floats | None,
    encoders: Mapping[str, Encoder],
) -> Feature:
    values = entry.model_dump() | {"pattern": pattern}
    sites = values.pop("parts") or ()
    parts = tuple(Part(site=site, weight=w) for site, w in zip(sites, further, strict=True))
    if entry.encoder is not None:
        if entry.encoder not in encoders:
            raise ValueError(f"feature {entry.name}: encoder {entry.encoder!r} is not in the pack")
        values["encoder"] = encoders[entry.encoder]
    calibration = Calibration(**{name: tuple(v) for name, v in values.pop("calibration").items()})
    tags = tuple(values.pop("tags"))
    return Feature(**values, calibration=calibration, tags=tags, weight=weight, parts=parts)


def _canary_entry(canary: Canary) -> dict[str, Any]:
    return {
        "name": canary.name,
        "messages": [{"role": m.role, "content": m.content} for m in canary.messages],
        "text": canary.text,
        "response": canary.response,
        "readings": [None if np.isnan(value) else float(value) for value in canary.readings],
    }


def _canary(entry: schema.CanaryEntry) -> Canary:
    readings = [np.nan if value is None else value for value in entry.readings]
    return Canary(
        name=entry.name,
        messages=tuple(Message(role=m.role, content=m.content) for m in entry.messages),
        text=entry.text,
        response=entry.response,
        readings=np.array(readings, dtype=np.float32),
    )


def _tensors(pack: Pack) -> dict[str, Floats]:
    return tensors.tensors_of(pack.features, pack.covariates, pack.encoders)


def _content_hash(body: Mapping[str, Any], rows: Mapping[str, Floats]) -> str:
    digest = hashlib.sha256(schema.canonical(body))
    for name, values in rows.items():
        digest.update(f"\n{name} float32 {list(values.shape)}\n".encode())
        digest.update(np.ascontiguousarray(values, dtype="<f4").data.cast("B"))
    return digest.hexdigest()


def _refuse_pickles(path: Path) -> None:
    pickles = sorted(file.name for file in path.iterdir() if file.suffix.lower() in PICKLES)
    if pickles:
        raise PackError(
            f"pack {path} holds {', '.join(pickles)}: files that can run code when read are refused",
            hint=f"a pack is {MANIFEST_FILE} and {TENSOR_FILE}; import other formats with "
            "`monitor pack import`.",
        )


def _read(path: Path, most: int) -> bytes:
    try:
        return read_given(path, most)
    except OSError as error:
        raise PackError(f"cannot read {path}: {error.strerror}", hint=schema.REBUILD) from None
