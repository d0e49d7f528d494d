"""The read-only role: whether it is there and may read the views."""

from __future__ import annotations

from sqlalchemy import Connection, text

from monitor.errors import ConfigurationError


def require_reader(c: Connection, role: str) -> None:
    """`ConfigurationError`, with the SQL that mends it, unless ``role`` may read every view.

    A migration cannot make the role when its user lacks CREATEROLE, and does not fail for it.
    """
    quoted = '"' + role.replace('"', '""') + '"'
    grants = (
        f"GRANT USAGE ON SCHEMA monitor TO {quoted}; "
        f"GRANT SELECT ON ALL TABLES IN SCHEMA monitor TO {quoted};"
    )
    if not c.scalar(text("SELECT 1 FROM pg_roles WHERE rolname = :role"), {"role": role}):
        raise ConfigurationError(
            f"the role {role} does not exist: nobody but the owner can ask the views",
            hint=f"As a user who may: CREATE ROLE {quoted} NOLOGIN; {grants} "
            "Or set postgres.reader_role to null.",
        )
    blind = c.scalars(
        text("""
            SELECT view.relname
            FROM pg_class AS view
            JOIN pg_namespace AS schema ON schema.oid = view.relnamespace
            WHERE schema.nspname = 'monitor' AND view.relkind = 'v'
                AND NOT (
                    has_schema_privilege(:role, schema.oid, 'USAGE')
                    AND has_table_privilege(:role, view.oid, 'SELECT')
                )
            ORDER BY view.relname
        """),
        {"role": role},
    ).all()
    if blind:
        raise ConfigurationError(
            f"the role {role} may not read {', '.join(blind)}", hint=f"As their owner: {grants}"
        )
