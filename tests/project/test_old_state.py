"""What an earlier release left behind is opened, understood and gone on with: ledger, lake, registry, predictions.

The figures are those that the state was made with: they are what a reader of old evidence must find in it.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from perennial.cli.by_hand import (
    card,
    explain,
    history,
    ingest,
    lineage,
    monitor,
    outlook,
    promote,
    rollback,
    score,
    tidy,
    train,
)
from perennial.cli.main import main
from perennial.core.errors import PromotionRefused
from perennial.core.intervals import Interval, utc
from perennial.core.settings import Settings, read_settings
from perennial.core.settings import settings as settings_of_the_process
from perennial.deployment import Deployment
from perennial.features.publish import ensure_features
from perennial.ledger.migrations import revisions
from perennial.ledger.store import Ledger
from perennial.operations.agreement import verify
from perennial.reports.board import WINDOWS, Pages, compose
from perennial.training.reproduce import reproduce
from tests.states.unpack import unpack

#: By whose code the state was made, and the ledger's revision at the time.
COMMIT = "03fd27a"
REVISION = "0002"
#: Days that the champion, version 2, has predicted.
DAYS = Interval.of("2024-01-24", "2024-01-29")
VERSIONS = [("shop", 1), ("shop", 2), ("shop", 3), ("returns", 1)]


def environment(place: Path) -> dict[str, str]:
    """What tells a process where the deployment lies."""
    state = place / "var"
    return {
        "PERENNIAL_STATE": str(state),
        "PERENNIAL_MODELS": str(place / "models"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{state / 'mlflow.db'}",
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the state lies for those who only look at it; its ledger is up to date."""
    place = tmp_path_factory.mktemp("old")
    unpack(COMMIT, place)
    Ledger(read_settings(environment(place)).database_url).migrate()
    return place


@pytest.fixture
def old(place: Path) -> Settings:
    return read_settings(environment(place))


@pytest.fixture
def own(tmp_path: Path) -> Settings:
    """The state as it was left, for a test that goes on with it."""
    unpack(COMMIT, tmp_path / "old")
    return read_settings(environment(tmp_path / "old"))


