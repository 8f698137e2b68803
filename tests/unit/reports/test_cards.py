"""What people read of a version before they let it predict: complete, true to the record, and safe to open."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from mlflow import MlflowClient
from threadpoolctl import threadpool_limits

from perennial.cli import by_hand
from perennial.core.errors import CardError
from perennial.core.intervals import Interval
from perennial.evidence.decision import GateDecision, GateResult
from perennial.evidence.evaluation import Answers, Contender, Evaluation
from perennial.ledger.records import VersionRecord
from perennial.registry.runs import CandidateRun
from perennial.reports.cards import answers, known_limits, model_card, slices
from perennial.reports.documents import Chapter, Document, Mark
from perennial.reports.dossier import Dossier, gather
from perennial.reports.releases import publish_pages, release_report, to_watch, write_pages
from perennial.spec.gates import Gates, SlicesGate
from tests.unit import synthetic
from tests.unit.monitored import World, make_world
from tests.unit.reports.test_documents import Reader

FIRST, SECOND = (synthetic.START + timedelta(days=days) for days in (25, 32))
HOSTILE = "<script>alert(1)</script>"
SECTIONS = [
    "Purpose", "Intended use and limits", "Decision", "Data", "Metrics", "Slices", "Calibration and errors",
    "Feature importance", "Robustness and operation", "Gates", "Code and environment", "Lineage",
]  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Boosters on a few rows; with more threads than free cores they would wait for each other most of the time."""
    with threadpool_limits(1):
        yield


