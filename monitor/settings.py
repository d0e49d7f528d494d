"""All configuration: one YAML file, `MONITOR_*` environment on top, secrets from environment or files.

Environment names nest with two underscores: ``MONITOR_KAFKA__BOOTSTRAP_SERVERS``. Every secret field
``x`` has a sibling ``x_file`` naming a file that is read when the process starts (webhook secret
files are read again at every delivery, so a rotated secret needs no restart).
The environment is read in this module alone.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from monitor.errors import ConfigurationError
from monitor.records import CANARY, EVERYTHING, WATCH_ONLY, Severity


def _positive(value: timedelta) -> timedelta:
    if value <= timedelta(0):
        raise ValueError("must be longer than zero")
    return value


Duration = Annotated[timedelta, AfterValidator(_positive)]
"""Seconds as a number, or ISO 8601 (``PT15M``), or ``HH:MM:SS``."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class KafkaSettings(Section):
    """Where sampled prompts come from."""

    bootstrap_servers: str = Field("localhost:9092", description="host:port, comma-separated")
    topics: tuple[str, ...] = Field(("prompts",), min_length=1)
    group_id: str = Field("monitor", min_length=1)
    dead_letter_topic: str | None = Field(
        "prompts.dead-letters", description="null: dead letters go to the table only"
    )
    start_at: Literal["earliest", "latest"] = Field(
        "earliest", description="where a partition without a stored offset begins"
    )
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    ssl_cafile: Path | None = None
    ssl_certfile: Path | None = None
    ssl_keyfile: Path | None = None
    ssl_password: SecretStr | None = None
    ssl_password_file: Path | None = None
    ssl_crlfile: Path | None = None
    ssl_ciphers: str | None = None
    ssl_check_hostname: bool = True
    sasl_mechanism: (
        Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER", "GSSAPI", "AWS_MSK_IAM"]
        | None
    ) = None
    sasl_username: str | None = None
    sasl_password: SecretStr | None = None
    sasl_password_file: Path | None = None
    sasl_kerberos_service_name: str = "kafka"
    sasl_kerberos_domain_name: str | None = None
    oauth_token_endpoint: str | None = Field(
        None, description="OAUTHBEARER: the URL of the token endpoint (client credentials)"
    )
    oauth_client_id: str | None = None
    oauth_client_secret: SecretStr | None = None
    oauth_client_secret_file: Path | None = None
    oauth_scope: str | None = None
    oauth_token_file: Path | None = Field(
        None, description="OAUTHBEARER: a file holding a token, read again when it is renewed"
    )
    session_timeout_ms: int = Field(45_000, ge=1_000)
    heartbeat_interval_ms: int = Field(3_000, ge=100)
    max_poll_interval_ms: int = Field(300_000, ge=1_000)
    request_timeout_ms: int = Field(40_000, ge=1_000)
    max_partition_fetch_bytes: int = Field(8 * 1024 * 1024, ge=1024)
    client_options: dict[str, Any] = Field(
        default_factory=dict, description="any other kafka-python consumer option, by its own name"
    )

    @model_validator(mode="after")
    def _complete(self) -> KafkaSettings:
        sasl = self.security_protocol.startswith("SASL")
        if sasl and self.sasl_mechanism is None:
            raise ValueError("kafka.sasl_mechanism is needed with a SASL security_protocol")
        if not sasl and self.sasl_mechanism is not None:
            raise ValueError(
                "kafka.sasl_mechanism needs security_protocol SASL_PLAINTEXT or SASL_SSL"
            )
        if self.sasl_mechanism in ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512") and (
            self.sasl_username is None
            or (self.sasl_password is None and self.sasl_password_file is None)
        ):
            raise ValueError("kafka.sasl_username and kafka.sasl_password (or _file) are needed")
        if self.sasl_mechanism == "OAUTHBEARER" and not (
            self.oauth_token_file or (self.oauth_token_endpoint and self.oauth_client_id)
        ):
            raise ValueError(
                "OAUTHBEARER needs kafka.oauth_token_file, or oauth_token_endpoint with oauth_client_id"
            )
        return self


