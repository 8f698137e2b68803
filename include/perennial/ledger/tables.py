"""The ledger's tables.

A column of evidence holds what :mod:`perennial.evidence` writes. The outbox's tables are in :mod:`perennial.alerts.outbox`;
all of them belong to :data:`perennial.core.columns.metadata`.
"""

from __future__ import annotations

import sqlalchemy as sa

from perennial.core.columns import json_value as _json
from perennial.core.columns import number as _number
from perennial.core.columns import number_itself as _id
from perennial.core.columns import table as _table
from perennial.core.columns import text as _text
from perennial.core.columns import time as _time

orders = _table(
    "orders",
    _id(),
    _text("model"), _text("dataset"), _time("start"), _time("end"), _text("run_id"),
    sa.UniqueConstraint("model", "dataset", "start", "end", "run_id"),
)  # fmt: skip

claims = _table(
    "claims",
    _text("model", key=True), _text("dataset", key=True), _time("start", key=True), _time("end", key=True),
    _text("run_id", key=True),
    _text("token"), _time("claimed_at"),
)  # fmt: skip

publications = _table(
    "publications",
    _id(),
    _text("model"), _text("dataset"), _time("start"), _time("end"),
    _number("order"), _text("run_id"), _time("published_at"),
    _json("snapshots"), _json("hashes"), _json("rows"), _json("inputs"),
    sa.Index("perennial_publications_by_time", "model", "dataset", "end"),
)  # fmt: skip

# The snapshots that readers read: one row per publication or maintenance. The highest revision is in force.
revisions = _table(
    "revisions",
    _text("model", key=True), _text("dataset", key=True), _number("revision", key=True),
    _number("publication_id"), _json("snapshots"), _time("since"),
)  # fmt: skip

versions = _table(
    "versions",
    _text("model", key=True), _number("version", key=True),
    _text("mlflow_run_id"), _text("spec_digest"), _text("features_digest"),
    _json("manifest"), _json("training"), _json("evaluation"), _json("decision"), _json("code"),
    _time("created_at"),
)  # fmt: skip

promotions = _table(
    "promotions",
    _id(),
    _text("model"), _number("version"), _number("previous", null=True),
    _text("action"), _text("reason"), _text("actor"), _text("run_id", null=True), _json("evidence"),
    _time("intended_at"), _time("completed_at", null=True), _time("withdrawn_at", null=True),
    sa.UniqueConstraint("model", "run_id", "version"),
)  # fmt: skip

# Moves of the alias that a process has begun and not ended, because it is still working or has died. MLflow does not record
# who moved an alias.
alias_moves = _table(
    "alias_moves",
    _id(),
    _text("model"), _number("version"), _number("promotion_id"), _time("began_at"),
)  # fmt: skip

approvals = _table(
    "approvals",
    _text("model", key=True), _number("version", key=True), _time("answered_at", key=True),
    _text("answer"), _text("approver", null=True), _text("words"), _text("run_id"),
)  # fmt: skip

verdicts = _table(
    "verdicts",
    _text("model", key=True), _time("start", key=True), _time("end", key=True),
    _number("version", null=True), _text("verdict"), _json("reasons"), _json("details"), _text("report", null=True),
    _text("run_id"), _time("recorded_at"),
)  # fmt: skip

performances = _table(
    "performances",
    _text("model", key=True), _time("start", key=True), _time("end", key=True), _number("version", key=True),
    _json("metrics"), _number("rows"), sa.Column("coverage", sa.Double, nullable=False),
    _time("as_of"), _text("run_id"), _time("recorded_at"), _json("constant"),
)  # fmt: skip

shadow_comparisons = _table(
    "shadow_comparisons",
    _text("model", key=True), _number("promotion_id", key=True), _number("version", key=True), _number("windows", key=True),
    _number("champion"), _time("start"), _time("end"), _text("outcome"), _text("reason"), _number("rows"),
    _json("metrics"), _json("comparison"), _time("as_of"), _text("run_id"),
)  # fmt: skip

retrainings = _table(
    "retrainings",
    _text("model", key=True), _time("window_end", key=True),
    sa.Column("asked", sa.Boolean, nullable=False), _text("cause"), _text("reason"), _text("run_id"), _time("recorded_at"),
    _json("expectation"), _json("audit"),
)  # fmt: skip

# Whether what was served online equals what the published tables give, by definition of features and day.
parities = _table(
    "parities",
    _text("model", key=True), _text("definition", key=True), _time("start", key=True), _time("end", key=True),
    _json("measured"), _text("run_id"), _time("recorded_at"),
)  # fmt: skip

refusals = _table(
    "refusals",
    _text("model", key=True), _time("start", key=True), _time("end", key=True), _text("run_id", key=True),
    _json("reasons"), _json("rows"), _time("recorded_at"),
)  # fmt: skip

# Erasures of entities, without their data: a salted hash tells whether a given key was erased.
erasures = _table(
    "erasures",
    _id(),
    _text("model"), _json("columns"), _text("salt"), _text("digest"), _text("actor"), _text("reason"), _number("fence"),
    _time("asked_at"), _time("completed_at", null=True), _json("rows"), _json("versions"), _json("details"),
    sa.Index("perennial_erasures_by_fence", "model", "fence"),
)  # fmt: skip

# Removals by retention: all rows before a moment are gone, except those that were published again later.
removals = _table(
    "removals",
    _id(),
    _text("model"), _text("dataset"), _time("before"), _number("publication_id"), _json("rows"), _time("removed_at"),
    sa.Index("perennial_removals_by_dataset", "model", "dataset"),
)  # fmt: skip

# What is held back: the data of an interval, or all refreshes of a model. A hold without released_at is in force.
holds = _table(
    "holds",
    _id(),
    _text("model"), _text("what"), _time("start"), _time("end"), _number("version"), _json("reasons"), _text("run_id"),
    _time("held_at"), _time("released_at", null=True), _text("released_by", null=True), _text("release_reason", null=True),
    sa.Index("perennial_holds_by_model", "model", "what"),
)  # fmt: skip

# What tasks ask the judge for. A worker may add rows, and neither change nor remove one.
proposals = _table(
    "proposals",
    _id(),
    _text("key"), _text("model"), _text("step"), _text("dag_id"), _text("run_id"), _json("said"), _time("proposed_at"),
    sa.UniqueConstraint("key"),
)  # fmt: skip

# What the judge has answered.
rulings = _table(
    "rulings",
    _id(),
    _number("proposal_id"), _text("outcome"), _text("words"), _json("value"), _text("page", null=True), _time("ruled_at"),
    sa.UniqueConstraint("proposal_id"),
)  # fmt: skip

# Retirements of models. Promotions up to promotion_id no longer count.
retirements = _table(
    "retirements",
    _id(),
    _text("model"), _number("promotion_id"), _number("champion", null=True), _text("actor"), _text("reason"),
    _json("files"), _time("retired_at"), _time("dropped_at", null=True),
    sa.Index("perennial_retirements_by_model", "model"),
)  # fmt: skip

# What the judge has signed: each write of a row that says which version is champion or why, in the order of the writes.
chain = _table(
    "chain",
    sa.Column("number", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True, autoincrement=False),
    _time("at"), _text("what"), _text("model"), _text("subject"), _json("about"), _text("content"),
    _text("previous"), _text("hash"), _text("signer"), _text("signature"),
    sa.Index("perennial_chain_by_row", "subject", "about"),
)  # fmt: skip
