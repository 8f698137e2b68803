"""Keep with each request for a training what was expected of it, and what came of it.

Rows of earlier revisions are read without both.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("perennial_retrainings") as retrainings:
        retrainings.add_column(sa.Column("expectation", sa.Text()))
        retrainings.add_column(sa.Column("audit", sa.Text()))
    op.execute("UPDATE perennial_retrainings SET expectation = '{}', audit = '{}'")
    with op.batch_alter_table("perennial_retrainings") as retrainings:
        retrainings.alter_column("expectation", existing_type=sa.Text(), nullable=False)
        retrainings.alter_column("audit", existing_type=sa.Text(), nullable=False)
