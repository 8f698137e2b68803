"""Make a state with the code of one commit: two small models, whose stages were run by hand for a month.

Run it with the code of the commit whose state you need. That commit need not have this file::

    git worktree add ../then COMMIT
    PYTHONPATH=../then/include python tests/states/make.py /srv/perennial tests/states

The first folder holds the deployment while this runs, and is removed at the end. It must not exist. Its path is kept in the
state, so choose one that says nothing of the machine. The second folder gets ``COMMIT.tar.xz``.

What is in the state is said in ``README.md``, and asserted by ``test_old_state.py``. A script for a later commit begins as a
copy of this one whose imports are that commit's.
"""

from __future__ import annotations

import json
import math
import os
import platform
import random
import re
import shutil
import sqlite3
import subprocess
import sys
import tarfile
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path

# Named as who does things by hand, and known before anything that reports its use is imported.
os.environ.update(
    {"LOGNAME": "operator", "DO_NOT_TRACK": "1", "MLFLOW_DISABLE_TELEMETRY": "true", "GX_ANALYTICS_ENABLED": "false"}
)

from perennial.errors import IntervalRefused
from perennial.intervals import Interval, utc
from perennial.settings import PROJECT, Settings, read_settings

from perennial import by_hand
from perennial.deployment import Deployment
from perennial.ledger import Approval

DAYS = [utc("2024-01-01") + timedelta(days=number) for number in range(36)]
#: Days whose orders are dearer than all before, a day on which hardly anybody ordered, and a day whose outcomes came broken.
DEARER, QUIET, BROKEN = {"0127", "0128"}, "0129", "0130"

TABLES = """
tables:
  orders:
    source: orders
    key: [id]
    event_time: placed
    known: placed
    columns:
      id: {type: string, matches: "^[0-9]{4}-[0-9]{2}$"}
      placed: {type: timestamp}
      region: {type: string, values: [N, E, S, W]}
      amount: {type: float, min: 0}
      pieces: {type: integer, min: 1, max: 9}
      voucher: {type: string, nullable: true}
    tolerance: 0.1
  outcomes:
    source: outcomes
    key: [id]
    event_time: placed
    known: placed + INTERVAL 1 HOUR
    columns:
      id: {type: string}
      placed: {type: timestamp}
      paid: {type: float, min: 0}
      returned: {type: boolean}
    tolerance: 0.1
  regions:
    source: regions
    key: [region]
    known: always
    columns:
      region: {type: string}
      distance: {type: float}
entity: {table: orders, as_of: placed}
"""
SOURCES = """
sources:
  orders: {files: "orders/%Y-%m-%d.csv"}
  outcomes: {files: "outcomes/%Y-%m-%d.csv"}
  regions: {files: "regions.csv"}
"""

SHOP = f"""
name: shop
owner: sales
description: What will an order bring?
task: regression
{SOURCES}{TABLES}
features:
  numeric: [amount, pieces, distance, paid_before]
  categorical: [region]
label: {{table: outcomes, sql: paid}}
candidates:
  mean: {{estimator: prior, baseline: true}}
  linear: {{estimator: linear_regression}}
training: {{window: 14d, holdout: 5d, validation: 3d, min_rows: 50}}
cost: {{function: "model:cost"}}
gates:
  min_rows: 30
  at_most: {{rmse: 40}}
  resampling: {{block: 6h}}
  slices: {{columns: [region], margin: 5, min_rows: 20}}
  robustness: {{noise_drop: 0.2, missing_drop: 0.5}}
  behaviour:
    dearer: {{feature: amount, add: 20, expect: higher, tolerance: 2}}
promotion: approval
shadow: {{windows: 4, close: 20}}
drift: {{min_rows: 20}}
retraining: {{on_performance: 5, cooldown: 2d, budget: 5}}
alerts: {{email: [sales@example.org]}}
schedules: {{train: never, monitor: day}}
card:
  intended_use: To plan the cash of the coming days.
  not_for: [single customers]
"""
#: What the folder was given after the first version.
BOOSTING = "  boosting: {estimator: gradient_boosting, params: {max_iter: 80}, search: {max_leaf_nodes: [7, 15]}}\n"
SHOP_FEATURES = """-- One row an order, from what was known when it was placed.
SELECT
    entities.id,
    entities.amount,
    entities.pieces,
    regions.distance,
    (
        SELECT avg(outcomes.paid) FROM outcomes
        WHERE outcomes.placed >= entities.placed - INTERVAL 1 DAY AND outcomes._known_at <= entities.as_of
    ) AS paid_before,
    entities.region,
FROM entities
LEFT JOIN regions ON regions.region = entities.region
"""
SHOP_CODE = '''"""What an error costs the shop."""

import numpy as np


def cost(paid, expected):
    """Money that was counted on and did not come costs twice as much as money that came unexpectedly."""
    return np.where(expected > paid, 2 * (expected - paid), paid - expected)
'''

