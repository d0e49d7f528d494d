"""Where prompts come from, and the copy that reads them."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field, SecretStr, field_validator, model_validator

from monitor.settings.section import Duration, Section, bare_url
from monitor.values.fidelity import ANSWER_TOLERANCE, PROMPT_TOLERANCE


def _topic(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,249}", name) or name in (".", ".."):
        raise ValueError(
            f"{name!r} is no name of a topic: letters, digits, '.', '_' and '-', up to 249 of them"
        )
    return name


FIRST_CHUNK_RECORDS: Final = 256
Topic = Annotated[str, AfterValidator(_topic)]


class KafkaSettings(Section):
    """Where sampled prompts come from."""

    bootstrap_servers: str = Field("localhost:9092", description="host:port, comma-separated")
    topics: tuple[Topic, ...] = Field(("prompts",), min_length=1)
    group_id: str = Field("monitor", min_length=1)
    dead_letter_topic: Topic | None = Field(
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
        if self.dead_letter_topic in self.topics:
            raise ValueError(
                f"kafka.dead_letter_topic: {self.dead_letter_topic} is one of kafka.topics: every dead letter "
                "would be read as a record"
            )
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


class JoinSettings(Section):
    """Exchanges that come in several records: KServe's two events, OpenTelemetry's event per message."""

    window: Duration = Field(
        timedelta(minutes=2),
        description="longest wait of one part of an exchange for the rest of it",
    )
    halves: int = Field(10_000, ge=1, le=1_000_000, description="most parts that wait in a worker")
    bytes: int = Field(
        64 * 1024 * 1024, ge=1024, description="most bytes that the waiting parts of a worker take"
    )
    unkeyed: bool = Field(
        False,
        description="join events per message from records without a key too: right for topics of one "
        "partition alone, since else the parts of an exchange are spread",
    )


class RegistrySettings(Section):
    """The schema registry of Confluent's serializers, for frames of Avro and Protobuf."""

    url: str | None = Field(
        None, description="null: such frames are refused; needs the extra registry"
    )
    username: str | None = None
    password: SecretStr | None = None
    password_file: Path | None = None
    ssl_cafile: Path | None = None
    ssl_certfile: Path | None = None
    ssl_keyfile: Path | None = None
    timeout: Duration = timedelta(seconds=5)
    schemas: int = Field(1_000, ge=1, description="most schemas that are kept")


class IngestSettings(Section):
    """How records become prompts."""

    format: Literal[
        "auto",
        "native",
        "openai",
        "responses",
        "anthropic",
        "gemini",
        "otel",
        "litellm",
        "bedrock",
        "databricks",
        "sagemaker",
        "mlflow",
        "langsmith",
        "langfuse",
        "apisix",
        "kong",
        "helicone",
        "portkey",
        "vertex",
        "batch",
        "flat",
        "cloudevents",
    ] = Field("auto", description="auto: told by each record's shape, see docs/records.md")
    sampling_rate: float = Field(1.0, gt=0.0, le=1.0)
    chunk_records: int = Field(
        2_048,
        ge=1,
        le=10_000,
        description="most records in a chunk: it holds what the worker goes through in chunk_wait, but 256 at "
        "least and this at most",
    )
    chunk_wait: Duration = Field(timedelta(seconds=1), description="longest wait to fill a chunk")
    max_record_bytes: int = Field(4 * 1024 * 1024, ge=1024)
    max_nesting: int = Field(64, ge=4, le=200)
    segment_keys: tuple[str, ...] = Field(
        (), description="record segment keys that become segments of their own: key=value"
    )
    max_segments: int = Field(
        100,
        ge=1,
        description="segments that a consumer group tells apart; more are counted as key=(other)",
    )
    models: tuple[str, ...] = Field(
        (), description="score only records of these models (glob); empty: all"
    )
    store_dead_letter_content: bool = Field(
        False,
        description="keep the record's bytes with its dead letter, in the table and on the "
        "dead-letter topic: they may hold prompt text",
    )
    join: JoinSettings = Field(
        JoinSettings(), description="exchanges whose parts come in several records"
    )
    registry: RegistrySettings = Field(
        RegistrySettings(), description="where the schemas of Avro and Protobuf frames are"
    )
    dead_letter_window: int = Field(
        1_000, ge=10, description="exchanges looked back on for the dead-letter limit"
    )
    dead_letter_limit: float = Field(
        0.9,
        gt=0.0,
        le=1.0,
        description="share of exchanges that give nothing to score (dead letters, and skips of what was "
        "redacted, holds only media or nothing to read) at which the worker stops",
    )

    @property
    def first_chunk_records(self) -> int:
        """Records in a chunk while nothing is known of the worker's pace; it never holds fewer but for want of them."""
        return min(FIRST_CHUNK_RECORDS, self.chunk_records)


