"""Scores minus what the prompt alone would predict, and tails that the baseline itself sets.

An adjusted score depends on the baseline that fitted it, so it has a lineage of its own: a number below 0
in ``adjusted_lineages``. Its buckets stand beside the raw ones and are rolled up and dropped like them; the
releases before this one know only the lineages of ``lineages`` and do not see them.

Revision ID: 0008
Revises: 0007
"""

from types import ModuleType

from alembic import context, op

revision = "0008"
down_revision = "0007"

# Null in all that was stored before, and in what workers of the releases before go on to store.
COLUMNS = {
    "scores": {"covariates": "REAL[]", "adjusted": "REAL[]", "adjusted_id": "INTEGER"},
    "baseline_windows": {"tails": "JSONB"},
    "drifts": {
        "tails": "JSONB",
        "adjusted": "BOOLEAN NOT NULL DEFAULT false",
        "raw_mean": "DOUBLE PRECISION",
        "raw_baseline_mean": "DOUBLE PRECISION",
        "raw_shift": "DOUBLE PRECISION",
        "raw_shift_low": "DOUBLE PRECISION",
        "raw_shift_high": "DOUBLE PRECISION",
    },
}

TABLES = (
    """
    CREATE TABLE monitor_data.adjusted_lineages (
        adjusted_id INTEGER GENERATED ALWAYS AS IDENTITY (START WITH -1 INCREMENT BY -1),
        lineage_id INTEGER NOT NULL,
        baseline_id TEXT NOT NULL,
        CONSTRAINT adjusted_lineages_pkey PRIMARY KEY (adjusted_id),
        CONSTRAINT adjusted_lineages_lineage_id_baseline_id_key UNIQUE (lineage_id, baseline_id),
        CONSTRAINT adjusted_lineages_lineage_id_fkey
            FOREIGN KEY (lineage_id) REFERENCES monitor_data.lineages (lineage_id),
        CONSTRAINT adjusted_lineages_baseline_id_fkey
            FOREIGN KEY (baseline_id) REFERENCES monitor_data.baselines (baseline_id)
    )
    """,
    """
    CREATE TABLE monitor_data.adjustments (
        baseline_id TEXT NOT NULL,
        feature SMALLINT NOT NULL,
        intercept DOUBLE PRECISION NOT NULL,
        weights DOUBLE PRECISION[] NOT NULL,
        penalty DOUBLE PRECISION NOT NULL,
        explained DOUBLE PRECISION NOT NULL,
        n BIGINT NOT NULL,
        CONSTRAINT adjustments_pkey PRIMARY KEY (baseline_id, feature),
        CONSTRAINT adjustments_baseline_id_fkey
            FOREIGN KEY (baseline_id) REFERENCES monitor_data.baselines (baseline_id)
    )
    """,
    """
    CREATE TABLE monitor_data.adjusted_baseline_windows (
        baseline_id TEXT NOT NULL,
        feature SMALLINT NOT NULL,
        segment TEXT NOT NULL,
        n BIGINT NOT NULL,
        tail_count BIGINT NOT NULL,
        tail_n BIGINT,
        total DOUBLE PRECISION NOT NULL,
        total_squares DOUBLE PRECISION NOT NULL,
        histogram BIGINT[] NOT NULL,
        design_effect DOUBLE PRECISION NOT NULL,
        tail_design_effect DOUBLE PRECISION NOT NULL,
        tails JSONB,
        CONSTRAINT adjusted_baseline_windows_pkey PRIMARY KEY (baseline_id, feature, segment),
        CONSTRAINT adjusted_baseline_windows_baseline_id_fkey
            FOREIGN KEY (baseline_id) REFERENCES monitor_data.baselines (baseline_id)
    )
    """,
)
MADE = ("adjusted_baseline_windows", "adjustments", "adjusted_lineages")

# Where revision 0003 ends a row of the scores' view, and names the lineage of a window.
SCORES_END = """feature.sign * score.scores[feature.ordinal + 1] AS toward
        FROM monitor_data.scores AS score"""
ADJUSTED_SCORES = """feature.sign * score.scores[feature.ordinal + 1] AS toward,
            score.adjusted[feature.ordinal + 1] AS adjusted,
            adjuster.baseline_id AS adjusted_by
        FROM monitor_data.scores AS score
        LEFT JOIN (SELECT adjusted_id, baseline_id FROM monitor_data.adjusted_lineages) AS adjuster
            USING (adjusted_id)"""
WINDOW_LINEAGE = "JOIN monitor_data.lineages AS lineage USING (lineage_id)"
ADJUSTED_LINEAGE = """JOIN monitor_data.adjusted_lineages AS adjusted
            ON adjusted.adjusted_id = part.lineage_id
        JOIN monitor_data.lineages AS lineage ON lineage.lineage_id = adjusted.lineage_id"""