RETURNS = f"""
name: returns
owner: sales
description: Will an order be sent back?
task: binary_classification
{SOURCES}{TABLES}
features:
  numeric: [amount, pieces]
  categorical: [region]
label: {{table: outcomes, sql: returned}}
candidates:
  prior: {{estimator: prior, baseline: true}}
  logistic: {{estimator: logistic_regression}}
training: {{window: 14d, holdout: 7d, validation: 6d, min_rows: 50}}
cost: {{outcomes: {{false_positive: 1, false_negative: 2}}}}
gates:
  min_rows: 30
  fairness: [{{column: region, ratio: 0.1, min_rows: 20}}]
  robustness: {{noise_drop: 0.5, missing_drop: 0.9}}
drift: {{min_rows: 20}}
schedules: {{train: never, monitor: day}}
"""
RETURNS_FEATURES = "SELECT id, amount, pieces, region FROM entities\n"


# --- what the sources bring ------------------------------------------------------------------------------------------


def write_data(data: Path) -> None:
    """The files of all days; the last days are there for those who open the state to go on with."""
    for folder in ("orders", "outcomes"):
        (data / folder).mkdir(parents=True)
    (data / "regions.csv").write_text("region,distance\nN,120\nE,340\nS,80\nW,15\n")
    for day in DAYS:
        orders, outcomes = rows_of(day)
        (data / "orders" / f"{day:%Y-%m-%d}.csv").write_text("id,placed,region,amount,pieces,voucher\n" + orders)
        (data / "outcomes" / f"{day:%Y-%m-%d}.csv").write_text("id,placed,paid,returned\n" + outcomes)


def rows_of(day: datetime) -> tuple[str, str]:
    """A day's lines of both files; one order has an amount that cannot be."""
    name = f"{day:%m%d}"
    draw = random.Random(name)
    orders, outcomes = [], []
    count = 12 if name == QUIET else 64
    for number in range(count):
        placed = f"{day + number * timedelta(days=1) / count:%Y-%m-%dT%H:%M:%SZ}"
        region, pieces, amount = draw.choice("NESW"), draw.randint(1, 9), round(draw.uniform(1, 100), 2)
        if name in DEARER:
            amount = round(amount + 70, 2)
        paid = amount * (1.9 if region in "NE" else 1.1) + 2 * pieces + (40 if pieces > 6 and amount > 50 else 0)
        paid = round(max(0.0, paid + draw.gauss(0, 4)), 2)
        returned = draw.random() < 1 / (1 + math.exp(2.5 - amount / 30 - (region == "S")))
        if number == 7:
            amount = -amount
        if name == BROKEN and number % 2:
            paid = -paid
        voucher = "welcome" if draw.random() < 0.2 else ""
        orders.append(f"{name}-{number:02d},{placed},{region},{amount},{pieces},{voucher}\n")
        outcomes.append(f"{name}-{number:02d},{placed},{paid},{str(returned).lower()}\n")
    return "".join(orders), "".join(outcomes)


def write_folders(models: Path) -> None:
    (models / "shop").mkdir(parents=True)
    (models / "shop" / "model.yaml").write_text(SHOP.lstrip())
    (models / "shop" / "features.sql").write_text(SHOP_FEATURES)
    (models / "shop" / "model.py").write_text(SHOP_CODE)
    (models / "returns").mkdir()
    (models / "returns" / "model.yaml").write_text(RETURNS.lstrip())
    (models / "returns" / "features.sql").write_text(RETURNS_FEATURES)


# --- a month ---------------------------------------------------------------------------------------------------------


