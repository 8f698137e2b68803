"""The script that Alembic runs to apply revisions.

It uses the connection that :func:`perennial.ledger.migrations.upgrade` passes. If a developer runs ``alembic``, it opens a
connection to this deployment's ledger.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context

# These define the tables that a new revision is compared with.
import perennial.alerts.outbox
import perennial.ledger.tables  # noqa: F401
from perennial.core.columns import metadata
from perennial.core.database import Database
from perennial.core.settings import settings
from perennial.ledger.migrations import VERSION_TABLE


def _is_ours(name: str | None, kind: str, _: object) -> bool:
    # The database may also hold tables of MLflow and Airflow.
    return kind != "table" or name in metadata.tables


def _run(connection: sa.Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=metadata,
        version_table=VERSION_TABLE,
        include_name=_is_ours,
        # SQLite alters a table by copying it.
        render_as_batch=True,
    )
    with context.begin_transaction():
        context.run_migrations()


if "connection" in context.config.attributes:
    _run(context.config.attributes["connection"])
else:
    with Database(settings().database_url).writing("migrate") as own:
        _run(own)
