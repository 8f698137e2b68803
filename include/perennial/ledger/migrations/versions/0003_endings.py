"""Add tables for erasures of entities, removals by retention, and retirements of models.

Existing tables do not change.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_moment = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "perennial_erasures",
        _id(),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("columns", sa.Text(), nullable=False),
        sa.Column("salt", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False, autoincrement=False),
        sa.Column("asked_at", _moment, nullable=False),
        sa.Column("completed_at", _moment),
        sa.Column("rows", sa.Text(), nullable=False),
        sa.Column("versions", sa.Text(), nullable=False),
        sa.Column("details", sa.Text(), nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("perennial_erasures_by_fence", "perennial_erasures", ["model", "fence"])
    op.create_table(
        "perennial_removals",
        _id(),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("dataset", sa.Text(), nullable=False),
        sa.Column("before", _moment, nullable=False),
        sa.Column("publication_id", sa.BigInteger(), nullable=False, autoincrement=False),
        sa.Column("rows", sa.Text(), nullable=False),
        sa.Column("removed_at", _moment, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("perennial_removals_by_dataset", "perennial_removals", ["model", "dataset"])
    op.create_table(
        "perennial_retirements",
        _id(),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("promotion_id", sa.BigInteger(), nullable=False, autoincrement=False),
        sa.Column("champion", sa.BigInteger(), autoincrement=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("files", sa.Text(), nullable=False),
        sa.Column("retired_at", _moment, nullable=False),
        sa.Column("dropped_at", _moment),
        sqlite_autoincrement=True,
    )
    op.create_index("perennial_retirements_by_model", "perennial_retirements", ["model"])


def _id() -> sa.Column[int]:
    # SQLite generates numbers only in a column of type INTEGER.
    return sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True)