def live(settings: Settings) -> None:
    """What is done by hand, one after the other."""

    def days(first: int, end: int) -> Interval:
        return Interval.of(f"2024-01-{first:02d}", f"2024-01-{end:02d}")

    def day(number: int) -> Interval:
        return days(number, number + 1)

    tell(by_hand.ingest(settings, "shop", days(1, 22)))
    tell(by_hand.train(settings, "shop", utc("2024-01-22")))
    tell(by_hand.promote(settings, "shop", 1, "the first version, and nobody was there to be asked"))
    for number in (22, 23):
        go_on(settings, "shop", day(number))

    folder = settings.models / "shop" / "model.yaml"
    folder.write_text(folder.read_text().replace("\ntraining:", f"\n{BOOSTING}training:"))
    tell(by_hand.train(settings, "shop", utc("2024-01-24")))
    approve(settings, "shop", 2)
    tell(by_hand.promote(settings, "shop", 2, None))
    _, found = by_hand.calibrate(settings, "shop", None, replays=200, seed=None, progress=lambda replays: replays)
    tell(f"thresholds from {found.history}")
    for number in (24, 25):
        go_on(settings, "shop", day(number))
    # A week later nobody would have asked: its holdout is mostly that of version 2.
    tell(by_hand.train(settings, "shop", utc("2024-01-26")))
    for number in (26, 27, 28):
        go_on(settings, "shop", day(number))
    send_alerts(settings)
    tell(by_hand.rollback(settings, "shop", None, "orders are dearer than version 2 has ever seen"))
    go_on(settings, "shop", day(29))
    tell(by_hand.rollback(settings, "shop", 2, "version 1 does worse on dear orders"))
    try:
        by_hand.ingest(settings, "shop", day(30))
    except IntervalRefused as error:
        tell(str(error))

    tell(by_hand.ingest(settings, "returns", days(1, 22)))
    tell(by_hand.train(settings, "returns", utc("2024-01-22")))
    go_on(settings, "returns", day(22))


def go_on(settings: Settings, model: str, day: Interval) -> None:
    """What each day brings."""
    for stage in (by_hand.ingest, by_hand.score, by_hand.monitor):
        tell(stage(settings, model, day))


def approve(settings: Settings, model: str, number: int) -> None:
    """Answer as a person does in Airflow, whose task records it so."""
    Deployment(settings).ledger.record_approval(
        Approval(
            model=model, version=number, answer="approved", approver="airflow:admin", words="better in each region",
            answered_at=datetime.now(UTC), run_id=f"{model}.train/by-hand",
        )
    )  # fmt: skip


def send_alerts(settings: Settings) -> None:
    """Route what waits to the address that the model names, and say that the mail server took all but the newest."""
    outbox, now = Deployment(settings).ledger.outbox, datetime.now(UTC)
    outbox.route(lambda _: ["email:sales@example.org"], now)
    [channel] = outbox.channels()
    waiting = [alert.id for alert in outbox.waiting(channel.channel)]
    lease = outbox.claim(channel, now, now + timedelta(minutes=1))
    assert lease is not None
    outbox.mark_delivered(lease, waiting[:-1], now, receipt="250 ok", next_attempt_at=now)
    outbox.release(lease)


# --- the archive -----------------------------------------------------------------------------------------------------


def pack(root: Path, settings: Settings, archive: Path, commit: str) -> None:
    """What is needed to open it, the same for the same files."""
    shutil.rmtree(settings.staging, ignore_errors=True)
    for page in settings.state.rglob("*.html"):
        # Evidently's program is in each of its pages, and pictures that lie beside it are in each card.
        text = re.sub(r"<script.*?</script>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        page.write_text(re.sub(r"data:[a-z/+-]+;base64,[A-Za-z0-9+/=]+", "data:,", text), encoding="utf-8")
    for database in settings.state.glob("*.db"):
        with sqlite3.connect(database) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()
    made = {
        "commit": commit,
        "root": str(root),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in ("mlflow", "pyiceberg", "scikit-learn", "numpy", "pandas", "duckdb")},
    }
    (root / "made.json").write_text(json.dumps(made, indent=2) + "\n")
    with tarfile.open(archive, "w:xz", preset=9) as tar:
        for file in sorted(root.rglob("*")):
            if file.is_file() and not file.name.endswith(("-wal", "-shm", ".lock", ".pyc")):
                tar.add(file, file.relative_to(root).as_posix(), filter=_anonymous)
    tell(f"{archive}: {archive.stat().st_size:,} bytes")


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    member.mode = 0o644
    return member


def tell(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def main(root: Path, archives: Path) -> None:
    if root.exists():
        sys.exit(f"{root} is there already; name a folder that is not")
    git = ["git", "-C", str(PROJECT)]
    commit = subprocess.run([*git, "rev-parse", "--short=7", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    if subprocess.run([*git, "status", "--porcelain", "include"], check=True, capture_output=True, text=True).stdout:
        sys.exit(f"{PROJECT}/include differs from commit {commit}; check the commit out")
    settings = read_settings({"PERENNIAL_STATE": str(root / "var"), "PERENNIAL_MODELS": str(root / "models")})
    root.mkdir(parents=True)
    os.chdir(root)  # which MLflow keeps as the place of its default experiment
    try:
        write_data(settings.data)
        write_folders(settings.models)
        live(settings)
        pack(root, settings, archives / f"{commit}.tar.xz", commit)
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), Path(sys.argv[2]).absolute())
