"""Canaries to the served model: the chosen questions, the answers' figures, the rounds and whose turn it is.

Revision ID: 0014
Revises: 0013
"""

from types import ModuleType

from alembic import context, op

revision = "0014"
down_revision = "0013"

TABLES = {
    "server_canary_questions": """
        CREATE TABLE monitor_data.server_canary_questions (
            set_id TEXT NOT NULL,
            ordinal SMALLINT NOT NULL,
            pack_id TEXT NOT NULL,
            question TEXT NOT NULL,
            border BOOLEAN NOT NULL,
            first TEXT NOT NULL,
            second TEXT NOT NULL,
            margin DOUBLE PRECISION NOT NULL,
            tolerance DOUBLE PRECISION NOT NULL,
            answer TEXT NOT NULL,
            scores REAL[],
            chosen_at timestamptz NOT NULL DEFAULT now(),
            CONSTRAINT server_canary_questions_pkey PRIMARY KEY (set_id, ordinal),
            CONSTRAINT server_canary_questions_pack_id_fkey
                FOREIGN KEY (pack_id) REFERENCES monitor_data.packs (pack_id)
        )
    """,
    "server_canary_answers": """
        CREATE TABLE monitor_data.server_canary_answers (
            set_id TEXT NOT NULL,
            question TEXT NOT NULL,
            asked_at timestamptz NOT NULL,
            outcome TEXT NOT NULL,
            calls SMALLINT NOT NULL,
            seconds DOUBLE PRECISION NOT NULL,
            detail TEXT NOT NULL,
            tokens INTEGER NOT NULL,
            first TEXT,
            other_first BOOLEAN,
            with_log_probs BOOLEAN NOT NULL,
            deviation DOUBLE PRECISION,
            nats DOUBLE PRECISION,
            scores REAL[],
            CONSTRAINT server_canary_answers_pkey PRIMARY KEY (set_id, question, asked_at)
        )
    """,
    "server_canary_rounds": """
        CREATE TABLE monitor_data.server_canary_rounds (
            pack_id TEXT NOT NULL,
            set_id TEXT NOT NULL,
            served TEXT NOT NULL,
            asked_at timestamptz NOT NULL,
            asked INTEGER NOT NULL,
            compared INTEGER NOT NULL,
            compared_beyond INTEGER NOT NULL,
            questions INTEGER NOT NULL,
            beyond INTEGER NOT NULL,
            other_firsts INTEGER NOT NULL,
            with_log_probs INTEGER NOT NULL,
            largest DOUBLE PRECISION,
            evidence DOUBLE PRECISION,
            evidence_limit DOUBLE PRECISION,
            moved JSONB NOT NULL,
            problem TEXT NOT NULL,
            CONSTRAINT server_canary_rounds_pkey PRIMARY KEY (pack_id, asked_at),
            CONSTRAINT server_canary_rounds_pack_id_fkey
                FOREIGN KEY (pack_id) REFERENCES monitor_data.packs (pack_id)
        )
    """,
    "server_canary_turns": """
        CREATE TABLE monitor_data.server_canary_turns (
            pack_id TEXT NOT NULL,
            due_at timestamptz NOT NULL,
            failures INTEGER NOT NULL,
            claimed_by TEXT,
            claimed_until timestamptz,
            CONSTRAINT server_canary_turns_pkey PRIMARY KEY (pack_id),
            CONSTRAINT server_canary_turns_pack_id_fkey
                FOREIGN KEY (pack_id) REFERENCES monitor_data.packs (pack_id)
        )
    """,
}
INDEX = """
    CREATE INDEX server_canary_answers_asked_at_idx ON monitor_data.server_canary_answers (asked_at)
"""

VIEWS = {
    "server_canaries": """
        SELECT
            round.asked_at,
            round.pack_id,
            round.served,
            round.asked,
            round.compared,
            round.compared_beyond,
            round.questions,
            round.beyond,
            round.other_firsts,
            round.with_log_probs,
            round.largest,
            round.evidence,
            round.evidence_limit,
            coalesce(round.evidence >= round.evidence_limit, false) AS crossed,
            round.moved,
            round.problem
        FROM monitor_data.server_canary_rounds AS round
    """,
    # Scores are those of the pack's features, in their order.
    "server_canary_answers": """
        SELECT
            answer.asked_at,
            question.pack_id,
            answer.question,
            question.border,
            answer.outcome,
            answer.calls,
            answer.seconds,
            answer.detail,
            answer.tokens,
            question.first AS copy_first,
            answer.first,
            answer.other_first,
            question.margin,
            question.tolerance,
            answer.with_log_probs,
            answer.deviation,
            answer.nats,
            question.scores AS copy_scores,
            answer.scores
        FROM monitor_data.server_canary_answers AS answer
        JOIN monitor_data.server_canary_questions AS question USING (set_id, question)
    """,
}


def upgrade() -> None:
    for table in TABLES.values():
        op.execute(table)
    op.execute(INDEX)
    for name, query in VIEWS.items():
        op.execute(f"CREATE VIEW monitor.{name} AS {query}")
    _grant()


def downgrade() -> None:
    for name in reversed(VIEWS):
        op.execute(f"DROP VIEW monitor.{name}")
    for table in reversed(TABLES):
        op.execute(f"DROP TABLE monitor_data.{table}")


def _module(of: str) -> ModuleType:
    """The revision that knows the role that reads views."""
    return context.script.get_revision(of).module


def _grant() -> None:
    if role := context.config.attributes.get("reader_role"):
        op.execute(_module("0002").reader(role))
