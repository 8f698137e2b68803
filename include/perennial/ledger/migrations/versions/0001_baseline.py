"""Make the tables of the releases that had no revisions.

On a ledger of such a release, existing tables stay as they are, and only missing tables are made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from alembic import op

from perennial.core.errors import SchemaMismatch

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    _make("orders", _id(), _text("model"), _text("dataset"), _time("start"), _time("end"), _text("run_id"),
          sa.UniqueConstraint("model", "dataset", "start", "end", "run_id"))  # fmt: skip
    _make("claims", _text("model"), _text("dataset"), _time("start"), _time("end"), _text("run_id"), _text("token"),
          _time("claimed_at"), _key("model", "dataset", "start", "end", "run_id"))  # fmt: skip
    _make("publications", _id(), _text("model"), _text("dataset"), _time("start"), _time("end"), _number("order"),
          _text("run_id"), _time("published_at"), _text("snapshots"), _text("hashes"), _text("rows"),
          _text("inputs"))  # fmt: skip
    op.create_index("perennial_publications_by_time", "perennial_publications", ["model", "dataset", "end"], if_not_exists=True)
    _make("revisions", _text("model"), _text("dataset"), _number("revision"), _number("publication_id"), _text("snapshots"),
          _time("since"), _key("model", "dataset", "revision"))  # fmt: skip
    _make("versions", _text("model"), _number("version"), _text("mlflow_run_id"), _text("spec_digest"),
          _text("features_digest"), _text("manifest"), _text("training"), _text("evaluation"), _text("decision"),
          _text("code"), _time("created_at"),
          _key("model", "version"))  # fmt: skip
    _make("promotions", _id(), _text("model"), _number("version"), _number("previous", null=True), _text("action"),
          _text("reason"), _text("actor"), _text("run_id", null=True), _text("evidence"), _time("intended_at"),
          _time("completed_at", null=True), _time("withdrawn_at", null=True),
          sa.UniqueConstraint("model", "run_id", "version"))  # fmt: skip
    _make("alias_moves", _id(), _text("model"), _number("version"), _number("promotion_id"), _time("began_at"))
    _make("approvals", _text("model"), _number("version"), _time("answered_at"), _text("answer"), _text("approver", null=True),
          _text("words"), _text("run_id"), _key("model", "version", "answered_at"))  # fmt: skip
    _make("verdicts", _text("model"), _time("start"), _time("end"), _number("version", null=True), _text("verdict"),
          _text("reasons"), _text("details"), _text("report", null=True), _text("run_id"), _time("recorded_at"),
          _key("model", "start", "end"))  # fmt: skip
    _make("performances", _text("model"), _time("start"), _time("end"), _number("version"), _text("metrics"), _number("rows"),
          sa.Column("coverage", sa.Double, nullable=False), _time("as_of"), _text("run_id"), _time("recorded_at"),
          _key("model", "start", "end", "version"))  # fmt: skip
    _make("shadow_comparisons", _text("model"), _number("promotion_id"), _number("version"), _number("windows"),
          _number("champion"), _time("start"), _time("end"), _text("outcome"), _text("reason"), _number("rows"),
          _text("metrics"), _text("comparison"), _time("as_of"), _text("run_id"),
          _key("model", "promotion_id", "version", "windows"))  # fmt: skip
    _make("retrainings", _text("model"), _time("window_end"), sa.Column("asked", sa.Boolean, nullable=False), _text("cause"),
          _text("reason"), _text("run_id"), _time("recorded_at"), _key("model", "window_end"))  # fmt: skip
    _make("refusals", _text("model"), _time("start"), _time("end"), _text("run_id"), _text("reasons"), _text("rows"),
          _time("recorded_at"), _key("model", "start", "end", "run_id"))  # fmt: skip
    _make("outbox", _id(), _text("key"), _text("alert"), _time("created_at"), _text("delivered"), _number("attempts"),
          _time("next_attempt_at", null=True), _time("delivered_at", null=True), _text("error", null=True),
          sa.UniqueConstraint("key"))  # fmt: skip


def _make(name: str, *parts: sa.Column[Any] | sa.Constraint) -> None:
    table = f"perennial_{name}"
    # Without AUTOINCREMENT, SQLite gives the number of a deleted last row to the next row.
    op.create_table(table, *parts, sqlite_autoincrement=True, if_not_exists=True)
    there = {column["name"] for column in sa.inspect(op.get_bind()).get_columns(table)}
    if wrong := there ^ {part.name for part in parts if isinstance(part, sa.Column)}:
        raise SchemaMismatch(
            f"the table {table} is not one that a release made; it differs in {', '.join(sorted(wrong))}. Restore a backup, "
            "or rename the table"
        )


def _column(type_: Callable[[], sa.types.TypeEngine[Any]]) -> Callable[..., sa.Column[Any]]:
    return lambda name, null=False: sa.Column(name, type_(), nullable=null, autoincrement=False)


_text = _column(sa.Text)
_number = _column(sa.BigInteger)
_time = _column(lambda: sa.DateTime(timezone=True))


def _id() -> sa.Column[Any]:
    # SQLite generates numbers only in a column of type INTEGER.
    return sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True)


def _key(*columns: str) -> sa.PrimaryKeyConstraint:
    return sa.PrimaryKeyConstraint(*columns)
