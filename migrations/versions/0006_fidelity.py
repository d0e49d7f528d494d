"""Token counts of the replay against the server's own, and fields of records that were left out, per prompt.

Revision ID: 0006
Revises: 0005
"""

from alembic import context, op

revision = "0006"
down_revision = "0005"

# Null in all that was stored before, and in what workers of the release before go on to store.
COLUMNS = {
    "served_prompt_tokens": "BIGINT",
    "served_answer_tokens": "BIGINT",
    "prompt_difference": "BIGINT",
    "answer_difference": "BIGINT",
    "fidelity": "TEXT",
    "left_out": "TEXT[]",
}
OF_PROMPT = """
            score.prompt_id,
            score.model,
            score.model_revision,
            score.topic,
            score.partition,
            score.record_offset,
            score.record_index,
            lineage.pack_id,
            pack.name AS pack,
            score.lineage_id
        FROM monitor_data.scores AS score
        JOIN monitor_data.lineages AS lineage USING (lineage_id)
        JOIN monitor_data.packs AS pack USING (pack_id)
"""
VIEWS = {
    "replay_fidelity": f"""
        SELECT
            score.recorded_at,
            score.fidelity,
            score.served_prompt_tokens,
            score.prompt_difference,
            score.served_answer_tokens,
            score.answer_difference,
            {OF_PROMPT}
        WHERE score.fidelity IS NOT NULL
    """,
    "left_out": f"""
        SELECT
            score.recorded_at,
            unnest(score.left_out) AS field,
            {OF_PROMPT}
        WHERE score.left_out IS NOT NULL
    """,
}


def upgrade() -> None:
    for name, kind in COLUMNS.items():
        op.execute(f"ALTER TABLE monitor_data.scores ADD COLUMN {name} {kind}")
    for name, query in VIEWS.items():
        op.execute(f"CREATE VIEW monitor.{name} AS {query}")
    if role := context.config.attributes.get("reader_role"):
        op.execute(context.script.get_revision("0002").module.reader(role))


def downgrade() -> None:
    for name in reversed(VIEWS):
        op.execute(f"DROP VIEW monitor.{name}")
    for name in reversed(COLUMNS):
        op.execute(f"ALTER TABLE monitor_data.scores DROP COLUMN {name}")
