"""How Alembic reaches the database: on the connection that `monitor.store.database.migrate` lends.

From a checkout, ``alembic revision -m "…"`` and ``alembic history`` work too; changing a database goes
through ``monitor migrate``, which holds the migration lock and the timeouts.
"""

from alembic import context
from sqlalchemy import Connection

from monitor.errors import ConfigurationError
from monitor.store.tables import DATA_SCHEMA, metadata


def is_ours(name: str | None, kind: str, _parents: object) -> bool:
    """Partitions and views live in schemas of their own and are no part of the models."""
    return kind != "schema" or name == DATA_SCHEMA


def run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=metadata,
        version_table_schema=DATA_SCHEMA,
        include_schemas=True,
        include_name=is_ours,
        compare_type=True,
        compare_server_default=True,
        transaction_per_migration=False,
    )
    with context.begin_transaction():
        context.run_migrations()


lent = context.config.attributes.get("connection")
if lent is None:
    raise ConfigurationError(
        "migrations run on a connection of the monitor's", hint="Use `monitor migrate`."
    )
run(lent)