WINDOW_END = """part.lineage_id
        FROM ("""
ADJUSTED_END = """adjusted.lineage_id,
            adjusted.baseline_id
        FROM ("""
HISTORY_END = "drift.pack_id\n"
HISTORY_MORE = """drift.pack_id,
            drift.tails,
            drift.adjusted,
            drift.raw_mean,
            drift.raw_baseline_mean,
            drift.raw_shift,
            drift.raw_shift_low,
            drift.raw_shift_high
"""
VIEWS = {
    "adjustments": """
        SELECT
            adjustment.baseline_id,
            feature.name AS feature,
            adjustment.explained,
            adjustment.penalty,
            adjustment.n,
            feature.pack_id
        FROM monitor_data.adjustments AS adjustment
        JOIN monitor_data.baselines AS baseline USING (baseline_id)
        JOIN monitor_data.pack_features AS feature
            ON feature.pack_id = baseline.pack_id AND feature.ordinal = adjustment.feature
    """,
    "baseline_tails": """
        SELECT
            stream.baseline_id,
            feature.name AS feature,
            stream.segment,
            stream.adjusted,
            level.share,
            level.threshold,
            level.count AS tail_count,
            level.count::float8 / stream.n AS tail_rate,
            stream.n,
            level.design_effect,
            feature.pack_id
        FROM (
            SELECT baseline_id, feature, segment, n, tails, false AS adjusted
            FROM monitor_data.baseline_windows
            UNION ALL
            SELECT baseline_id, feature, segment, n, tails, true
            FROM monitor_data.adjusted_baseline_windows
        ) AS stream
        JOIN monitor_data.baselines AS baseline USING (baseline_id)
        JOIN monitor_data.pack_features AS feature
            ON feature.pack_id = baseline.pack_id AND feature.ordinal = stream.feature
        CROSS JOIN LATERAL jsonb_to_recordset(stream.tails)
            AS level (share float8, threshold float8, count bigint, design_effect float8)
    """,
}


def upgrade() -> None:
    for table, columns in COLUMNS.items():
        for name, kind in columns.items():
            op.execute(f"ALTER TABLE monitor_data.{table} ADD COLUMN {name} {kind}")
    for table in TABLES:
        op.execute(table)
    first, third = _module("0002"), _module("0003")
    scores = third.VIEWS["feature_scores"].replace(SCORES_END, ADJUSTED_SCORES)
    windows = third.VIEWS["feature_windows"].replace(WINDOW_LINEAGE, ADJUSTED_LINEAGE)
    history = first.VIEWS["drift_history"].replace(HISTORY_END, HISTORY_MORE)
    op.execute(f"CREATE OR REPLACE VIEW monitor.feature_scores AS {scores}")
    op.execute(f"CREATE OR REPLACE VIEW monitor.drift_history AS {history}")
    body = windows.replace(WINDOW_END, ADJUSTED_END).format(
        histogram=f"ARRAY[{first.HISTOGRAM}]::int[]", kept_from=first.KEPT_FROM
    )
    op.execute(f"CREATE VIEW monitor.adjusted_windows AS {body}")
    for name, query in VIEWS.items():
        op.execute(f"CREATE VIEW monitor.{name} AS {query}")
    _grant(first)


def downgrade() -> None:
    first, third = _module("0002"), _module("0003")
    for name in (*reversed(VIEWS), "adjusted_windows", "drift_history", "feature_scores"):
        op.execute(f"DROP VIEW monitor.{name}")  # a column cannot be taken from a view otherwise
    op.execute(f"CREATE VIEW monitor.feature_scores AS {third.VIEWS['feature_scores']}")
    op.execute(f"CREATE VIEW monitor.drift_history AS {first.VIEWS['drift_history']}")
    # Their numbers are given out anew by the next upgrade.
    for table in ("buckets", "buckets_hourly", "touched_hours"):
        op.execute(f"DELETE FROM monitor_data.{table} WHERE lineage_id < 0")
    for table in MADE:
        op.execute(f"DROP TABLE monitor_data.{table}")
    for table, columns in COLUMNS.items():
        for name in columns:
            op.execute(f"ALTER TABLE monitor_data.{table} DROP COLUMN {name}")
    _grant(first)


def _module(of: str) -> ModuleType:
    """A revision that made or last changed a view, or knows the role that reads them."""
    return context.script.get_revision(of).module


def _grant(first: ModuleType) -> None:
    if role := context.config.attributes.get("reader_role"):
        op.execute(first.reader(role))
