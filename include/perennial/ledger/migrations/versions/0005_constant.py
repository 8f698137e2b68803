"""Keep with each performance what the same answer for every row would have reached.

Rows of earlier revisions are read without it.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("perennial_performances") as performances:
        performances.add_column(sa.Column("constant", sa.Text()))
    op.execute("UPDATE perennial_performances SET constant = '{}'")
    with op.batch_alter_table("perennial_performances") as performances:
        performances.alter_column("constant", existing_type=sa.Text(), nullable=False)