class ReplaySettings(Section):
    """The instrumented copy of the model."""

    backend: Literal["torch", "vllm"] = Field(
        "torch",
        description="torch: the worker runs the copy itself; vllm: the server at replay.url does, "
        "python -m monitor.backends.vllm.serve",
    )
    url: str | None = Field(
        None, description="backend vllm: where its server answers, http://host:8100"
    )
    key_file: Path | None = Field(
        None, description="backend vllm: file with the key that its server was started with"
    )
    timeout: Duration = Field(
        timedelta(minutes=10), description="backend vllm: of one call, in all"
    )
    model: Path = Field(Path("model"), description="local folder (safetensors) or GGUF file")
    adapter: Path | None = Field(
        None, description="folder of a LoRA adapter that is merged into the model; null: none"
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1 …")
    device_map: Literal["auto"] | None = Field(
        None,
        description="auto: the copy's blocks stand on all GPUs that the worker sees, for models that do not "
        "fit one; null: on replay.device alone",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="auto: that of the pack's scores so far, else bfloat16 where the pack's canaries read "
        "as recorded in it and, on a CPU, it is at least 1.3 times as fast, else float32",
    )
    attention: Literal["sdpa", "eager"] = "sdpa"
    max_tokens: int = Field(2_048, ge=16, description="longer prompts are cut and marked")
    batch_tokens: int | None = Field(
        None,
        ge=16,
        description="tokens in one forward pass; null: 2,048 on a CPU, 16,384 on a GPU",
    )
    share_prefixes: bool = True
    min_shared_tokens: int = Field(32, ge=1, description="shortest prefix worth sharing")
    prefix_cache_mb: int = Field(
        256,
        ge=0,
        description="MiB of the copy's memory for shared prefixes that are kept from chunk to chunk; 0: none",
    )
    chat_template: Path | None = Field(
        None, description="file of the server's own chat template; null: the model's"
    )
    template_options: dict[str, Any] = Field(
        default_factory=dict,
        description="the server's defaults for variables of the template, e.g. enable_thinking: false",
    )
    exclude_tools_when_tool_choice_none: bool = Field(
        False,
        description="leave tools out where the request says tool_choice: none, as a server does that was "
        "started with vLLM's flag of this name",
    )
    replay_reasoning: bool = Field(
        True, description="replay reasoning that was logged apart where the model wrote it"
    )
    prompt_count_tolerance: int = Field(
        PROMPT_TOLERANCE,
        ge=0,
        description="tokens by which a prompt's replay may differ from the server's own count",
    )
    answer_count_tolerance: float = Field(
        ANSWER_TOLERANCE,
        ge=0.0,
        le=1.0,
        description="share by which an answer's token count may differ from the server's own; "
        "two tokens always may",
    )
    mask_special_tokens: bool = True
    mask_template: bool = Field(True, description="leave template scaffolding out of the pooling")
    mode: Literal["auto", "logged", "generate"] = Field(
        "auto",
        description="prompts without a logged answer: auto reads the prompt alone, and answer_share "
        "of them with the copy's own answer; logged reads what is there; generate answers all",
    )
    answer_share: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="mode auto: share of the conversations without a logged answer that the copy "
        "answers itself; above 0 the whole model is loaded",
    )
    generate_tokens: int = Field(
        64, ge=1, le=4_096, description="longest answer of the copy's own, in tokens"
    )
    threads: int | None = Field(None, ge=1, description="CPU threads; null: torch decides")

    @field_validator("url")
    @classmethod
    def _bare(cls, url: str | None) -> str | None:
        return None if url is None else bare_url(url, "http://host:8100", "key_file")

    @model_validator(mode="after")
    def _one_backend(self) -> ReplaySettings:
        if self.backend == "torch":
            if self.url is not None:
                raise ValueError("replay.url is for backend vllm; set replay.backend: vllm")
            return self
        if self.device_map is not None:
            raise ValueError(
                "replay.device_map needs backend torch; vLLM splits a model by --tensor-parallel-size"
            )
        if self.url is None:
            raise ValueError("backend vllm needs replay.url: where its server answers")
        if self.adapter is not None:
            raise ValueError(
                "replay.adapter needs backend torch; for vllm merge it into the weights that are served"
            )
        if self.answers:
            raise ValueError(
                "replay.mode generate and replay.answer_share need backend torch: the copy at replay.url "
                "reads and does not answer"
            )
        return self

    @model_validator(mode="after")
    def _all_devices_or_one(self) -> ReplaySettings:
        if self.device_map is not None and self.device not in ("auto", "cuda"):
            raise ValueError(
                f"replay.device_map: auto takes every GPU, and replay.device names {self.device}; "
                "leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _share_of_auto(self) -> ReplaySettings:
        if self.answer_share and self.mode != "auto":
            raise ValueError(
                f"replay.answer_share is for mode auto; mode {self.mode} "
                + ("answers all of them" if self.mode == "generate" else "answers none")
            )
        return self

    @property
    def answers(self) -> bool:
        """The copy answers some prompts itself, for which it must be loaded whole."""
        return self.mode == "generate" or self.answer_share > 0.0


class PackSettings(Section):
    path: Path | None = Field(None, description="pack folder; null: the pack shipped for the model")
    other_weights: bool = Field(
        False,
        description="read a model whose weights differ from the pack's, e.g. a fine-tuned one",
    )
    allow_unjudged: bool = Field(
        False,
        description="let rules page on features without a judge's verdict in the pack, or with one below ship",
    )
    canary_interval: Duration = timedelta(minutes=30)
    canary_tolerance: float = Field(
        0.05,
        gt=0.0,
        description="largest deviation of a canary, in calibration deviations, taken as the same",
    )