class IngestSettings(Section):
    """How records become prompts."""

    format: Literal["auto", "native", "openai", "otel", "litellm", "cloudevents"] = "auto"
    sampling_rate: float = Field(1.0, gt=0.0, le=1.0)
    chunk_records: int = Field(256, ge=1, le=10_000)
    chunk_wait: Duration = Field(timedelta(seconds=1), description="longest wait to fill a chunk")
    max_record_bytes: int = Field(4 * 1024 * 1024, ge=1024)
    max_nesting: int = Field(64, ge=4, le=200)
    segment_keys: tuple[str, ...] = Field(
        (), description="record segment keys that become segments of their own: key=value"
    )
    max_segments: int = Field(
        100, ge=1, description="distinct segments a worker tracks; more are counted as key=(other)"
    )
    models: tuple[str, ...] = Field(
        (), description="score only records of these models (glob); empty: all"
    )
    store_dead_letter_content: bool = Field(
        False, description="keep the record's bytes with its dead letter: they may hold prompt text"
    )
    dead_letter_window: int = Field(
        1_000, ge=10, description="records looked back on for the dead-letter limit"
    )
    dead_letter_limit: float = Field(
        0.9, gt=0.0, le=1.0, description="share of dead letters at which the worker stops"
    )


class ReplaySettings(Section):
    """The instrumented copy of the model."""

    model: Path = Field(Path("model"), description="local folder (safetensors) or GGUF file")
    adapter: Path | None = Field(
        None, description="folder of a LoRA adapter that is merged into the model; null: none"
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1 …")
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    attention: Literal["sdpa", "eager"] = "sdpa"
    max_tokens: int = Field(2_048, ge=16, description="longer prompts are cut and marked")
    batch_tokens: int = Field(2_048, ge=16, description="tokens in one forward pass")
    share_prefixes: bool = True
    min_shared_tokens: int = Field(32, ge=1, description="shortest prefix worth sharing")
    mask_special_tokens: bool = True
    mask_template: bool = Field(True, description="leave template scaffolding out of the pooling")
    mode: Literal["logged", "generate"] = Field(
        "logged", description="generate: answer records without a response with the full copy"
    )
    generate_tokens: int = Field(64, ge=1, le=4_096)
    threads: int | None = Field(None, ge=1, description="CPU threads; null: torch decides")


class PackSettings(Section):
    path: Path | None = Field(None, description="pack folder; null: the pack shipped for the model")
    other_weights: bool = Field(
        False,
        description="read a model whose weights differ from the pack's, e.g. a fine-tuned one",
    )
    canary_interval: Duration = timedelta(minutes=30)
    canary_tolerance: float = Field(
        0.05,
        gt=0.0,
        description="largest deviation of a canary, in calibration deviations, taken as the same",
    )


class PostgresSettings(Section):
    url: SecretStr = SecretStr("postgresql+psycopg://localhost/monitor")
    url_file: Path | None = None
    pool_size: int = Field(5, ge=1)
    statement_timeout: Duration = timedelta(seconds=60)
    connect_timeout: Duration = timedelta(seconds=10)
    keep_scores: Duration = timedelta(days=14)
    keep_fine_buckets: Duration = Field(
        timedelta(days=45),
        description="buckets of drift.bucket's length; hourly ones are kept longer",
    )
    keep_buckets: Duration = Field(timedelta(days=730), description="hourly buckets and counts")
    keep_dead_letters: Duration = timedelta(days=30)
    keep_drift: Duration = timedelta(days=730)
    partitions_ahead_days: int = Field(3, ge=1)
    reader_role: str | None = Field(
        "monitor_reader", description="read-only role that migrations create and grant; null: none"
    )


class Thresholds(Section):
    """Effect sizes; an alert needs the *lower* confidence bound above them. null: not watched."""

    shift: float | None = Field(None, gt=0.0, description="standardised mean shift")
    psi: float | None = Field(None, gt=0.0)
    ks: float | None = Field(None, gt=0.0, le=1.0)
    tail_ratio: float | None = Field(None, gt=1.0, description="tail rate against the baseline's")
    process_change: bool = Field(False, description="the sequential detector crossed its bound")

    @model_validator(mode="after")
    def _something(self) -> Thresholds:
        if self.shift is self.psi is self.ks is self.tail_ratio is None and not self.process_change:
            raise ValueError(
                "a threshold needs at least one of shift, psi, ks, tail_ratio, process_change"
            )
        return self


class DriftRule(Section):
    """Which drift is worth an alert. Any one crossed threshold of a severity is enough."""

    name: str = Field(min_length=1, pattern=r"^[a-zA-Z0-9_.-]+$")
    features: tuple[str, ...] = Field(
        ("*", f"!tag:{WATCH_ONLY}"),
        description="names or globs; tag:NAME selects by tag; ! in front leaves out",
    )
    segments: tuple[str, ...] = (EVERYTHING,)
    windows: tuple[str, ...] = Field((), description="names from drift.windows; empty: all")
    severities: dict[Severity, Thresholds]
    direction: Literal["expected", "either"] = Field(
        "expected", description="expected: only the way the feature moves when a persona appears"
    )
    min_n: int = Field(200, ge=2)
    hold_for: timedelta = Field(timedelta(minutes=2), alias="for")
    cooldown: timedelta = timedelta(minutes=30)
    reminder: timedelta | None = timedelta(hours=4)

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    @model_validator(mode="after")
    def _selects(self) -> DriftRule:
        if all(selector.startswith("!") for selector in self.features):
            raise ValueError(
                f"rule {self.name}: features only leaves out; say what it leaves it out of, "
                'for example ["*", "!tag:style"]'
            )
        return self


class SilenceRule(Section):
    """ "No data" is never read as "no drift"."""

    name: Literal[
        "lag",
        "starvation",
        "dead_letter_ratio",
        "model_mismatch",
        "instrument",
        "non_finite",
        "no_baseline",
    ]
    severity: Severity = "warning"
    limit: float | None = Field(
        None,
        gt=0.0,
        description="records (lag), seconds (starvation), share (dead_letter_ratio, non_finite)",
    )
    hold_for: timedelta = Field(timedelta(minutes=5), alias="for")
    cooldown: timedelta = timedelta(minutes=30)
    reminder: timedelta | None = timedelta(hours=4)

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


def _default_rules() -> tuple[DriftRule, ...]:
    return (
        DriftRule(
            name="persona-drift",
            severities={
                "warning": Thresholds(shift=0.3, tail_ratio=3.0),
                "critical": Thresholds(shift=0.8, tail_ratio=10.0),
            },
        ),
        DriftRule(
            name="process-change",
            severities={"warning": Thresholds(process_change=True)},
            direction="either",
        ),
    )


def _default_silence_rules() -> tuple[SilenceRule, ...]:
    return (
        SilenceRule(name="lag", limit=10_000),
        SilenceRule(name="starvation", limit=900),
        SilenceRule(name="dead_letter_ratio", limit=0.05),
        SilenceRule(name="non_finite", limit=0.001),
        SilenceRule(name="model_mismatch", severity="critical"),
        SilenceRule(name="instrument", severity="critical"),
        SilenceRule(name="no_baseline", severity="info", **{"for": timedelta(minutes=30)}),
    )


class DriftSettings(Section):
    """Buckets, windows, baselines and rules."""

    bucket: Duration = Field(timedelta(minutes=1), description="changing it starts a new history")
    windows: dict[str, Duration] = Field(
        default_factory=lambda: {
            "15m": timedelta(minutes=15),
            "1h": timedelta(hours=1),
            "24h": timedelta(hours=24),
        }
    )
    evaluate_every: Duration = timedelta(minutes=1)
    rollup_every: Duration = timedelta(minutes=5)
    settle: timedelta = Field(
        timedelta(seconds=30), description="how long after its end a bucket still waits for records"
    )
    confidence: float = Field(0.99, gt=0.5, lt=1.0)
    min_segment_n: int = Field(
        500,
        ge=2,
        description="a segment's own baseline is used from this n on, else the pooled one",
    )
    min_baseline_n: int = Field(1_000, ge=2)
    average_run_length: Duration = Field(
        timedelta(days=30),
        description="mean time between false alarms of the sequential detectors, whole fleet together",
    )
    rules: tuple[DriftRule, ...] = Field(default_factory=_default_rules)
    silence_rules: tuple[SilenceRule, ...] = Field(default_factory=_default_silence_rules)

    @model_validator(mode="after")
    def _consistent(self) -> DriftSettings:
        if 86_400 % self.bucket.total_seconds():
            raise ValueError("drift.bucket must divide a day evenly, for example PT1M")
        for name, length in self.windows.items():
            if length < self.bucket or length.total_seconds() % self.bucket.total_seconds():
                raise ValueError(f"drift.windows.{name} must be a multiple of drift.bucket")
        for rule in self.rules:
            for window in rule.windows:
                if window not in self.windows:
                    raise ValueError(f"rule {rule.name}: window {window!r} is not in drift.windows")
            if CANARY in rule.segments:
                raise ValueError(f"rule {rule.name}: segment {CANARY!r} is reserved")
        names = [rule.name for rule in self.rules]
        if len(set(names)) != len(names):
            raise ValueError("drift.rules: names must differ")
        return self


class Endpoint(Section):
    """Who is told. ``secret`` takes ``whsec_…``; several (comma-separated) while one is rotated."""

    name: str = Field(min_length=1, pattern=r"^[a-zA-Z0-9_-]+$")
    url: str = Field(pattern=r"^https?://")
    format: Literal[
        "standard", "alertmanager", "alertmanager_api", "pagerduty", "slack", "cloudevents"
    ] = "standard"
    secret: SecretStr | None = Field(None, description="standard: signing; pagerduty: routing key")
    secret_file: Path | None = None
    min_severity: Severity = "info"
    timeout: Duration = timedelta(seconds=20)
    headers: dict[str, SecretStr] = Field(default_factory=dict)
    rate_per_minute: int = Field(60, ge=1)

    @model_validator(mode="after")
    def _signed(self) -> Endpoint:
        if self.format in ("standard", "pagerduty") and not (self.secret or self.secret_file):
            raise ValueError(
                f"endpoint {self.name}: format {self.format} needs secret or secret_file"
            )
        return self


class AlertSettings(Section):
    endpoints: tuple[Endpoint, ...] = ()
    retry_delays: tuple[timedelta, ...] = tuple(
        timedelta(seconds=seconds)
        for seconds in (0, 5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)
    )
    poll_every: Duration = timedelta(seconds=1)
    external_url: str = Field("", description="base of links in alerts, e.g. the dashboard's URL")

    @model_validator(mode="after")
    def _distinct(self) -> AlertSettings:
        names = [endpoint.name for endpoint in self.endpoints]
        if len(set(names)) != len(names):
            raise ValueError("alerts.endpoints: names must differ")
        return self


class WebSettings(Section):
    host: str = "127.0.0.1"
    port: int = Field(8080, ge=0, le=65_535)
    live_within: Duration = Field(
        timedelta(minutes=10), description="a loop silent for longer fails /livez"
    )


class LogSettings(Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "console"] = "json"


class PrivacySettings(Section):
    """Content never leaves the process but as a keyed hash."""

    hash_key: SecretStr | None = Field(
        None,
        description="HMAC key of content and conversation hashes; null: made anew at each start",
    )
    hash_key_file: Path | None = None


class Settings(BaseSettings):
    """The whole configuration."""

    model_config = SettingsConfigDict(
        env_prefix="MONITOR_", env_nested_delimiter="__", extra="forbid", frozen=True
    )

    kafka: KafkaSettings = KafkaSettings()
    ingest: IngestSettings = IngestSettings()
    replay: ReplaySettings = ReplaySettings()
    pack: PackSettings = PackSettings()
    postgres: PostgresSettings = PostgresSettings()
    drift: DriftSettings = DriftSettings()
    alerts: AlertSettings = AlertSettings()
    web: WebSettings = WebSettings()
    log: LogSettings = LogSettings()
    privacy: PrivacySettings = PrivacySettings()
    shutdown_grace: Duration = timedelta(seconds=30)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return env_settings, init_settings


def load(path: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Settings:
    """The settings from ``path`` (or ``MONITOR_CONFIG``), under the environment, under ``overrides``.

    Raises `ConfigurationError` naming every wrong field, with the nearest known key for unknown ones.
    """
    path = path or (
        Path(os.environ["MONITOR_CONFIG"]) if os.environ.get("MONITOR_CONFIG") else None
    )
    content = _read(path) if path else {}
    try:
        settings = Settings(**content)
        if overrides:
            settings = _overridden(settings, overrides)
    except ValidationError as error:
        where = f" in {path}" if path else ""
        raise ConfigurationError(
            f"the configuration{where} is not valid:\n{_explained(error)}",
            hint="`monitor config schema` prints every key; the environment wins over the file.",
        ) from None
    _refuse_unknown_environment()
    return settings


def _overridden(settings: Settings, overrides: Mapping[str, Any]) -> Settings:
    """Section by section, as validating the whole again would read the environment on top."""
    changed = {}
    for name, values in overrides.items():
        section: Section = getattr(settings, name)
        changed[name] = type(section).model_validate(_merged(section.model_dump(), values))
    return settings.model_copy(update=changed)


def secret(value: SecretStr | None, file: Path | None, name: str) -> str | None:
    """The secret given inline or in a file (the file wins); None when neither is set."""
    if file is None:
        return value.get_secret_value() if value else None
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigurationError(f"{name}_file: cannot read {file}: {error.strerror}") from None


def judge_key(file: Path | None = None) -> SecretStr | None:
    """The key of a judge's endpoint: from ``file``, else from ``MONITOR_JUDGE_KEY``; None without one.

    Raises `ConfigurationError`, never naming the value, when it cannot stand in a header.
    """
    given = os.environ.get("MONITOR_JUDGE_KEY", "")
    try:
        key = (secret(SecretStr(given), file, "judge_key") or "").strip()
    except UnicodeError:
        key = "\0"
    if not key:
        return None
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ConfigurationError("the judge's key must be one word of ASCII letters and signs")
    return SecretStr(key)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{path} is not YAML: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigurationError(
            f"{path} must hold a mapping of sections, found {type(content).__name__}"
        )
    return content


def _merged(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(below)
    for key, value in above.items():
        if isinstance(value, Mapping) and isinstance(result.get(key), dict):
            result[key] = _merged(result[key], value)
        else:
            result[key] = value
    return result


def _known_keys(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    for step in location:
        field = model.model_fields.get(step) if isinstance(step, str) else None
        annotation = field.annotation if field else None
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        nested = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if nested:
            model = nested[0]
    return [f.alias or name for name, f in model.model_fields.items()]


def _explained(error: ValidationError) -> str:
    lines = []
    for item in error.errors(include_url=False, include_input=False):
        where = ".".join(str(step) for step in item["loc"]) or "(top)"
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            known = _known_keys(Settings, item["loc"][:-1])
            near = difflib.get_close_matches(str(item["loc"][-1]), known, n=1)
            message = "unknown key" + (
                f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
            )
        lines.append(f"  {where}: {message}")
    return "\n".join(lines)


OTHER_ENVIRONMENT = frozenset({"MONITOR_CONFIG", "MONITOR_JUDGE_KEY"})


def _refuse_unknown_environment() -> None:
    """pydantic-settings passes over unknown variables; a mistyped one must not be silent."""
    known = {f"MONITOR_{name.upper()}" for name in Settings.model_fields} | OTHER_ENVIRONMENT
    for variable in os.environ:
        if not variable.startswith("MONITOR_") or variable.startswith("MONITOR_TEST_"):
            continue
        if variable.split("__", 1)[0] not in known:
            near = difflib.get_close_matches(variable, sorted(known), n=1)
            raise ConfigurationError(
                f"environment variable {variable} is no setting"
                + (f"; did you mean {near[0]}__…?" if near else "")
            )
