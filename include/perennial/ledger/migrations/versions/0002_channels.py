"""Record the delivery of an alert per channel, and which alerts are open.

Delivered alerts stay delivered. Alerts that wait are routed again, to the channels that have not received them.
"""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_moment = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "perennial_deliveries",
        sa.Column("alert_id", sa.BigInteger(), nullable=False, autoincrement=False),
        sa.Column("channel", sa.Text(), nullable=False),
        sa.Column("attempts", sa.BigInteger(), nullable=False, autoincrement=False),
        sa.Column("delivered_at", _moment),
        sa.Column("given_up_at", _moment),
        sa.Column("receipt", sa.Text()),
        sa.Column("error", sa.Text()),
        sa.PrimaryKeyConstraint("alert_id", "channel"),
        sqlite_autoincrement=True,
    )
    op.create_index("perennial_deliveries_by_channel", "perennial_deliveries", ["channel", "delivered_at"])
    op.create_table(
        "perennial_channels",
        sa.Column("channel", sa.Text(), nullable=False),
        sa.Column("next_attempt_at", _moment, nullable=False),
        sa.Column("held_by", sa.Text()),
        sa.Column("held_until", _moment),
        sa.Column("failures", sa.BigInteger(), nullable=False, autoincrement=False),
        sa.Column("failing_since", _moment),
        sa.Column("refused_at", _moment),
        sa.Column("error", sa.Text()),
        sa.PrimaryKeyConstraint("channel"),
        sqlite_autoincrement=True,
    )
    _carry_over()
    with op.batch_alter_table("perennial_outbox") as outbox:
        outbox.add_column(sa.Column("subject", sa.Text()))
        outbox.add_column(sa.Column("resolved_by", sa.BigInteger(), autoincrement=False))
        outbox.add_column(sa.Column("routed_at", _moment))
    # Alerts that wait have no routing yet: the next sender routes them.
    op.execute("UPDATE perennial_outbox SET routed_at = coalesce(delivered_at, created_at) WHERE next_attempt_at IS NULL")
    with op.batch_alter_table("perennial_outbox") as outbox:
        for name in ("delivered", "attempts", "next_attempt_at", "delivered_at", "error"):
            outbox.drop_column(name)
    op.create_index("perennial_outbox_by_subject", "perennial_outbox", ["subject", "resolved_by"])
    op.create_index("perennial_outbox_by_recovery", "perennial_outbox", ["resolved_by"])
    op.create_index("perennial_outbox_by_routing", "perennial_outbox", ["routed_at"])


def _carry_over() -> None:
    outbox = sa.table(
        "perennial_outbox",
        *(sa.column(name) for name in ("id", "delivered", "attempts", "error")),
        *(sa.column(name, _moment) for name in ("created_at", "delivered_at")),
    )
    deliveries = sa.table(
        "perennial_deliveries",
        *(sa.column(name) for name in ("alert_id", "channel", "attempts", "error")),
        sa.column("delivered_at", _moment),
    )
    connection = op.get_bind()
    for row in connection.execute(sa.select(outbox)).all():
        for channel in json.loads(row.delivered):
            told = row.delivered_at or row.created_at
            connection.execute(
                sa.insert(deliveries).values(
                    alert_id=row.id, channel=channel, attempts=row.attempts, delivered_at=told, error=row.error
                )
            )