def make_published(place: Path, **replaced: str) -> World:
    world = make_world(place, synthetic.deployment(place), **replaced)
    rows = synthetic.make_rows(32)
    rows["kind"] = rows["kind"].replace("b", HOSTILE)
    synthetic.publish_tables(world.lake, world.ledger, rows, Interval(synthetic.START, SECOND))
    return world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A first champion, and a week later a candidate of an edited folder that was compared with it."""
    place = tmp_path_factory.mktemp("carded")
    asked = {
        "owner": f'owner: testers => owner: "{HOSTILE}"',
        "slices": "gates: {min_rows: 50} => gates: {min_rows: 50, slices: {columns: [kind], min_rows: 40}}",
        "card": "training: => card: {intended_use: To see whether cards work., not_for: [Anything else], "
        "limits: [Made of random numbers.]}\ntraining:",
    }
    world = make_published(place, **asked)
    with threadpool_limits(1):
        by_hand.train(world.settings, "toy", FIRST)
        if world.ledger.champion("toy") is None:
            world.registry.promote_by_hand(world.folder.spec, 1, override="these tests need a champion", actor="tests")
        folder = synthetic.write_folder(place / "models", change="max_iter: 30 => max_iter: 31", **asked)
        (folder.path / "features.sql").write_text("SELECT visit, 1.0 * x AS x, noise, kind FROM entities\n")
        by_hand.train(world.settings, "toy", SECOND)
    return replace(world, folder=folder)


def record_of(world: World, version: int) -> VersionRecord:
    record = world.ledger.version("toy", version)
    assert record is not None
    return record


def run_of(world: World, version: int) -> CandidateRun:
    return world.registry.run(record_of(world, version).mlflow_run_id)


def dossier(world: World, version: int = 2) -> Dossier:
    return gather(world.folder, world.deployment, "toy", version)


def section(document: Document, title: str) -> str:
    """A section as Markdown."""
    only = [part for part in document.sections if part.title == title]
    return replace(document, sections=only).to_markdown().replace("\\", "")


def test_each_version_has_a_card_and_a_report_beside_its_run(world: World) -> None:
    for version in (1, 2):
        files = run_of(world, version).read_files("card")
        assert {"card.html", "card.md", "release.html", "release.md"} <= files.keys()
        shown = set(re.findall(r"!\[.*?\]\((.*?)\)", (files["card.md"] + files["release.md"]).decode()))
        assert {"holdout-calibration.png", "validation-importance.png"} <= shown <= files.keys()
        assert files["card.html"].count(b"data:image/png;base64,") >= 2


def test_the_card_has_every_section_and_says_what_is_recorded(world: World) -> None:
    card, record = model_card(dossier(world)), record_of(world, 2)
    assert [part.title for part in card.sections] == SECTIONS
    card.check()
    text = card.to_markdown().replace("\\", "")
    training = record.training
    for fact in (
        *training.content.values(),
        *map(str, training.snapshots.values()),
        training.window,
        record.spec_digest,
    ):
        assert fact in text
    for name, value in record.evaluation.candidate.metrics.items():
        low, high = record.evaluation.candidate.intervals[name]
        assert f"| {name} | " in text
        assert f"{value:.4g} [{low:.4g}, {high:.4g}]" in text
    for result in record.decision.results:
        assert f"| {result.gate} | {'passed' if result.passed else 'refused'} |" in text
    assert "To see whether cards work." in text
    assert "- Not made for: Anything else" in text
    assert "- Made of random numbers." in text
    assert "perennial reproduce toy 2" in text
    assert "features: 1 publication of" in section(card, "Lineage")


def test_the_card_and_the_report_show_what_was_answered_and_mlflow_has_it(world: World) -> None:
    found = record_of(world, 2).evaluation.candidate.answers
    assert found is not None
    yes = found.by_class["true"]
    logged = MlflowClient(tracking_uri=world.settings.mlflow_url).get_run(record_of(world, 2).mlflow_run_id).data.metrics
    assert (logged["holdout_accuracy"], logged["holdout_recall"]) == (found.accuracy, yes.recall)
    assert logged["holdout_rows_true_answered_false"] == found.confusion["true"]["false"]
    for shown in (section(model_card(dossier(world)), "Metrics"), section(release_report(dossier(world)), "Metrics")):
        assert "with the answer true from a probability of 0.5 on" in shown
        assert f"| precision | {yes.precision:.4g} | " in shown
        assert f"| actually true | {found.confusion['true']['true']} | {found.confusion['true']['false']} |" in shown
    assert "weights of the rows: all count the same" in section(model_card(dossier(world)), "Code and environment")


def test_answers_of_several_classes_and_of_a_regression_are_shown_by_class_and_by_quantile() -> None:
    def shown(found: Answers) -> str:
        chapter = Chapter("Metrics", answers([Contender("boosting", "candidate", {}, 9, "", None, answers=found)]), "")
        return Document("", "", "", Mark("promoted", "good"), [], [chapter]).to_markdown().replace("\\", "")

    classes = shown(Answers(confusion={"a": {"a": 3, "b": 1}, "b": {"b": 5}}))
    assert "| a | 4 | 1 | 0.75 | 0.8571 |" in classes
    numbers = shown(Answers(mape=0.125, zeros=3, pinball={"0.1": 0.25, "0.9": 1.5}))
    assert "3 rows whose label is 0 are left out" in numbers
    assert "| MAPE | 12.5% |" in numbers
    assert "| pinball loss of the quantile 0.9 | 1.5 |" in numbers
    assert answers([Contender("boosting", "candidate", {}, 9, "", None)]) == []


def test_the_first_version_says_that_there_is_nothing_to_compare_it_with(world: World) -> None:
    subject = dossier(world, 1)
    assert "no champion: it would be the first" in section(model_card(subject), "Decision")
    assert "once there is a champion to compare with" in section(model_card(subject), "Slices")
    report = release_report(subject)
    report.check()
    assert "against no champion" in report.title


def test_the_report_says_what_changes(world: World) -> None:
    report = release_report(dossier(world))
    report.check()
    assert report.title == "toy version 2 against champion version 1"
    comparison = record_of(world, 2).evaluation.comparison
    assert comparison is not None
    assert f"The gain over the champion is {comparison.gain:+.4g}" in section(report, "In short")
    changes = section(report, "Features, parameters and spec")
    assert "| max_iter | 30 | 31 |" in changes
    assert "| candidates.boosting.params.max_iter | 30 | 31 |" in changes
    assert "+SELECT visit, 1.0 * x AS x, noise, kind FROM entities" in changes
    assert "feature definitions: changed" in changes
    data = section(report, "Data")
    assert "| learned from | 2013-03-01--2013-03-21 | 2013-03-08--2013-03-28 |" in data
    assert "Both learned from 2013-03-08--2013-03-21 (13 days)" in data
    assert "It depends on one feature, x" in section(report, "What to watch")


def test_slices_are_shown_with_their_gain_and_those_too_small_are_named(world: World) -> None:
    found = record_of(world, 2).evaluation.slices
    assert found is not None
    judged = {one.value for one in found.judged}
    shown = section(model_card(dossier(world)), "Slices")
    assert "a" in judged
    assert all(f"| kind | {value} |" in shown for value in judged)


def test_an_owner_and_a_category_are_text_and_no_markup(world: World) -> None:
    for name, content in run_of(world, 2).read_files("card").items():
        if name.endswith(".html"):
            seen = Reader(content.decode())
            assert "script" not in seen.tags
            assert HOSTILE in "".join(seen.text)
        if name.endswith(".md"):
            assert "<script" not in content.decode().replace("\\<", "")


def test_limits_are_told_without_being_asked(world: World) -> None:
    subject = dossier(world)
    told = " ".join(known_limits(subject))
    assert "It learned from 20 days" in told
    assert "Whether groups are treated alike is not judged" in told
    less = replace(
        subject.training,
        entities={"window": 2000, "holdout": 400},
        labelled={"window": 1000, "holdout": 100},
        rows={"window": 900, "holdout": 100},
    )
    record = replace(subject.record, training=less)
    told = " ".join(known_limits(replace(subject, record=record, missing={"noise": 0.6, "x": 0.1})))
    assert "300 of 400 rows that it was judged on had no label in time (75.0%)" in told
    assert "Of 1,000 labelled rows it learned from the newest 900" in told
    assert "Mostly missing in its training data: noise (60%)" in told


def test_what_has_moved_since_the_champion_is_to_be_watched(world: World) -> None:
    subject = dossier(world)
    classes = {"window": {"false": 100, "true": 900}, "holdout": {}}
    record = replace(subject.record, training=replace(subject.training, classes=classes))
    told = " ".join(to_watch(replace(subject, record=record, missing={"noise": 0.4}, rival_missing={"noise": 0.1})))
    assert "noise was missing in 10% of the champion's training data, now in 40%" in told
    assert "true made up" in told


@pytest.mark.parametrize(
    ("lost", "title"),
    [("holdout/calibration.png", "Calibration and errors"), ("validation/importance.json", "Feature importance"),
     ("validation/importance.png", "Feature importance")],
)  # fmt: skip
def test_a_section_that_lacks_something_fails_the_card_by_name(world: World, lost: str, title: str) -> None:
    subject = dossier(world)
    artifacts = {path: content for path, content in subject.artifacts.items() if path != lost}
    with pytest.raises(CardError, match=f"toy version 2: the model card has nothing to show in {title}: "):
        model_card(replace(subject, artifacts=artifacts)).check()


def test_slices_that_were_asked_for_and_not_measured_fail_the_card(world: World) -> None:
    subject = dossier(world)
    record = replace(subject.record, evaluation=replace(subject.evaluation, slices=None))
    with pytest.raises(CardError, match=r"Slices: the comparison by kind, which gates\.slices\.columns requires"):
        model_card(replace(subject, record=record)).check()
    gates = subject.spec.gates.model_copy(update={"slices": SlicesGate()})
    spec = subject.spec.model_copy(update={"gates": gates})
    assert slices(replace(subject, record=record, spec=spec)).blocks


def passing(evaluation: Evaluation, gates: Gates, *, refit: bool = False) -> GateDecision:
    """What the gates would say if they let everything pass."""
    return GateDecision(True, [GateResult("anything", True, "goes")], evaluation.candidate.name, evaluation.champion_version)


def test_a_version_whose_card_cannot_be_made_is_not_promoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make_published(tmp_path, gates="gates: {min_rows: 50} => gates: {min_rows: 50, baseline_margin: 0.0}")
    monkeypatch.setattr("perennial.training.fit._importance", lambda *_: {})
    monkeypatch.setattr("perennial.evaluation.gates.decide", passing)
    with pytest.raises(CardError, match=r"toy version 1: the model card has nothing to show in Feature importance"):
        by_hand.train(world.settings, "toy", FIRST)
    assert world.ledger.champion("toy") is None


def test_a_refused_version_without_a_card_is_only_told_of(world: World, caplog: pytest.LogCaptureFixture) -> None:
    record = record_of(world, 2)
    assert record.decision.promote is False  # one more iteration is no surely better model
    [picture] = world.settings.state.rglob(f"{record.mlflow_run_id}/artifacts/validation/importance.png")
    content = picture.read_bytes()
    picture.unlink()
    try:
        publish_pages(world.folder, world.deployment, 2)
    finally:
        picture.write_bytes(content)
    assert "a version that the gates refused has no card: toy version 2: the model card has nothing to show in" in caplog.text


def test_a_page_is_written_by_hand_with_what_was_decided_since(world: World, tmp_path: Path) -> None:
    told = by_hand.card(world.settings, "toy", 1, tmp_path / "pages")
    assert told.splitlines() == [
        str(tmp_path / "pages" / name) for name in ("card.html", "card.md", "release.html", "release.md")
    ]
    card = (tmp_path / "pages" / "card.md").read_text()
    assert "**promoted**" in card
    before = run_of(world, 1).read_files("card")["card.md"].decode()
    publish_pages(world.folder, world.deployment, 1)
    assert run_of(world, 1).read_files("card")["card.md"].decode() == card != before
    with pytest.raises(CardError, match="toy has no version 9 in the ledger; there are: 1, 2"):
        write_pages(None, world.deployment, "toy", 9, tmp_path)


@pytest.mark.parametrize("task", ["multiclass_classification", "regression"])
def test_every_task_has_a_card(task: str, tmp_path: Path) -> None:
    world = make_world(tmp_path, synthetic.deployment(tmp_path), task)
    synthetic.publish_tables(world.lake, world.ledger, synthetic.make_rows(25), Interval(synthetic.START, FIRST))
    by_hand.train(world.settings, "toy", FIRST)
    pictures = {"multiclass_classification": "holdout-confusion.png", "regression": "holdout-residuals.png"}
    assert pictures[task] in run_of(world, 1).read_files("card")
