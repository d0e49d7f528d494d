"""The tables: packs, scores, buckets, offsets, baselines, drift, alerts and their deliveries.

Revision ID: 0001
Revises:
"""

from alembic import op

revision = "0001"
down_revision = None

PARTITIONED = ("scores", "dead_letters", "buckets", "buckets_hourly", "ingest_counts", "drifts")

TABLES = """
CREATE TABLE monitor_data.packs (
    pack_id TEXT NOT NULL,
    name TEXT NOT NULL,
    manifest JSONB NOT NULL,
    registered_at timestamptz DEFAULT now() NOT NULL,
    CONSTRAINT packs_pkey PRIMARY KEY (pack_id)
);

CREATE TABLE monitor_data.pack_features (
    pack_id TEXT NOT NULL,
    ordinal SMALLINT NOT NULL,
    name TEXT NOT NULL,
    kind TEXT NOT NULL,
    site SMALLINT NOT NULL,
    region TEXT NOT NULL,
    pooling TEXT NOT NULL,
    tags TEXT[] NOT NULL,
    expected TEXT NOT NULL,
    description TEXT NOT NULL,
    tail_threshold REAL NOT NULL,
    CONSTRAINT pack_features_pkey PRIMARY KEY (pack_id, ordinal),
    CONSTRAINT pack_features_pack_id_name_key UNIQUE (pack_id, name),
    CONSTRAINT pack_features_pack_id_fkey FOREIGN KEY(pack_id) REFERENCES monitor_data.packs (pack_id)
);

CREATE TABLE monitor_data.lineages (
    lineage_id INTEGER GENERATED ALWAYS AS IDENTITY,
    pack_id TEXT NOT NULL,
    model_id TEXT NOT NULL,
    model_hash TEXT NOT NULL,
    dtype TEXT NOT NULL,
    attention TEXT NOT NULL,
    device TEXT NOT NULL,
    engine TEXT NOT NULL,
    rules TEXT NOT NULL,
    CONSTRAINT lineages_pkey PRIMARY KEY (lineage_id),
    CONSTRAINT lineages_key UNIQUE (pack_id, model_id, model_hash, dtype, attention, device, engine, rules),
    CONSTRAINT lineages_pack_id_fkey FOREIGN KEY(pack_id) REFERENCES monitor_data.packs (pack_id)
);

CREATE TABLE monitor_data.scores (
    recorded_at timestamptz NOT NULL,
    topic TEXT NOT NULL,
    partition INTEGER NOT NULL,
    record_offset BIGINT NOT NULL,
    record_index INTEGER NOT NULL,
    lineage_id INTEGER NOT NULL,
    prompt_id TEXT NOT NULL,
    content_hash BYTEA NOT NULL,
    conversation_hash BYTEA,
    segments TEXT[] NOT NULL,
    model TEXT,
    model_revision TEXT,
    prompt_tokens INTEGER NOT NULL,
    response_tokens INTEGER NOT NULL,
    cut BOOLEAN NOT NULL,
    generated BOOLEAN NOT NULL,
    inclusion_probability REAL NOT NULL,
    readings REAL[] NOT NULL,
    scores REAL[] NOT NULL,
    CONSTRAINT scores_pkey PRIMARY KEY (topic, partition, record_offset, record_index, lineage_id, recorded_at)
) PARTITION BY RANGE (recorded_at);

CREATE INDEX scores_conversation_hash_idx ON monitor_data.scores (conversation_hash) WHERE conversation_hash IS NOT NULL;

CREATE INDEX scores_prompt_id_idx ON monitor_data.scores (prompt_id);

CREATE INDEX scores_recorded_at_idx ON monitor_data.scores USING brin (recorded_at) WITH (pages_per_range = 16, autosummarize = true);

CREATE TABLE monitor_data.dead_letters (
    recorded_at timestamptz NOT NULL,
    topic TEXT NOT NULL,
    partition INTEGER NOT NULL,
    record_offset BIGINT NOT NULL,
    record_index INTEGER NOT NULL,
    reason TEXT NOT NULL,
    detail TEXT NOT NULL,
    content BYTEA,
    stored_at timestamptz DEFAULT now() NOT NULL,
    CONSTRAINT dead_letters_pkey PRIMARY KEY (topic, partition, record_offset, record_index, recorded_at)
) PARTITION BY RANGE (recorded_at);

CREATE INDEX dead_letters_recorded_at_idx ON monitor_data.dead_letters (recorded_at);

CREATE TABLE monitor_data.buckets (
    bucket_start timestamptz NOT NULL,
    lineage_id INTEGER NOT NULL,
    feature SMALLINT NOT NULL,
    segment TEXT NOT NULL,
    source TEXT NOT NULL,
    bucket_seconds INTEGER NOT NULL,
    n BIGINT NOT NULL,
    tail_count BIGINT NOT NULL,
    total DOUBLE PRECISION NOT NULL,
    total_squares DOUBLE PRECISION NOT NULL,
    histogram INTEGER[] NOT NULL,
    CONSTRAINT buckets_pkey PRIMARY KEY (bucket_start, lineage_id, feature, segment, source, bucket_seconds)
) PARTITION BY RANGE (bucket_start);

CREATE TABLE monitor_data.buckets_hourly (
    bucket_start timestamptz NOT NULL,
    lineage_id INTEGER NOT NULL,
    feature SMALLINT NOT NULL,
    segment TEXT NOT NULL,
    n BIGINT NOT NULL,
    tail_count BIGINT NOT NULL,
    total DOUBLE PRECISION NOT NULL,
    total_squares DOUBLE PRECISION NOT NULL,
    histogram INTEGER[] NOT NULL,
    CONSTRAINT buckets_hourly_pkey PRIMARY KEY (bucket_start, lineage_id, feature, segment)
) PARTITION BY RANGE (bucket_start);

CREATE INDEX buckets_hourly_feature_idx ON monitor_data.buckets_hourly (lineage_id, feature, segment, bucket_start);

CREATE TABLE monitor_data.touched_hours (
    hour timestamptz NOT NULL,
    lineage_id INTEGER NOT NULL,
    source TEXT NOT NULL,
    touched_at timestamptz DEFAULT now() NOT NULL,
    CONSTRAINT touched_hours_pkey PRIMARY KEY (hour, lineage_id, source)
);

CREATE TABLE monitor_data.retention (
    table_name TEXT NOT NULL,
    kept_from timestamptz NOT NULL,
    CONSTRAINT retention_pkey PRIMARY KEY (table_name)
);

CREATE TABLE monitor_data.ingest_counts (
    bucket_start timestamptz NOT NULL,
    group_id TEXT NOT NULL,
    source TEXT NOT NULL,
    outcome TEXT NOT NULL,
    n BIGINT NOT NULL,
    CONSTRAINT ingest_counts_pkey PRIMARY KEY (bucket_start, group_id, source, outcome)
) PARTITION BY RANGE (bucket_start);

CREATE TABLE monitor_data.offsets (
    group_id TEXT NOT NULL,
    topic TEXT NOT NULL,
    partition INTEGER NOT NULL,
    next_offset BIGINT NOT NULL,
    log_end BIGINT,
    updated_at timestamptz DEFAULT now() NOT NULL,
    worker_id TEXT NOT NULL,
    CONSTRAINT offsets_pkey PRIMARY KEY (group_id, topic, partition)
);

CREATE TABLE monitor_data.workers (
    worker_id TEXT NOT NULL,
    group_id TEXT NOT NULL,
    pack_id TEXT NOT NULL,
    state TEXT NOT NULL,
    started_at timestamptz NOT NULL,
    seen_at timestamptz NOT NULL,
    CONSTRAINT workers_pkey PRIMARY KEY (worker_id)
);

CREATE TABLE monitor_data.canary_runs (
    run_id BIGINT GENERATED ALWAYS AS IDENTITY,
    worker_id TEXT NOT NULL,
    ran_at timestamptz NOT NULL,
    lineage_id INTEGER NOT NULL,
    largest_deviation DOUBLE PRECISION NOT NULL,
    noise_floor DOUBLE PRECISION NOT NULL,
    reproduced BOOLEAN NOT NULL,
    CONSTRAINT canary_runs_pkey PRIMARY KEY (run_id),
    CONSTRAINT canary_runs_lineage_id_fkey FOREIGN KEY(lineage_id) REFERENCES monitor_data.lineages (lineage_id)
);

CREATE INDEX canary_runs_ran_at_idx ON monitor_data.canary_runs (ran_at);

CREATE TABLE monitor_data.baselines (
    baseline_id TEXT NOT NULL,
    pack_id TEXT NOT NULL,
    name TEXT NOT NULL,
    status TEXT NOT NULL,
    window_start timestamptz NOT NULL,
    window_end timestamptz NOT NULL,
    n BIGINT NOT NULL,
    fingerprint JSONB NOT NULL,
    created_at timestamptz NOT NULL,
    approved_at timestamptz,
    approved_by TEXT,
    retired_at timestamptz,
    retired_by TEXT,
    CONSTRAINT baselines_pkey PRIMARY KEY (baseline_id),
    CONSTRAINT baselines_status_check CHECK (status IN ('draft', 'approved', 'retired')),
    CONSTRAINT baselines_pack_id_fkey FOREIGN KEY(pack_id) REFERENCES monitor_data.packs (pack_id)
);

CREATE UNIQUE INDEX baselines_approved_idx ON monitor_data.baselines (pack_id) WHERE status = 'approved';

CREATE TABLE monitor_data.baseline_windows (
    baseline_id TEXT NOT NULL,
    feature SMALLINT NOT NULL,
    segment TEXT NOT NULL,
    n BIGINT NOT NULL,
    tail_count BIGINT NOT NULL,
    total DOUBLE PRECISION NOT NULL,
    total_squares DOUBLE PRECISION NOT NULL,
    histogram BIGINT[] NOT NULL,
    design_effect DOUBLE PRECISION NOT NULL,
    tail_design_effect DOUBLE PRECISION NOT NULL,
    CONSTRAINT baseline_windows_pkey PRIMARY KEY (baseline_id, feature, segment),
    CONSTRAINT baseline_windows_baseline_id_fkey FOREIGN KEY(baseline_id) REFERENCES monitor_data.baselines (baseline_id)
);

CREATE TABLE monitor_data.drifts (
    evaluated_at timestamptz NOT NULL,
    baseline_id TEXT NOT NULL,
    pack_id TEXT NOT NULL,
    feature TEXT NOT NULL,
    segment TEXT NOT NULL,
    window_name TEXT NOT NULL,
    window_start timestamptz NOT NULL,
    window_end timestamptz NOT NULL,
    n BIGINT NOT NULL,
    baseline_n BIGINT NOT NULL,
    pooled_baseline BOOLEAN NOT NULL,
    mean DOUBLE PRECISION,
    baseline_mean DOUBLE PRECISION,
    shift DOUBLE PRECISION,
    shift_low DOUBLE PRECISION,
    shift_high DOUBLE PRECISION,
    psi DOUBLE PRECISION,
    psi_low DOUBLE PRECISION,
    ks DOUBLE PRECISION,
    ks_low DOUBLE PRECISION,
    tail_rate DOUBLE PRECISION,
    baseline_tail_rate DOUBLE PRECISION,
    tail_ratio DOUBLE PRECISION,
    tail_ratio_low DOUBLE PRECISION,
    tail_ratio_high DOUBLE PRECISION,
    evidence DOUBLE PRECISION,
    evidence_limit DOUBLE PRECISION,
    cause TEXT NOT NULL,
    CONSTRAINT drifts_pkey PRIMARY KEY (feature, segment, evaluated_at, window_start, window_end, baseline_id)
) PARTITION BY RANGE (evaluated_at);

CREATE INDEX drifts_evaluated_at_idx ON monitor_data.drifts (evaluated_at);

CREATE TABLE monitor_data.detectors (
    baseline_id TEXT NOT NULL,
    feature SMALLINT NOT NULL,
    segment TEXT NOT NULL,
    started_at timestamptz NOT NULL,
    last_bucket timestamptz NOT NULL,
    steps BIGINT NOT NULL,
    log_values DOUBLE PRECISION[] NOT NULL,
    CONSTRAINT detectors_pkey PRIMARY KEY (baseline_id, feature, segment),
    CONSTRAINT detectors_baseline_id_fkey FOREIGN KEY(baseline_id) REFERENCES monitor_data.baselines (baseline_id)
);

CREATE TABLE monitor_data.alerts (
    alert_id TEXT NOT NULL,
    dedupe_key TEXT NOT NULL,
    rule TEXT NOT NULL,
    kind TEXT NOT NULL,
    severity TEXT NOT NULL,
    state TEXT NOT NULL,
    summary TEXT NOT NULL,
    labels JSONB NOT NULL,
    details JSONB NOT NULL,
    pending_since timestamptz NOT NULL,
    last_active_at timestamptz NOT NULL,
    fired_at timestamptz,
    resolved_at timestamptz,
    acknowledged_at timestamptz,
    acknowledged_by TEXT,
    last_announced_at timestamptz,
    sequence INTEGER NOT NULL,
    CONSTRAINT alerts_pkey PRIMARY KEY (alert_id),
    CONSTRAINT alerts_state_check CHECK (state IN ('pending', 'firing', 'resolved'))
);

CREATE INDEX alerts_dedupe_key_idx ON monitor_data.alerts (dedupe_key, pending_since);

CREATE UNIQUE INDEX alerts_open_idx ON monitor_data.alerts (dedupe_key) WHERE state <> 'resolved';

CREATE INDEX alerts_pending_since_idx ON monitor_data.alerts (pending_since);

CREATE TABLE monitor_data.silences (
    silence_id TEXT NOT NULL,
    matchers JSONB NOT NULL,
    starts_at timestamptz NOT NULL,
    ends_at timestamptz NOT NULL,
    created_by TEXT NOT NULL,
    comment TEXT NOT NULL,
    CONSTRAINT silences_pkey PRIMARY KEY (silence_id)
);

CREATE INDEX silences_ends_at_idx ON monitor_data.silences (ends_at);

CREATE TABLE monitor_data.events (
    event_id TEXT NOT NULL,
    alert_id TEXT NOT NULL,
    type TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    created_at timestamptz NOT NULL,
    alert JSONB NOT NULL,
    CONSTRAINT events_pkey PRIMARY KEY (event_id),
    CONSTRAINT events_alert_id_sequence_key UNIQUE (alert_id, sequence)
);

CREATE TABLE monitor_data.deliveries (
    delivery_id BIGINT GENERATED ALWAYS AS IDENTITY,
    event_id TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    alert_id TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    state TEXT NOT NULL,
    attempts INTEGER DEFAULT 0 NOT NULL,
    next_attempt_at timestamptz NOT NULL,
    leased_until timestamptz,
    finished_at timestamptz,
    CONSTRAINT deliveries_pkey PRIMARY KEY (delivery_id),
    CONSTRAINT deliveries_event_id_endpoint_key UNIQUE (event_id, endpoint),
    CONSTRAINT deliveries_state_check CHECK (state IN ('waiting', 'delivered', 'given_up')),
    CONSTRAINT deliveries_event_id_fkey FOREIGN KEY(event_id) REFERENCES monitor_data.events (event_id)
);

CREATE INDEX deliveries_due_idx ON monitor_data.deliveries (endpoint, next_attempt_at) WHERE state = 'waiting';

CREATE INDEX deliveries_order_idx ON monitor_data.deliveries (alert_id, endpoint, sequence) WHERE state = 'waiting';

CREATE TABLE monitor_data.delivery_attempts (
    delivery_id BIGINT NOT NULL,
    number INTEGER NOT NULL,
    attempted_at timestamptz NOT NULL,
    outcome TEXT NOT NULL,
    status INTEGER,
    latency_seconds DOUBLE PRECISION NOT NULL,
    error TEXT NOT NULL,
    retry_after_seconds DOUBLE PRECISION,
    CONSTRAINT delivery_attempts_pkey PRIMARY KEY (delivery_id, number),
    CONSTRAINT delivery_attempts_delivery_id_fkey FOREIGN KEY(delivery_id) REFERENCES monitor_data.deliveries (delivery_id) ON DELETE CASCADE
);

CREATE TABLE monitor_data.endpoints (
    name TEXT NOT NULL,
    disabled_at timestamptz,
    reason TEXT DEFAULT '' NOT NULL,
    CONSTRAINT endpoints_pkey PRIMARY KEY (name)
);
"""

NAMES = (
    "packs",
    "pack_features",
    "lineages",
    "scores",
    "dead_letters",
    "buckets",
    "buckets_hourly",
    "touched_hours",
    "retention",
    "ingest_counts",
    "offsets",
    "workers",
    "canary_runs",
    "baselines",
    "baseline_windows",
    "drifts",
    "detectors",
    "alerts",
    "silences",
    "events",
    "deliveries",
    "delivery_attempts",
    "endpoints",
)


def upgrade() -> None:
    op.execute(TABLES)
    for table in PARTITIONED:
        op.execute(
            f"CREATE TABLE monitor_partitions.{table}_default "
            f"PARTITION OF monitor_data.{table} DEFAULT"
        )


def downgrade() -> None:
    for table in reversed(NAMES):
        op.execute(f"DROP TABLE monitor_data.{table}")
