"""Add a table for what is held back: weeks of data, and refreshes.

Existing tables do not change.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_moment = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "perennial_holds",
        # SQLite generates numbers only in a column of type INTEGER.
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("what", sa.Text(), nullable=False),
        sa.Column("start", _moment, nullable=False),
        sa.Column("end", _moment, nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False, autoincrement=False),
        sa.Column("reasons", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("held_at", _moment, nullable=False),
        sa.Column("released_at", _moment),
        sa.Column("released_by", sa.Text()),
        sa.Column("release_reason", sa.Text()),
        sqlite_autoincrement=True,
    )
    op.create_index("perennial_holds_by_model", "perennial_holds", ["model", "what"])
