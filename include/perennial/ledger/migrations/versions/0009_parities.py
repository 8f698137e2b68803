"""Add a table for the parity of what was served online with what the published tables give.

Existing tables do not change.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_moment = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "perennial_parities",
        sa.Column("model", sa.Text(), primary_key=True),
        sa.Column("definition", sa.Text(), primary_key=True),
        sa.Column("start", _moment, primary_key=True),
        sa.Column("end", _moment, primary_key=True),
        sa.Column("measured", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("recorded_at", _moment, nullable=False),
        sqlite_autoincrement=True,
    )
