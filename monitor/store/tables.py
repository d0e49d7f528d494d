"""The tables, as SQLAlchemy knows them: for migrations to be checked against, not for queries.

Three schemas: ``monitor_data`` holds these tables, ``monitor_partitions`` their partitions, and
``monitor`` the documented views (docs/sql.md), which are all that the read-only role may read.
Queries name the schema; nothing depends on a search path.

Partitioned tables (see partitions.py) carry ``info["partition_by"]``.

Longer than the house's 400 lines because a schema is one idea: foreign keys run all through it.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    CheckConstraint,
    Column,
    Computed,
    ForeignKey,
    Identity,
    Index,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import (
    ARRAY,
    BIGINT,
    BOOLEAN,
    BYTEA,
    DOUBLE_PRECISION,
    INTEGER,
    JSONB,
    REAL,
    SMALLINT,
    TEXT,
    TIMESTAMP,
    UUID,
)

DATA_SCHEMA: Final = "monitor_data"
PARTITION_SCHEMA: Final = "monitor_partitions"
VIEW_SCHEMA: Final = "monitor"

MOMENT: Final = TIMESTAMP(timezone=True)
NOW: Final = text("now()")

metadata = MetaData(
    schema=DATA_SCHEMA,
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
        "ck": "%(table_name)s_%(constraint_name)s_check",
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
    },
)

# --- what is measured ----------------------------------------------------------------------------

packs = Table(
    "packs",
    metadata,
    Column("pack_id", TEXT, primary_key=True),
    Column("name", TEXT, nullable=False),
    Column("manifest", JSONB, nullable=False),
    Column("registered_at", MOMENT, nullable=False, server_default=NOW),
)

pack_features = Table(
    "pack_features",
    metadata,
    Column("pack_id", TEXT, ForeignKey("monitor_data.packs.pack_id"), nullable=False),
    Column("ordinal", SMALLINT, nullable=False),
    Column("name", TEXT, nullable=False),
    Column("kind", TEXT, nullable=False),
    Column("site", SMALLINT, nullable=False),
    Column("region", TEXT, nullable=False),
    Column("pooling", TEXT, nullable=False),
    Column("tags", ARRAY(TEXT), nullable=False),
    Column("expected", TEXT, nullable=False),
    Column("description", TEXT, nullable=False),
    Column("tail_threshold", REAL, nullable=False),
    Column("sign", SMALLINT, Computed("CASE WHEN expected = 'falls' THEN -1 ELSE 1 END")),
    PrimaryKeyConstraint("pack_id", "ordinal"),
    UniqueConstraint("pack_id", "name"),
)

lineages = Table(
    "lineages",
    metadata,
    Column("lineage_id", INTEGER, Identity(always=True), primary_key=True),
    Column("pack_id", TEXT, ForeignKey("monitor_data.packs.pack_id"), nullable=False),
    Column("model_id", TEXT, nullable=False),
    Column("model_hash", TEXT, nullable=False),
    Column("dtype", TEXT, nullable=False),
    Column("attention", TEXT, nullable=False),
    Column("device", TEXT, nullable=False),
    Column("engine", TEXT, nullable=False),
    Column("rules", TEXT, nullable=False),
    UniqueConstraint(
        "pack_id",
        "model_id",
        "model_hash",
        "dtype",
        "attention",
        "device",
        "engine",
        "rules",
        name="lineages_key",
    ),
)

adjusted_lineages = Table(
    "adjusted_lineages",
    metadata,
    Column("adjusted_id", INTEGER, Identity(always=True, start=-1, increment=-1), primary_key=True),
    Column("lineage_id", INTEGER, ForeignKey("monitor_data.lineages.lineage_id"), nullable=False),
    Column("baseline_id", TEXT, ForeignKey("monitor_data.baselines.baseline_id"), nullable=False),
    UniqueConstraint("lineage_id", "baseline_id"),
)

# --- one prompt, one row -------------------------------------------------------------------------

scores = Table(
    "scores",
    metadata,
    Column("recorded_at", MOMENT, nullable=False),
    Column("topic", TEXT, nullable=False),
    Column("partition", INTEGER, nullable=False),
    Column("record_offset", BIGINT, nullable=False),
    Column("record_index", INTEGER, nullable=False),
    Column("lineage_id", INTEGER, nullable=False),
    Column("prompt_id", TEXT, nullable=False),
    Column("content_hash", BYTEA, nullable=False),
    Column("conversation_hash", BYTEA),
    Column("segments", ARRAY(TEXT), nullable=False),
    Column("model", TEXT),
    Column("model_revision", TEXT),
    Column("prompt_tokens", INTEGER, nullable=False),
    Column("response_tokens", INTEGER, nullable=False),
    Column("cut", BOOLEAN, nullable=False),
    Column("generated", BOOLEAN, nullable=False),
    Column("inclusion_probability", REAL, nullable=False),
    Column("readings", ARRAY(REAL), nullable=False),
    Column("scores", ARRAY(REAL), nullable=False),
    Column("served_prompt_tokens", BIGINT),
    Column("served_answer_tokens", BIGINT),
    Column("prompt_difference", BIGINT),
    Column("answer_difference", BIGINT),
    Column("fidelity", TEXT),
    Column("left_out", ARRAY(TEXT)),
    Column("covariates", ARRAY(REAL)),
    Column("adjusted", ARRAY(REAL)),
    Column("adjusted_id", INTEGER),
    Column("weighing", TEXT),
    Column("surprise", REAL),
    Column("surprise_peak", REAL),
    Column("off_support", INTEGER),
    Column("given_away", INTEGER),
    Column("twinning", TEXT),
    Column("twin", ARRAY(REAL)),
    PrimaryKeyConstraint(
        "topic", "partition", "record_offset", "record_index", "lineage_id", "recorded_at"
    ),
    Index(
        "scores_recorded_at_idx",
        "recorded_at",
        postgresql_using="brin",
        postgresql_with={"pages_per_range": 16, "autosummarize": True},
    ),
    Index("scores_prompt_id_idx", "prompt_id"),
    Index(
        "scores_conversation_hash_idx",
        "conversation_hash",
        postgresql_where=text("conversation_hash IS NOT NULL"),
    ),
    info={"partition_by": "recorded_at"},
    postgresql_partition_by="RANGE (recorded_at)",
)

dead_letters = Table(
    "dead_letters",
    metadata,
    Column("recorded_at", MOMENT, nullable=False),
    Column("topic", TEXT, nullable=False),
    Column("partition", INTEGER, nullable=False),
    Column("record_offset", BIGINT, nullable=False),
    Column("record_index", INTEGER, nullable=False),
    Column("reason", TEXT, nullable=False),
    Column("detail", TEXT, nullable=False),
    Column("content", BYTEA),
    Column("stored_at", MOMENT, nullable=False, server_default=NOW),
    PrimaryKeyConstraint("topic", "partition", "record_offset", "record_index", "recorded_at"),
    Index("dead_letters_recorded_at_idx", "recorded_at"),
    info={"partition_by": "recorded_at"},
    postgresql_partition_by="RANGE (recorded_at)",
)

# --- additive statistics -------------------------------------------------------------------------

buckets = Table(
    "buckets",
    metadata,
    Column("bucket_start", MOMENT, nullable=False),
    Column("lineage_id", INTEGER, nullable=False),
    Column("feature", SMALLINT, nullable=False),
    Column("segment", TEXT, nullable=False),
    Column("source", TEXT, nullable=False),
    Column("bucket_seconds", INTEGER, nullable=False),
    Column("n", BIGINT, nullable=False),
    Column("tail_count", BIGINT, nullable=False),
    Column("tail_n", BIGINT),
    Column("total", DOUBLE_PRECISION, nullable=False),
    Column("total_squares", DOUBLE_PRECISION, nullable=False),
    Column("histogram", ARRAY(INTEGER), nullable=False),
    PrimaryKeyConstraint(
        "bucket_start", "lineage_id", "feature", "segment", "source", "bucket_seconds"
    ),
    info={"partition_by": "bucket_start"},
    postgresql_partition_by="RANGE (bucket_start)",
)

buckets_hourly = Table(
    "buckets_hourly",
    metadata,
    Column("bucket_start", MOMENT, nullable=False),
    Column("lineage_id", INTEGER, nullable=False),
    Column("feature", SMALLINT, nullable=False),
    Column("segment", TEXT, nullable=False),
    Column("n", BIGINT, nullable=False),
    Column("tail_count", BIGINT, nullable=False),
    Column("tail_n", BIGINT),
    Column("total", DOUBLE_PRECISION, nullable=False),
    Column("total_squares", DOUBLE_PRECISION, nullable=False),
    Column("histogram", ARRAY(INTEGER), nullable=False),
    PrimaryKeyConstraint("bucket_start", "lineage_id", "feature", "segment"),
    Index("buckets_hourly_feature_idx", "lineage_id", "feature", "segment", "bucket_start"),
    info={"partition_by": "bucket_start"},
    postgresql_partition_by="RANGE (bucket_start)",
)

touched_hours = Table(
    "touched_hours",
    metadata,
    Column("hour", MOMENT, nullable=False),
    Column("lineage_id", INTEGER, nullable=False),
    Column("source", TEXT, nullable=False),
    Column("touched_at", MOMENT, nullable=False, server_default=NOW),
    PrimaryKeyConstraint("hour", "lineage_id", "source"),
)

retention = Table(
    "retention",
    metadata,
    Column("table_name", TEXT, primary_key=True),
    Column("kept_from", MOMENT, nullable=False),
)

leadership = Table(
    "leadership",
    metadata,
    Column("name", TEXT, primary_key=True),
    Column("token", BIGINT, nullable=False),
    Column("holder", TEXT, nullable=False),
    Column("taken_at", MOMENT, nullable=False),
    Column("expires_at", MOMENT, nullable=False),
    Column("worked_at", MOMENT),
)

segments = Table(
    "segments",
    metadata,
    Column("group_id", TEXT, nullable=False),
    Column("segment", TEXT, nullable=False),
    Column("first_seen_at", MOMENT, nullable=False, server_default=NOW),
    Column("last_seen_at", MOMENT, nullable=False, server_default=NOW),
    PrimaryKeyConstraint("group_id", "segment"),
)

ingest_counts = Table(
    "ingest_counts",
    metadata,
    Column("bucket_start", MOMENT, nullable=False),
    Column("group_id", TEXT, nullable=False),
    Column("source", TEXT, nullable=False),
    Column("outcome", TEXT, nullable=False),
    Column("n", BIGINT, nullable=False),
    PrimaryKeyConstraint("bucket_start", "group_id", "source", "outcome"),
    info={"partition_by": "bucket_start"},
    postgresql_partition_by="RANGE (bucket_start)",
)

# --- who reads what ------------------------------------------------------------------------------

offsets = Table(
    "offsets",
    metadata,
    Column("group_id", TEXT, nullable=False),
    Column("topic", TEXT, nullable=False),
    Column("partition", INTEGER, nullable=False),
    Column("next_offset", BIGINT, nullable=False),
    Column("log_end", BIGINT),
    Column("updated_at", MOMENT, nullable=False, server_default=NOW),
    Column("worker_id", TEXT, nullable=False),
    Column("watermark", MOMENT),
    Column("begins_at", BIGINT, nullable=False, server_default=text("0")),
    PrimaryKeyConstraint("group_id", "topic", "partition"),
)

topics = Table(
    "topics",
    metadata,
    Column("group_id", TEXT, nullable=False),
    Column("topic", TEXT, nullable=False),
    Column("topic_id", UUID),
    Column("begun_at", MOMENT, nullable=False, server_default=NOW),
    PrimaryKeyConstraint("group_id", "topic"),
)

read_spans = Table(
    "read_spans",
    metadata,
    Column("group_id", TEXT, nullable=False),
    Column("topic", TEXT, nullable=False),
    Column("partition", INTEGER, nullable=False),
    Column("first_offset", BIGINT, nullable=False),
    Column("end_offset", BIGINT, nullable=False),
    PrimaryKeyConstraint("group_id", "topic", "partition", "first_offset"),
)

log_ends = Table(
    "log_ends",
    metadata,
    Column("group_id", TEXT, nullable=False),
    Column("topic", TEXT, nullable=False),
    Column("partition", INTEGER, nullable=False),
    Column("begins_at", BIGINT, nullable=False),
    Column("log_end", BIGINT, nullable=False),
    Column("asked_at", MOMENT, nullable=False),
    Column("assigned_at", MOMENT, nullable=False),
    Column("begun_at", MOMENT, nullable=False),
    Column("caught_up_at", MOMENT),
    Column("worker_id", TEXT, nullable=False),
    PrimaryKeyConstraint("group_id", "topic", "partition"),
)

halves = Table(
    "halves",
    metadata,
    Column("group_id", TEXT, nullable=False),
    Column("topic", TEXT, nullable=False),
    Column("partition", INTEGER, nullable=False),
    Column("record_offset", BIGINT, nullable=False),
    Column("record_index", INTEGER, nullable=False),
    PrimaryKeyConstraint("group_id", "topic", "partition", "record_offset", "record_index"),
)

workers = Table(
    "workers",
    metadata,
    Column("worker_id", TEXT, primary_key=True),
    Column("group_id", TEXT, nullable=False),
    Column("pack_id", TEXT, nullable=False),
    Column("state", TEXT, nullable=False),
    Column("started_at", MOMENT, nullable=False),
    Column("seen_at", MOMENT, nullable=False),
    Column("remarks", ARRAY(TEXT), nullable=False, server_default=text("'{}'")),
)

canary_runs = Table(
    "canary_runs",
    metadata,
    Column("run_id", BIGINT, Identity(always=True), primary_key=True),
    Column("worker_id", TEXT, nullable=False),
    Column("ran_at", MOMENT, nullable=False),
    Column("lineage_id", INTEGER, ForeignKey("monitor_data.lineages.lineage_id"), nullable=False),
    Column("largest_deviation", DOUBLE_PRECISION, nullable=False),
    Column("noise_floor", DOUBLE_PRECISION, nullable=False),
    Column("reproduced", BOOLEAN, nullable=False),
    Index("canary_runs_ran_at_idx", "ran_at"),
)

# --- drift ---------------------------------------------------------------------------------------

baselines = Table(
    "baselines",
    metadata,
    Column("baseline_id", TEXT, primary_key=True),
    Column("pack_id", TEXT, ForeignKey("monitor_data.packs.pack_id"), nullable=False),
    Column("name", TEXT, nullable=False),
    Column("status", TEXT, nullable=False),
    Column("window_start", MOMENT, nullable=False),
    Column("window_end", MOMENT, nullable=False),
    Column("n", BIGINT, nullable=False),
    Column("fingerprint", JSONB, nullable=False),
    Column("created_at", MOMENT, nullable=False),
    Column("approved_at", MOMENT),
    Column("approved_by", TEXT),
    Column("retired_at", MOMENT),
    Column("retired_by", TEXT),
    Column("law", JSONB),
    Column("numerics", JSONB),
    CheckConstraint("status IN ('draft', 'approved', 'retired')", name="status"),
    Index(
        "baselines_approved_idx",
        "pack_id",
        unique=True,
        postgresql_where=text("status = 'approved'"),
    ),
)

baseline_windows = Table(
    "baseline_windows",
    metadata,
    Column("baseline_id", TEXT, ForeignKey("monitor_data.baselines.baseline_id"), nullable=False),
    Column("feature", SMALLINT, nullable=False),
    Column("segment", TEXT, nullable=False),
    Column("n", BIGINT, nullable=False),
    Column("tail_count", BIGINT, nullable=False),
    Column("tail_n", BIGINT),
    Column("total", DOUBLE_PRECISION, nullable=False),
    Column("total_squares", DOUBLE_PRECISION, nullable=False),
    Column("histogram", ARRAY(BIGINT), nullable=False),
    Column("design_effect", DOUBLE_PRECISION, nullable=False),
    Column("tail_design_effect", DOUBLE_PRECISION, nullable=False),
    Column("tails", JSONB),
    PrimaryKeyConstraint("baseline_id", "feature", "segment"),
)

adjusted_baseline_windows = Table(
    "adjusted_baseline_windows",
    metadata,
    Column("baseline_id", TEXT, ForeignKey("monitor_data.baselines.baseline_id"), nullable=False),
    Column("feature", SMALLINT, nullable=False),
    Column("segment", TEXT, nullable=False),
    Column("n", BIGINT, nullable=False),
    Column("tail_count", BIGINT, nullable=False),
    Column("tail_n", BIGINT),
    Column("total", DOUBLE_PRECISION, nullable=False),
    Column("total_squares", DOUBLE_PRECISION, nullable=False),
    Column("histogram", ARRAY(BIGINT), nullable=False),
    Column("design_effect", DOUBLE_PRECISION, nullable=False),
    Column("tail_design_effect", DOUBLE_PRECISION, nullable=False),
    Column("tails", JSONB),
    PrimaryKeyConstraint("baseline_id", "feature", "segment"),
)

adjustments = Table(
    "adjustments",
    metadata,
    Column("baseline_id", TEXT, ForeignKey("monitor_data.baselines.baseline_id"), nullable=False),
    Column("feature", SMALLINT, nullable=False),
    Column("intercept", DOUBLE_PRECISION, nullable=False),
    Column("weights", ARRAY(DOUBLE_PRECISION), nullable=False),
    Column("penalty", DOUBLE_PRECISION, nullable=False),
    Column("explained", DOUBLE_PRECISION, nullable=False),
    Column("n", BIGINT, nullable=False),
    PrimaryKeyConstraint("baseline_id", "feature"),
)

drifts = Table(
    "drifts",
    metadata,
    Column("evaluated_at", MOMENT, nullable=False),
    Column("baseline_id", TEXT, nullable=False),
    Column("pack_id", TEXT, nullable=False),
    Column("feature", TEXT, nullable=False),
    Column("segment", TEXT, nullable=False),
    Column("window_name", TEXT, nullable=False),
    Column("window_start", MOMENT, nullable=False),
    Column("window_end", MOMENT, nullable=False),
    Column("n", BIGINT, nullable=False),
    Column("baseline_n", BIGINT, nullable=False),
    Column("pooled_baseline", BOOLEAN, nullable=False),
    Column("mean", DOUBLE_PRECISION),
    Column("baseline_mean", DOUBLE_PRECISION),
    Column("shift", DOUBLE_PRECISION),
    Column("shift_low", DOUBLE_PRECISION),
    Column("shift_high", DOUBLE_PRECISION),
    Column("psi", DOUBLE_PRECISION),
    Column("psi_low", DOUBLE_PRECISION),
    Column("ks", DOUBLE_PRECISION),
    Column("ks_low", DOUBLE_PRECISION),
    Column("tail_rate", DOUBLE_PRECISION),
    Column("baseline_tail_rate", DOUBLE_PRECISION),
    Column("tail_ratio", DOUBLE_PRECISION),
    Column("tail_ratio_low", DOUBLE_PRECISION),
    Column("tail_ratio_high", DOUBLE_PRECISION),
    Column("evidence", DOUBLE_PRECISION),
    Column("evidence_limit", DOUBLE_PRECISION),
    Column("cause", TEXT, nullable=False),
    Column("tails", JSONB),
    Column("adjusted", BOOLEAN, nullable=False, server_default=text("false")),
    Column("raw_mean", DOUBLE_PRECISION),
    Column("raw_baseline_mean", DOUBLE_PRECISION),
    Column("raw_shift", DOUBLE_PRECISION),
    Column("raw_shift_low", DOUBLE_PRECISION),
    Column("raw_shift_high", DOUBLE_PRECISION),
    Column("witnesses", JSONB),
    Column("log_e", DOUBLE_PRECISION),
    Column("log_e_line", DOUBLE_PRECISION),
    PrimaryKeyConstraint(
        "feature", "segment", "evaluated_at", "window_start", "window_end", "baseline_id"
    ),
    Index("drifts_evaluated_at_idx", "evaluated_at"),
    info={"partition_by": "evaluated_at"},
    postgresql_partition_by="RANGE (evaluated_at)",
)

detectors = Table(
    "detectors",
    metadata,
    Column("baseline_id", TEXT, ForeignKey("monitor_data.baselines.baseline_id"), nullable=False),
    Column("feature", SMALLINT, nullable=False),
    Column("segment", TEXT, nullable=False),
    Column("started_at", MOMENT, nullable=False),
    Column("last_bucket", MOMENT, nullable=False),
    Column("steps", BIGINT, nullable=False),
    Column("log_values", ARRAY(DOUBLE_PRECISION), nullable=False),
    Column("process_since", MOMENT),
    Column("process_steps", BIGINT),
    Column("process_values", ARRAY(DOUBLE_PRECISION)),
    Column("log_e", DOUBLE_PRECISION),
    PrimaryKeyConstraint("baseline_id", "feature", "segment"),
)

discoveries = Table(
    "discoveries",
    metadata,
    Column("pack_id", TEXT, ForeignKey("monitor_data.packs.pack_id"), nullable=False),
    Column("family", TEXT, nullable=False),
    Column("segment", TEXT, nullable=False),
    Column("feature", TEXT, nullable=False),
    Column("served", TEXT, nullable=False),
    Column("alternative", TEXT, nullable=False),
    Column("since", MOMENT, nullable=False),
    Column("found_at", MOMENT, nullable=False),
    Column("evaluated_at", MOMENT, nullable=False),
    Column("log_e", DOUBLE_PRECISION, nullable=False),
    Column("log_e_line", DOUBLE_PRECISION, nullable=False),
    Column("streams", BIGINT, nullable=False),
    Column("false_discovery", DOUBLE_PRECISION, nullable=False),
    PrimaryKeyConstraint("pack_id", "family", "segment", "feature", "served", "alternative"),
)

identity_buckets = Table(
    "identity_buckets",
    metadata,
    Column("bucket_start", MOMENT, nullable=False),
    Column("lineage_id", INTEGER, nullable=False),
    Column("segment", TEXT, nullable=False),
    Column("source", TEXT, nullable=False),
    Column("served", TEXT, nullable=False),
    Column("n", BIGINT, nullable=False),
    Column("left_out", BIGINT, nullable=False),
    Column("tokens", BIGINT, nullable=False),
    Column("excess", DOUBLE_PRECISION, nullable=False),
    Column("variance", DOUBLE_PRECISION, nullable=False),
    Column("off_support", BIGINT, nullable=False),
    Column("greedy_tokens", BIGINT, nullable=False),
    Column("given_away", BIGINT, nullable=False),
    Column("counted_tokens", BIGINT, nullable=False, server_default="0"),
    Column("counted_excess", DOUBLE_PRECISION, nullable=False, server_default="0"),
    Column("counted_variance", DOUBLE_PRECISION, nullable=False, server_default="0"),
    Column("wagers", ARRAY(DOUBLE_PRECISION), nullable=False),
    PrimaryKeyConstraint("bucket_start", "lineage_id", "segment", "source", "served"),
    info={"partition_by": "bucket_start"},
    postgresql_partition_by="RANGE (bucket_start)",
)

law_buckets = Table(
    "law_buckets",
    metadata,
    Column("bucket_start", MOMENT, nullable=False),
    Column("lineage_id", INTEGER, nullable=False),
    Column("source", TEXT, nullable=False),
    Column("served", TEXT, nullable=False),
    Column("n", BIGINT, nullable=False),
    Column("tokens", BIGINT, nullable=False),
    Column("logs", ARRAY(REAL), nullable=False),
    Column("squares", ARRAY(REAL), nullable=False),
    PrimaryKeyConstraint("bucket_start", "lineage_id", "source", "served"),
    info={"partition_by": "bucket_start"},
    postgresql_partition_by="RANGE (bucket_start)",
)

identity_detectors = Table(
    "identity_detectors",
    metadata,
    Column("pack_id", TEXT, ForeignKey("monitor_data.packs.pack_id"), nullable=False),
    Column("segment", TEXT, nullable=False),
    Column("served", TEXT, nullable=False),
    Column("started_at", MOMENT, nullable=False),
    Column("last_bucket", MOMENT, nullable=False),
    Column("n", BIGINT, nullable=False),
    Column("log_values", ARRAY(DOUBLE_PRECISION), nullable=False),
    Column("evidence", DOUBLE_PRECISION, nullable=False),
    Column("evidence_limit", DOUBLE_PRECISION, nullable=False),
    Column("process_since", MOMENT),
    Column("process_steps", BIGINT),
    Column("process_values", ARRAY(DOUBLE_PRECISION)),
    Column("log_e", DOUBLE_PRECISION),
    PrimaryKeyConstraint("pack_id", "segment", "served"),
)

alternative_buckets = Table(
    "alternative_buckets",
    metadata,
    Column("bucket_start", MOMENT, nullable=False),
    Column("lineage_id", INTEGER, nullable=False),
    Column("segment", TEXT, nullable=False),
    Column("source", TEXT, nullable=False),
    Column("served", TEXT, nullable=False),
    Column("alternative", TEXT, nullable=False),
    Column("n", BIGINT, nullable=False),
    Column("nearer", BIGINT, nullable=False),
    Column("tokens", BIGINT, nullable=False),
    Column("excess", DOUBLE_PRECISION, nullable=False),
    Column("variance", DOUBLE_PRECISION, nullable=False),
    Column("likelihoods", ARRAY(DOUBLE_PRECISION), nullable=False),
    Column("wagers", ARRAY(DOUBLE_PRECISION), nullable=False),
    PrimaryKeyConstraint(
        "bucket_start", "lineage_id", "segment", "source", "served", "alternative"
    ),
    info={"partition_by": "bucket_start"},
    postgresql_partition_by="RANGE (bucket_start)",
)

alternative_detectors = Table(
    "alternative_detectors",
    metadata,
    Column("pack_id", TEXT, ForeignKey("monitor_data.packs.pack_id"), nullable=False),
    Column("segment", TEXT, nullable=False),
    Column("served", TEXT, nullable=False),
    Column("alternative", TEXT, nullable=False),
    Column("started_at", MOMENT, nullable=False),
    Column("last_bucket", MOMENT, nullable=False),
    Column("n", BIGINT, nullable=False),
    Column("log_values", ARRAY(DOUBLE_PRECISION), nullable=False),
    Column("evidence", DOUBLE_PRECISION, nullable=False),
    Column("evidence_limit", DOUBLE_PRECISION, nullable=False),
    Column("process_since", MOMENT),
    Column("process_steps", BIGINT),
    Column("process_values", ARRAY(DOUBLE_PRECISION)),
    Column("log_e", DOUBLE_PRECISION),
    PrimaryKeyConstraint("pack_id", "segment", "served", "alternative"),
)

twin_lineages = Table(
    "twin_lineages",
    metadata,
    # Numbers below 0, of the same sequence as those of adjusted scores.
    Column(
        "twin_id",
        INTEGER,
        primary_key=True,
        autoincrement=False,
        server_default=text("nextval('monitor_data.adjusted_lineages_adjusted_id_seq')"),
    ),
    Column("lineage_id", INTEGER, ForeignKey("monitor_data.lineages.lineage_id"), nullable=False),
    UniqueConstraint("lineage_id"),
)

twin_detectors = Table(
    "twin_detectors",
    metadata,
    Column("pack_id", TEXT, ForeignKey("monitor_data.packs.pack_id"), nullable=False),
    Column("feature", SMALLINT, nullable=False),
    Column("segment", TEXT, nullable=False),
    Column("started_at", MOMENT, nullable=False),
    Column("last_bucket", MOMENT, nullable=False),
    Column("n", BIGINT, nullable=False),
    Column("log_values", ARRAY(DOUBLE_PRECISION), nullable=False),
    Column("evidence", DOUBLE_PRECISION, nullable=False),
    Column("evidence_limit", DOUBLE_PRECISION, nullable=False),
    Column("process_since", MOMENT),
    Column("process_steps", BIGINT),
    Column("process_values", ARRAY(DOUBLE_PRECISION)),
    Column("log_e", DOUBLE_PRECISION),
    PrimaryKeyConstraint("pack_id", "feature", "segment"),
)

# --- canaries to the served model ----------------------------------------------------------------

server_canary_questions = Table(
    "server_canary_questions",
    metadata,
    Column("set_id", TEXT, nullable=False),
    Column("ordinal", SMALLINT, nullable=False),
    Column("pack_id", TEXT, ForeignKey("monitor_data.packs.pack_id"), nullable=False),
    Column("question", TEXT, nullable=False),
    Column("border", BOOLEAN, nullable=False),
    Column("first", TEXT, nullable=False),
    Column("second", TEXT, nullable=False),
    Column("margin", DOUBLE_PRECISION, nullable=False),
    Column("tolerance", DOUBLE_PRECISION, nullable=False),
    Column("answer", TEXT, nullable=False),
    Column("scores", ARRAY(REAL)),
    Column("chosen_at", MOMENT, nullable=False, server_default=NOW),
    PrimaryKeyConstraint("set_id", "ordinal"),
)

server_canary_answers = Table(
    "server_canary_answers",
    metadata,
    Column("set_id", TEXT, nullable=False),
    Column("question", TEXT, nullable=False),
    Column("asked_at", MOMENT, nullable=False),
    Column("outcome", TEXT, nullable=False),
    Column("calls", SMALLINT, nullable=False),
    Column("seconds", DOUBLE_PRECISION, nullable=False),
    Column("detail", TEXT, nullable=False),
    Column("tokens", INTEGER, nullable=False),
    Column("first", TEXT),
    Column("other_first", BOOLEAN),
    Column("with_log_probs", BOOLEAN, nullable=False),
    Column("deviation", DOUBLE_PRECISION),
    Column("nats", DOUBLE_PRECISION),
    Column("scores", ARRAY(REAL)),
    PrimaryKeyConstraint("set_id", "question", "asked_at"),
    Index("server_canary_answers_asked_at_idx", "asked_at"),
)

server_canary_rounds = Table(
    "server_canary_rounds",
    metadata,
    Column("pack_id", TEXT, ForeignKey("monitor_data.packs.pack_id"), nullable=False),
    Column("set_id", TEXT, nullable=False),
    Column("served", TEXT, nullable=False),
    Column("asked_at", MOMENT, nullable=False),
    Column("asked", INTEGER, nullable=False),
    Column("compared", INTEGER, nullable=False),
    Column("compared_beyond", INTEGER, nullable=False),
    Column("questions", INTEGER, nullable=False),
    Column("beyond", INTEGER, nullable=False),
    Column("other_firsts", INTEGER, nullable=False),
    Column("with_log_probs", INTEGER, nullable=False),
    Column("largest", DOUBLE_PRECISION),
    Column("evidence", DOUBLE_PRECISION),
    Column("evidence_limit", DOUBLE_PRECISION),
    Column("moved", JSONB, nullable=False),
    Column("problem", TEXT, nullable=False),
    PrimaryKeyConstraint("pack_id", "asked_at"),
)

server_canary_turns = Table(
    "server_canary_turns",
    metadata,
    Column("pack_id", TEXT, ForeignKey("monitor_data.packs.pack_id"), nullable=False),
    Column("due_at", MOMENT, nullable=False),
    Column("failures", INTEGER, nullable=False),
    Column("claimed_by", TEXT),
    Column("claimed_until", MOMENT),
    PrimaryKeyConstraint("pack_id"),
)

# --- alerts --------------------------------------------------------------------------------------

alerts = Table(
    "alerts",
    metadata,
    Column("alert_id", TEXT, primary_key=True),
    Column("dedupe_key", TEXT, nullable=False),
    Column("rule", TEXT, nullable=False),
    Column("kind", TEXT, nullable=False),
    Column("severity", TEXT, nullable=False),
    Column("state", TEXT, nullable=False),
    Column("summary", TEXT, nullable=False),
    Column("labels", JSONB, nullable=False),
    Column("details", JSONB, nullable=False),
    Column("pending_since", MOMENT, nullable=False),
    Column("last_active_at", MOMENT, nullable=False),
    Column("fired_at", MOMENT),
    Column("resolved_at", MOMENT),
    Column("acknowledged_at", MOMENT),
    Column("acknowledged_by", TEXT),
    Column("last_announced_at", MOMENT),
    Column("sequence", INTEGER, nullable=False),
    Column("unwatched_at", MOMENT),
    CheckConstraint("state IN ('pending', 'firing', 'resolved')", name="state"),
    Index(
        "alerts_open_idx",
        "dedupe_key",
        unique=True,
        postgresql_where=text("state <> 'resolved'"),
    ),
    # What the view calls the state, so that it finds the open ones.
    Index(
        "alerts_shown_open_idx",
        "pending_since",
        postgresql_where=text(
            "CASE WHEN unwatched_at IS NULL THEN state ELSE 'unwatched' END"
            " IN ('pending', 'firing')"
        ),
    ),
    Index("alerts_dedupe_key_idx", "dedupe_key", "pending_since"),
    Index("alerts_pending_since_idx", "pending_since"),
)

silences = Table(
    "silences",
    metadata,
    Column("silence_id", TEXT, primary_key=True),
    Column("matchers", JSONB, nullable=False),
    Column("starts_at", MOMENT, nullable=False),
    Column("ends_at", MOMENT, nullable=False),
    Column("created_by", TEXT, nullable=False),
    Column("comment", TEXT, nullable=False),
    Index("silences_ends_at_idx", "ends_at"),
)

events = Table(
    "events",
    metadata,
    Column("event_id", TEXT, primary_key=True),
    # No foreign key: a `monitor.test` event announces an alert that was never stored.
    Column("alert_id", TEXT, nullable=False),
    Column("type", TEXT, nullable=False),
    Column("sequence", INTEGER, nullable=False),
    Column("created_at", MOMENT, nullable=False),
    Column("alert", JSONB, nullable=False),
    UniqueConstraint("alert_id", "sequence"),
)

deliveries = Table(
    "deliveries",
    metadata,
    Column("delivery_id", BIGINT, Identity(always=True), primary_key=True),
    Column("event_id", TEXT, ForeignKey("monitor_data.events.event_id"), nullable=False),
    Column("endpoint", TEXT, nullable=False),
    Column("alert_id", TEXT, nullable=False),
    Column("sequence", INTEGER, nullable=False),
    Column("state", TEXT, nullable=False),
    Column("attempts", INTEGER, nullable=False, server_default=text("0")),
    Column("next_attempt_at", MOMENT, nullable=False),
    Column("leased_until", MOMENT),
    Column("finished_at", MOMENT),
    UniqueConstraint("event_id", "endpoint"),
    CheckConstraint("state IN ('waiting', 'delivered', 'given_up')", name="state"),
    Index(
        "deliveries_due_idx",
        "endpoint",
        "next_attempt_at",
        postgresql_where=text("state = 'waiting'"),
    ),
    Index(
        "deliveries_order_idx",
        "alert_id",
        "endpoint",
        "sequence",
        postgresql_where=text("state = 'waiting'"),
    ),
)

delivery_attempts = Table(
    "delivery_attempts",
    metadata,
    Column(
        "delivery_id",
        BIGINT,
        ForeignKey("monitor_data.deliveries.delivery_id", ondelete="CASCADE"),
        nullable=False,
    ),
    Column("number", INTEGER, nullable=False),
    Column("attempted_at", MOMENT, nullable=False),
    Column("outcome", TEXT, nullable=False),
    Column("status", INTEGER),
    Column("latency_seconds", DOUBLE_PRECISION, nullable=False),
    Column("error", TEXT, nullable=False),
    Column("retry_after_seconds", DOUBLE_PRECISION),
    PrimaryKeyConstraint("delivery_id", "number"),
)

endpoints = Table(
    "endpoints",
    metadata,
    Column("name", TEXT, primary_key=True),
    Column("disabled_at", MOMENT),
    Column("reason", TEXT, nullable=False, server_default=text("''")),
)