def gate(story: dict[str, Any], name: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = [result for result in story["gates"] if result["gate"] == name]
    assert len(found) == 1
    return found[0]


def predicted(settings: Settings, interval: Interval = DAYS, model: str = "shop") -> list[tuple[Any, ...]]:
    """Key, prediction to the last bit, and version of what the lake has for an interval."""
    parts = Deployment(settings)
    snapshot = parts.ledger.head(model, "predictions").snapshots["predictions"]
    rows = parts.lake.scan(model, "predictions", snapshot, interval=interval, event_time="placed").read_all().to_pylist()
    return sorted((row["id"], row["prediction"].hex(), row["version"]) for row in rows)


def delivered(settings: Settings, interval: Interval = DAYS, model: str = "shop") -> list[tuple[Any, ...]]:
    """The same of what consumers read."""
    with sqlite3.connect(settings.predictions_url.removeprefix("sqlite:///")) as connection:
        rows = connection.execute(
            f"SELECT id, prediction, version FROM {model}_predictions WHERE placed >= ? AND placed < ? ORDER BY id",
            [f"{moment:%Y-%m-%d %H:%M:%S}" for moment in (interval.start, interval.end)],
        ).fetchall()
    connection.close()
    return [(key, value.hex(), version) for key, value, version in rows]


# --- the ledger ------------------------------------------------------------------------------------------------------


def test_the_ledger_is_brought_to_the_newest_revision_with_all_that_is_in_it(own: Settings) -> None:
    file = own.database_url.removeprefix("sqlite:///")

    def ask(query: str) -> list[tuple[Any, ...]]:
        with sqlite3.connect(file) as connection:
            found = connection.execute(query).fetchall()
        connection.close()
        return found

    tables = [name for (name,) in ask("SELECT name FROM sqlite_master WHERE name LIKE 'perennial_%' AND type = 'table'")]
    tables.remove("perennial_alembic_version")
    assert ask("SELECT version_num FROM perennial_alembic_version") == [(REVISION,)]
    before = {table: ask(f"SELECT count(*) FROM {table}") for table in tables}
    assert all(count[0] > 0 for [count] in (before[f"perennial_{name}"] for name in ("versions", "verdicts", "approvals")))
    Ledger(own.database_url).migrate()
    assert ask("SELECT version_num FROM perennial_alembic_version") == [(revisions()[-1],)]
    assert {table: ask(f"SELECT count(*) FROM {table}") for table in tables} == before


def test_who_was_champion_and_why_is_told_as_it_was_recorded(old: Settings) -> None:
    changes = history(old, "shop")
    assert [(change["version"], change["over"], change["action"], change["by"], change["why"]) for change in changes] == [
        (1, None, "override", "by hand: operator", "the first version, and nobody was there to be asked"),
        (2, 1, "promote", "by hand: operator", "by hand"),
        (1, 2, "rollback", "by hand: operator", "orders are dearer than version 2 has ever seen"),
        (2, 1, "rollback", "by hand: operator", "version 1 does worse on dear orders"),
    ]
    assert [change["until"] for change in changes[:-1]] == [change["since"] for change in changes[1:]]
    assert changes[0]["evidence"]["overridden"] == "nobody has approved it yet"
    assert [change["version"] for change in history(old, "returns")] == [1]


def test_a_champion_is_explained_by_the_evidence_of_its_time(old: Settings) -> None:
    story = explain(old, "shop", 2)
    assert (story["status"], story["passed"], len(story["gates"])) == ("champion", True, 20)
    assert story["trained"]["candidate"] == "boosting"
    assert story["trained"]["params"] == {"max_iter": 80, "max_leaf_nodes": 7}
    assert story["trained"]["rows"] == {"window": 880, "holdout": 313}
    assert story["trained"]["content"]["window"].startswith("677b27b6e8d4")
    judged = story["judged"]
    assert (judged["metric"], judged["rows"], judged["champion"]) == ("rmse", 313, 1)
    assert judged["metrics"]["rmse"] == 4.725816398600357
    assert judged["champion_metrics"]["rmse"] == 17.02130141702837
    assert judged["comparison"]["gain"] == 12.29548501842801
    assert judged["comparison"]["low"] == 10.982458091713257
    assert "10.4 better on 78 rows (4 slices by region, Holm's correction at 0.05)" in gate(story, "slices")["reason"]
    [approval] = story["approvals"]
    assert (approval["answer"], approval["by"], approval["words"]) == ("approved", "airflow:admin", "better in each region")
    assert [(seen["version"], seen["rows"], seen["outcome"]) for seen in story["shadows"]] == [
        (1, 61, "unknown"), (1, 124, "no_difference"), (1, 187, "no_difference"), (1, 250, "no_difference"),
        (3, 61, "unknown"), (3, 124, "no_difference"), (3, 187, "no_difference"),
    ]  # fmt: skip
    assert story["shadows"][3]["metrics"]["2"]["rmse"] == 23.235263937415876


def test_a_refused_version_is_explained_by_the_gate_that_refused_it(old: Settings) -> None:
    story = explain(old, "shop", 3)
    assert (story["status"], story["passed"]) == ("refused", False)
    assert [result["gate"] for result in story["gates"] if not result["passed"]] == ["champion"]
    assert gate(story, "champion")["reason"].startswith(
        "rmse of boosting is 5.01588, 0.145021 better than 5.1609 of champion version 2 on the same 313 rows; with "
        "confidence 0.95 the gain lies between -0.09629 and 0.3584"
    )


def test_a_first_version_and_one_of_classes_are_explained(old: Settings) -> None:
    first = explain(old, "shop", 1)
    assert (first["status"], first["judged"]["champion"], first["judged"]["comparison"]) == ("rolled back from", None, None)
    of_classes = explain(old, "returns", 1)
    assert of_classes["status"] == "champion"
    assert of_classes["judged"]["metrics"]["roc_auc"] == pytest.approx(0.745463, abs=1e-6)
    assert "0.03826 from the shares" in gate(of_classes, "calibration.error")["reason"]
    assert "0.3619 for region E and 0.8 for S" in gate(of_classes, "fairness.region.selection_rate")["reason"]


@pytest.mark.parametrize(("model", "version"), VERSIONS)
def test_card_and_release_report_are_written_anew_from_old_evidence(
    old: Settings, tmp_path: Path, model: str, version: int
) -> None:
    card(old, model, version, tmp_path)
    pages = {name: (tmp_path / name).read_text() for name in ("card.html", "card.md", "release.html", "release.md")}
    figures = {
        ("shop", 1): ["16.59", "nobody was there to be asked"],
        ("shop", 2): ["4.726", "17.02", "10.98 to 13.66", "airflow:admin", "better in each region"],
        ("shop", 3): ["5.016", "0.3584"],
        ("returns", 1): ["0.7455", "0.03826"],
    }[model, version]
    for name, page in pages.items():
        assert [figure for figure in figures if figure not in page] == [], name


def test_windows_of_the_past_have_their_verdicts_and_figures(old: Settings) -> None:
    metric, windows = outlook(old, "shop")
    assert metric == "rmse"
    assert [(window.interval.key, window.version, window.verdict, window.severity) for window in windows] == [
        ("2024-01-22", 1, "ok", "none"),
        ("2024-01-23", 1, "drift", "critical"),
        ("2024-01-24", 2, "ok", "warning"),
        ("2024-01-25", 2, "ok", "critical"),
        ("2024-01-26", 2, "ok", "none"),
        ("2024-01-27", 2, "drift", "critical"),
        ("2024-01-28", 2, "drift", "critical"),
        ("2024-01-29", 1, "unknown", "warning"),
    ]
    assert [window.realised for window in windows[-3:]] == [46.357539251382775, 61.546763174294234, None]
    _, [window] = outlook(old, "returns")
    assert (window.verdict, window.estimated) == ("drift", 0.7419548307817353)
    assert window.band == pytest.approx((0.52886, 0.88223), abs=1e-5)


def test_why_a_window_drifted_and_what_was_asked_for_it_is_known(old: Settings) -> None:
    ledger = Ledger(old.database_url)
    verdict = next(verdict for verdict in ledger.verdicts("shop") if verdict.interval == Interval.day("2024-01-28"))
    assert verdict.reasons[2] == "amount moved by 2.479 standard deviations of the reference, threshold 0.6085"
    assert verdict.report is not None
    assert (old.reports / verdict.report).is_file()
    *_, asked, last = ledger.retrainings("shop")
    assert (asked.asked, asked.cause, last.asked) == (True, "drift", False)
    assert asked.reason.startswith("Retraining: 2 of the last 3 windows drifted from what version 2 learned")


def test_alerts_are_open_sent_or_waiting_as_they_were(old: Settings) -> None:
    entries = Ledger(old.database_url).alerts()
    assert len(entries) == 17
    assert [entry.alert.title for entry in entries if entry.waits] == [
        "shop: lasting or harmful drift in 2024-01-28",
        "shop: rolled back to version 1",
        "shop: drift of 2024-01-29 could not be judged",
        "shop: rolled back to version 2",
        "shop: the data of 2024-01-30 were refused",
        "returns: version 1 is champion",
        "returns: lasting or harmful drift in 2024-01-22",
    ]
    assert sum(delivery.delivered_at is not None for entry in entries for delivery in entry.deliveries) == 10
    assert [entry.id for entry in entries if entry.resolved_by is not None] == [2, 5, 6]


def test_the_board_shows_the_models_as_they_were_left(old: Settings) -> None:
    parts = Deployment(old)
    then = parts.ledger.alerts()[-1].created_at
    overview = parts.ledger.overview(windows=WINDOWS, alerts_since=then - timedelta(days=1))
    folders = {name: parts.model(name) for name in ("shop", "returns")}
    board = compose(overview, folders, {}, now=then + timedelta(minutes=5), pages=Pages())
    [shop] = [row for row in board.rows if row.model == "shop"]
    assert shop.champion is not None
    assert (shop.champion.version, shop.refused, shop.attention) == (2, "2024-01-30", "critical")
    assert shop.outlook is not None
    assert shop.outlook.realised == 61.546763174294234
    assert shop.trained is not None
    assert (shop.trained.version, shop.trained.outcome) == (3, "refused")
    assert (shop.told.critical, shop.told.warning) != (0, 0)


# --- lineage ---------------------------------------------------------------------------------------------------------


def test_an_old_prediction_is_traced_to_its_files_and_to_what_its_version_learned_from(old: Settings) -> None:
    node = lineage(old, "shop", prediction=["0125-05"], at=None, interval=None)
    assert node.facts["value"] == pytest.approx(145.274773196571)
    version, features = node.leads_to
    assert version.name == "version 2"
    assert node.find("missing") == []
    assert version.find("training set")[0].facts["content"]["window"].startswith("677b27b6e8d4")
    files = {file.name: file.facts["sha256"] for file in features.find("file")}
    assert sorted(files) == [
        *(f"orders/2024-01-{day}.csv" for day in (23, 24, 25)),
        *(f"outcomes/2024-01-{day}.csv" for day in (23, 24, 25)),
        "regions.csv",
    ]
    assert files["orders/2024-01-25.csv"].startswith("3dbbda763b29")


def test_an_old_day_is_traced_to_all_that_was_made_from_it(old: Settings) -> None:
    node = lineage(old, "shop", prediction=None, at=None, interval=Interval.day("2024-01-25"))
    assert [found.name for found in node.find("version")] == ["version 3", "version 3"]
    assert [found.name for found in node.find("prediction")] == [
        f"{dataset} of 2024-01-{day}" for day in (25, 26, 27) for dataset in ("predictions", "shadows")
    ]


# --- lake, registry, predictions -------------------------------------------------------------------------------------


def test_ledger_lake_registry_and_predictions_agree(old: Settings) -> None:
    found = verify(Deployment(old))
    assert found.problems == []
    assert "7 alerts wait" in found.found[-1]


def test_what_consumers_read_is_what_the_lake_has(old: Settings) -> None:
    rows = predicted(old)
    assert len(rows) == 5 * 63
    assert {version for _, _, version in rows} == {2}
    assert [float.fromhex(value) for key, value, _ in rows if key == "0125-05"] == [145.27477319657083]
    assert rows == delivered(old)


def test_the_champion_of_the_old_state_says_the_same_of_the_rows_it_has_predicted(own: Settings) -> None:
    """Trees compare and add, which comes to the same bits everywhere."""
    Ledger(own.database_url).migrate()
    before = predicted(own)
    parts = Deployment(own)
    loaded = parts.registry.load("shop", 2, spec=parts.model("shop").spec)
    assert loaded.trained_on == "2024-01-05--2024-01-19"
    assert loaded.reference().num_rows == 880
    for day in DAYS.days():
        score(own, "shop", day)
    assert predicted(own) == before
    assert delivered(own) == before
    assert verify(Deployment(own)).problems == []


def test_features_of_the_old_state_are_not_built_again(own: Settings) -> None:
    Ledger(own.database_url).migrate()
    parts = Deployment(own)
    folder = parts.model("shop")
    model = folder.path / "model.yaml"
    assert ensure_features(folder, parts.lake, DAYS, run_id="after the upgrade") == []
    assert [made.features_digest in folder.features_digests for made in parts.ledger.versions("shop")] == [True] * 3
    model.write_text(f"# another comment\n{model.read_text()}")
    assert ensure_features(parts.model("shop"), parts.lake, DAYS, run_id="after the upgrade") == []


@pytest.mark.parametrize(("model", "version"), VERSIONS)
def test_a_version_is_made_again_from_the_rows_it_has_pinned(old: Settings, model: str, version: int) -> None:
    parts = Deployment(old)
    made = reproduce(model, version, parts, folder=parts.model(model))
    assert made.rows == {"shop": 313, "returns": 439}[model]
    # Another machine may add up in another order.
    assert made.largest == pytest.approx(0, abs=1e-6)
    expected = ["model.yaml changed since the version was made; the files logged with it were used"]
    assert [note for note in made.notes if "changed since" in note] == (expected if (model, version) == ("shop", 1) else [])


# --- going on --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_life_goes_on_from_the_old_state(own: Settings) -> None:
    """New days come, a new version is measured against the old champion, takes its place, and is rolled back."""
    Ledger(own.database_url).migrate()
    titles = {entry.alert.title: entry for entry in Deployment(own).ledger.alerts()}
    assert titles["shop: the data of 2024-01-30 were refused"].resolved_by is None
    corrected = own.data / "outcomes" / "2024-01-30.csv"
    corrected.write_text(corrected.read_text().replace(",-", ","))
    ingest(own, "shop", Interval.day("2024-01-30"))
    titles = {entry.alert.title: entry for entry in Deployment(own).ledger.alerts()}
    assert titles["shop: the data of 2024-01-30 were refused"].resolved_by is not None
    ingest(own, "shop", Interval.of("2024-01-31", "2024-02-05"))
    day = Interval.day("2024-02-01")
    assert "63 predictions by version 2" in score(own, "shop", day)
    assert "ok" in monitor(own, "shop", day)

    train(own, "shop", utc("2024-02-05"))
    story = explain(own, "shop", 4)
    assert (story["judged"]["champion"], story["judged"]["rows"]) == (2, 313)
    assert story["judged"]["champion_metrics"]["rmse"] == pytest.approx(4.968565872813091)
    assert len(story["gates"]) >= 20
    with pytest.raises(PromotionRefused):
        promote(own, "shop", 4, None)
    promote(own, "shop", 4, "to see it at work")
    assert Deployment(own).registry.champion("shop") == 4
    newest = Interval.day("2024-02-05")
    ingest(own, "shop", newest)
    score(own, "shop", newest)
    assert {version for *_, version in predicted(own, newest)} == {4}

    rollback(own, "shop", None, "it was seen")
    assert Deployment(own).registry.champion("shop") == 2
    score(own, "shop", newest)
    assert {version for *_, version in predicted(own, newest)} == {2}
    assert [change["action"] for change in history(own, "shop")[-2:]] == ["override", "rollback"]
    for model in ("shop", "returns"):
        tidy(own, model)
    assert verify(Deployment(own)).problems == []


def test_the_champion_before_is_found_in_an_old_history(own: Settings) -> None:
    rollback(own, "shop", None, "once more")
    assert Deployment(own).registry.champion("shop") == 1
    assert {version for *_, version in predicted(own, Interval.day("2024-01-23"))} == {1}


# --- at a terminal ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["verify"], ["champion version 2", "2 models, 0 problems", "rows were there before it, and are adopted"]),
        (["history", "shop"], ["version 1 does worse on dear orders", "Checked: the", "are as they were signed"]),
        (["history", "shop", "--json"], ["12.2955 better than 17.0213"]),
        (["explain", "shop", "2"], ["4.726", "better in each region", "gain is above -9.826"]),
        (["explain", "returns", "1"], ["0.7455", "0.452"]),
        (["performance", "shop"], ["61.55", "19.35"]),
        (["performance", "returns"], ["0.742", "0.6934"]),
        (["alerts", "shop"], ["the data of 2024-01-30 were refused", "sales@example.org"]),
        (["lineage", "shop", "--prediction", "0125-05"], ["145.275", "orders/2024-01-25.csv"]),
        (["lineage", "shop", "--interval", "2024-01-25", "2024-01-26", "--json"], ["shadows of 2024-01-26"]),
    ],
    ids=lambda value: " ".join(value[:2]),
)
def test_the_commands_tell_of_the_old_state(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: Sequence[str],
    told: Sequence[str],
) -> None:
    for name, value in {**environment(place), "COLUMNS": "400"}.items():
        monkeypatch.setenv(name, value)
    settings_of_the_process.cache_clear()
    try:
        with pytest.raises(SystemExit) as ended:
            main(command)
    finally:
        settings_of_the_process.cache_clear()
    shown = capsys.readouterr().out
    assert ended.value.code == 0, shown
    assert [words for words in told if words not in shown] == [], shown


# --- the archive -----------------------------------------------------------------------------------------------------


def test_nothing_of_an_unpacked_state_leads_to_where_it_was_made(tmp_path: Path) -> None:
    made = unpack(COMMIT, tmp_path / "old")
    (tmp_path / "old" / "made.json").unlink()
    leads_back = [
        file.relative_to(tmp_path).as_posix()
        for file in tmp_path.rglob("*")
        if file.is_file() and made["root"].encode() in file.read_bytes()
    ]
    assert all(name.endswith("/MLmodel") for name in leads_back), "where a stored model was first stored is all that may"
    for name in ("mlflow.db", "catalog.db"):
        with sqlite3.connect(tmp_path / "old" / "var" / name) as connection:
            assert made["root"] not in "".join(connection.iterdump())
        connection.close()
    shutil.rmtree(tmp_path / "old")
