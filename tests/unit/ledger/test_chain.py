"""The chain of decisions: what others change in the ledger's database is found and named, and stops the judge."""

from __future__ import annotations

import base64
import os
import re
import shutil
import sqlite3
import stat
from contextlib import closing, suppress
from dataclasses import replace
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from perennial.core.errors import ChainBroken, LedgerDamaged, SettingsError
from perennial.evidence.decision import GateDecision
from perennial.evidence.evaluation import Evaluation
from perennial.evidence.training import CodeState, TrainingRecord
from perennial.ledger import signing, tables
from perennial.ledger.chain import PROTECTED, Decisions
from perennial.ledger.records import Approval, VersionRecord
from perennial.ledger.signing import FORMER_KEY, KEY, PUBLIC_KEY, Keys, Signer
from perennial.ledger.store import Ledger
from perennial.operations.identities import DECISIONS

MODEL = "toy"
NOW = datetime(2013, 4, 9, 2, tzinfo=UTC)


def record(version: int) -> VersionRecord:
    return VersionRecord(
        model=MODEL, version=version, mlflow_run_id=f"run-{version}", spec_digest="spec", features_digest="features",
        manifest={"model.skops": "0" * 64}, training=TrainingRecord.from_json({"rows": {"window": 10}}),
        evaluation=Evaluation.from_json({}), decision=GateDecision.from_json({}), code=CodeState(), created_at=NOW,
    )  # fmt: skip


def promote(ledger: Ledger, version: int, expected: int | None) -> None:
    promotion = ledger.intend_promotion(
        model=MODEL, version=version, expected=expected, action="promote", reason="better", actor="gates", run_id=None,
        evidence={"auc": 0.7, "nothing": float("nan")},
    )  # fmt: skip
    ledger.complete_promotion(promotion.id)


def live(ledger: Ledger) -> None:
    """Two versions, both promoted in turn, one of them approved; the decision on the second was made again."""
    for version in (1, 2):
        ledger.record_version(record(version))
    ledger.record_decision(MODEL, 2, Evaluation.from_json({}), GateDecision.from_json({}))
    ledger.record_approval(
        Approval(model=MODEL, version=1, answered_at=NOW, answer="approved", approver="ann", words="fine", run_id="run")
    )
    promote(ledger, 1, None)
    promote(ledger, 2, 1)


@pytest.fixture(autouse=True)
def _without_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (KEY, FORMER_KEY, PUBLIC_KEY):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The folder of a ledger that has lived."""
    live(opened(tmp_path, new=True))
    return tmp_path


def opened(place: Path, *, new: bool = False) -> Ledger:
    ledger = Ledger(f"sqlite:///{place / 'perennial.db'}")
    if new:
        ledger.migrate()
    return ledger


def attack(place: Path, *statements: str) -> None:
    """As somebody who may write to the database, and has no key."""
    with closing(sqlite3.connect(place / "perennial.db")) as database:
        for statement in statements:
            database.execute(statement)
        database.commit()


def problems(place: Path, *noted: str) -> list[str]:
    return opened(place).check_decisions(noted=noted).problems


def entries(place: Path) -> list[dict[str, Any]]:
    with opened(place)._database.reading() as connection:
        query = sa.select(tables.chain).order_by(tables.chain.c.number)
        return [dict(row) for row in connection.execute(query).mappings()]


def key() -> str:
    return base64.b64encode(os.urandom(32)).decode()


# --- what is in it ----------------------------------------------------------------------------------------------------


def test_each_write_of_a_decision_has_an_entry(place: Path) -> None:
    assert [(entry["what"], entry["subject"].removeprefix("perennial_")) for entry in entries(place)] == [
        ("begun", ""),
        ("written", "versions"),
        ("written", "versions"),
        ("written", "versions"),
        ("written", "approvals"),
        *[("written", "promotions")] * 4,
    ]
    found = opened(place).check_decisions()
    assert (found.problems, found.notes, found.rows, found.entries) == ([], [], 5, 9)
    assert found.trust == "this process holds the private key"


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
def test_a_life_is_found_whole_on_each_database(database: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'perennial.db'}" if database == "sqlite" else request.getfixturevalue("postgres")
    ledger = Ledger(url, tmp_path)
    ledger.migrate()
    live(ledger)
    retired = ledger.retire(MODEL, actor="ann", reason="replaced", files={"model.yaml": "x: 1"})
    ledger.note_dropped(retired.id)
    ledger.replace_manifest(
        ledger.versions(MODEL)[0], replace(ledger.versions(MODEL)[0].judged, manifest={"model.skops": "1" * 64})
    )
    found = ledger.check_decisions()
    assert (found.problems, found.rows, found.entries) == ([], 6, 12)


def test_what_is_recorded_twice_has_one_entry(place: Path) -> None:
    before = len(entries(place))
    ledger = opened(place)
    ledger.record_version(record(1))
    ledger.record_approval(
        Approval(model=MODEL, version=1, answered_at=NOW, answer="approved", approver="ann", words="fine", run_id="run")
    )
    assert len(entries(place)) == before


def test_a_decision_cannot_be_written_without_an_entry(place: Path) -> None:
    ledger = opened(place)
    for table in PROTECTED:
        for statement in (sa.insert(table), sa.update(table), sa.delete(table)):
            with ledger._database.writing() as connection, pytest.raises(AssertionError, match=r"Decisions\.write only"):
                connection.execute(statement)


def test_every_table_that_only_the_judge_writes_is_in_the_chain_or_says_nothing_of_champions() -> None:
    protected = {table.name.removeprefix("perennial_") for table in PROTECTED}
    assert set(DECISIONS) - protected == {"alias_moves", "rulings", "chain", "alembic_version"}


def test_a_transaction_that_fails_leaves_no_entry(place: Path) -> None:
    ledger = opened(place)
    before = entries(place)
    with suppress(sa.exc.IntegrityError), ledger._deciding(MODEL) as decisions:
        decisions.write(sa.update(tables.versions).values(spec_digest="another"))
        decisions.write(sa.insert(tables.versions).values(before[1]["about"]))
        pytest.fail("version 1 is there already")
    assert entries(place) == before
    assert problems(place) == []


def _promote_in_turn(url: str, state: Path, model: str) -> None:
    ledger = Ledger(url, state)
    for version in range(1, 11):
        ledger.record_version(replace(record(version), model=model))


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
def test_processes_that_decide_at_once_make_one_chain(database: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'perennial.db'}" if database == "sqlite" else request.getfixturevalue("postgres")
    Ledger(url, tmp_path).migrate()
    context = get_context("forkserver")
    context.set_forkserver_preload(["perennial.ledger.store", __name__])
    processes = [context.Process(target=_promote_in_turn, args=(url, tmp_path, model)) for model in ("a", "b", "c")]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    found = Ledger(url, tmp_path).check_decisions()
    assert (found.problems, found.entries, found.rows) == ([], 31, 30)


# --- attacks ----------------------------------------------------------------------------------------------------------

LAST = "(SELECT max(number) FROM perennial_chain)"
ATTACKS: dict[str, tuple[list[str], str]] = {
    "a row is changed": (
        ["UPDATE perennial_promotions SET version = 1 WHERE id = 2"],
        r"^toy: promotion 2 was changed in the ledger after the judge wrote it \(entry 9, ",
    ),
    "evidence in a row is changed": (
        ["UPDATE perennial_promotions SET evidence = replace(evidence, '0.7', '0.9') WHERE id = 1"],
        r"^toy: promotion 1 was changed",
    ),
    "a row is removed": (["DELETE FROM perennial_approvals"], r"^toy: approval 1, 2013-04-09.* was removed from the ledger"),
    "a row is inserted": (
        ["INSERT INTO perennial_promotions SELECT 3, model, 1, 2, action, reason, actor, NULL, evidence, intended_at,"
         " completed_at, withdrawn_at FROM perennial_promotions WHERE id = 1"],
        r"^toy: promotion 3 was inserted into the ledger, and the judge did not write it",
    ),
    "an entry in the middle is removed": (
        ["DELETE FROM perennial_chain WHERE number = 4"],
        r"^entry 4 of the chain was removed",
    ),
    "a row is removed with its entries": (
        ["DELETE FROM perennial_approvals", "DELETE FROM perennial_chain WHERE number = 5"],
        r"^entry 5 of the chain was removed",
    ),
    "a row is removed with its entries, and the others are numbered again": (
        ["DELETE FROM perennial_approvals", "DELETE FROM perennial_chain WHERE number = 5",
         "UPDATE perennial_chain SET number = number - 1 WHERE number > 5"],
        r"^entry 5 of the chain \(toy: promotion 1\) does not follow entry 4",
    ),
    "an entry is changed": (
        ["UPDATE perennial_chain SET at = '2012-01-01 00:00:00.000000' WHERE number = 3"],
        r"^entry 3 of the chain \(toy: version 2\) was changed after it was signed",
    ),
    "entries change places": (
        ["UPDATE perennial_chain SET number = 100 WHERE number = 3", "UPDATE perennial_chain SET number = 3 WHERE number = 2",
         "UPDATE perennial_chain SET number = 2 WHERE number = 100"],
        r"^entry 2 of the chain \(toy: version 2\) does not follow entry 1",
    ),
    "a signature is removed": (["UPDATE perennial_chain SET signature = '' WHERE number = 3"], r"^entry 3 .* is forged"),
    "the last row and entry are cut off": (
        [f"DELETE FROM perennial_chain WHERE number >= {LAST} - 1", "DELETE FROM perennial_promotions WHERE id = 2"],
        r"^entry 9 of the chain \(\w{12}\) is known from elsewhere, and the ledger, whose newest entry is 7",
    ),
    "the chain is removed": (["DELETE FROM perennial_chain"], r"no chain of them: it was removed"),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTACKS)
def test_what_others_change_is_found_and_named(name: str, place: Path) -> None:
    statements, told = ATTACKS[name]
    attack(place, *statements)
    found = problems(place)
    assert found
    assert re.search(told, found[0]), found


def forge(place: Path, version: int, signer: Signer) -> None:
    """Write a promotion with an entry as the judge would, with another key."""
    ledger = opened(place)
    with ledger._database.writing(MODEL) as connection:
        decisions = Decisions(connection, Keys(None, {}))
        last = decisions._last()
        assert last is not None
        decisions.head = signing.ChainHead(last["number"], last["hash"], "", "")
        decisions._signer = signer
        decisions.write(sa.update(tables.promotions).where(tables.promotions.c.id == 2).values(version=version))


def other_signer() -> Signer:
    signer = Keys(None, {KEY: key()}).known()
    assert signer is not None
    return signer


def test_an_entry_that_another_key_signs_is_found_and_nothing_is_added_to_it(place: Path) -> None:
    forge(place, 1, other_signer())
    assert problems(place)[0].startswith("entry 10 of the chain (toy: promotion 2) is forged: the judge's key did not sign it")
    before = entries(place)
    with pytest.raises(ChainBroken, match=r"signed with the key \w{16}, and this process has"):
        promote(opened(place), 1, 1)
    attack(place, f"UPDATE perennial_chain SET signer = '{before[0]['signer']}' WHERE number = 10")
    with pytest.raises(ChainBroken, match=r"entry 10 of the chain \(toy: promotion 2\) was not written by the judge"):
        promote(opened(place), 1, 1)
    assert len(entries(place)) == len(before)


def test_an_entry_of_another_ledger_that_the_same_key_signed_does_not_fit(
    place: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("other")
    shutil.copy(place / signing.KEY_FILE, other / signing.KEY_FILE)
    ledger = opened(other, new=True)
    live(ledger)
    promote(ledger, 1, 2)
    attack(
        place,
        f"ATTACH '{other / 'perennial.db'}' AS other",
        "INSERT INTO perennial_chain SELECT * FROM other.perennial_chain WHERE number IN (10, 11)",
        "INSERT INTO perennial_promotions SELECT * FROM other.perennial_promotions WHERE id = 3",
    )
    assert problems(place)[0].startswith("entry 10 of the chain (toy: promotion 3) does not follow entry 9")


def test_a_chain_that_another_key_made_from_its_beginning_is_refused_by_who_knows_the_key(
    place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    public = entries(place)[0]["about"]["key"]
    attack(place, "UPDATE perennial_promotions SET version = 1 WHERE id = 2", "DELETE FROM perennial_chain")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    forger = Ledger(f"sqlite:///{place / 'perennial.db'}", elsewhere)
    forger.begin_again(actor="perennial", reason="the first decision")
    has_to_be = signing.fingerprint(public)
    assert any(f"the key has to be {has_to_be}" in problem for problem in problems(place))

    looks = Ledger(f"sqlite:///{place / 'perennial.db'}", tmp_path_factory.mktemp("looks"))
    unpinned = looks.check_decisions()
    assert unpinned.problems == []
    assert "no key was given to compare it with, so the ledger's own was used" in unpinned.trust
    monkeypatch.setenv(PUBLIC_KEY, public)
    assert [f"the key has to be {has_to_be}" in problem for problem in looks.check_decisions().problems] == [True]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sound")
    live(opened(place, new=True))
    return place


COLUMNS = [
    (table.name, column.name) for table in (*PROTECTED, tables.chain) for column in table.columns if column.name != "run_id"
]


@hypothesis_settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.sampled_from(COLUMNS), row=st.integers(0, 20), text=st.sampled_from(["7", "[]", "no json", '{"a": 1}']))
def test_whatever_value_is_changed_is_found(
    sound: Path, tmp_path_factory: pytest.TempPathFactory, where: tuple[str, str], row: int, text: str
) -> None:
    place = tmp_path_factory.mktemp("changed")
    for file in sound.iterdir():
        shutil.copy(file, place / file.name)
    table, column = where
    with closing(sqlite3.connect(place / "perennial.db")) as database:
        numbers = [number for (number,) in database.execute(f"SELECT rowid FROM {table}")]
        if not numbers:
            return
        number = numbers[row % len(numbers)]
        [(before,)] = database.execute(f'SELECT "{column}" FROM {table} WHERE rowid = {number}')
        kind = next(c.type for t in (*PROTECTED, tables.chain) if t.name == table for c in t.columns if c.name == column)
        values = {"DateTime": "2011-01-01 00:00:00.000000", "BigInteger": "77", "Integer": "77"}
        value = values.get(type(getattr(kind, "impl", kind)).__name__, text)
        if str(before) == value:
            return
        database.execute(f'UPDATE {table} SET "{column}" = ? WHERE rowid = {number}', (value,))
        database.commit()
    assert problems(place) != []


@pytest.mark.parametrize("value", ["no json", "[7]", '"x"'])
@pytest.mark.parametrize("column", ["decision", "evaluation", "training", "code"])
def test_a_row_that_cannot_be_read_is_one_sentence_and_is_named_by_the_check(place: Path, column: str, value: str) -> None:
    attack(place, f"UPDATE perennial_versions SET {column} = '{value}' WHERE version = 2")
    with pytest.raises(LedgerDamaged, match=r"in the ledger .*: run perennial verify, and restore the ledger from a backup$"):
        opened(place).versions(MODEL)
    assert problems(place) != []


def test_nothing_is_decided_on_a_record_that_others_have_changed(place: Path) -> None:
    attack(place, "UPDATE perennial_versions SET decision = '{\"promote\": true}' WHERE version = 2")
    before = entries(place)
    with pytest.raises(ChainBroken, match="toy: nothing is decided, since toy: version 2 was changed in the ledger"):
        promote(opened(place), 2, 2)
    assert entries(place) == before


def test_a_change_is_not_made_genuine_by_the_next_write_of_the_row(place: Path) -> None:
    ledger = opened(place)
    open_one = ledger.intend_promotion(
        model=MODEL, version=1, expected=2, action="promote", reason="", actor="", run_id=None, evidence={}
    )
    attack(place, f"UPDATE perennial_promotions SET version = 2 WHERE id = {open_one.id}")
    for write in (ledger.complete_promotion, ledger.withdraw_promotion):
        with pytest.raises(ChainBroken, match=f"toy: promotion {open_one.id} is not as the judge has written it"):
            write(open_one.id)
    assert len(problems(place)) == 1


def test_a_forged_entry_that_names_a_key_is_not_followed(place: Path) -> None:
    last, mine = entries(place)[-1], Keys(place).known()
    assert mine is not None
    with opened(place)._database.writing() as connection:
        decisions = Decisions(connection, Keys(None, {}))
        decisions.head, decisions._signer = signing.ChainHead(last["number"], last["hash"], "", ""), other_signer()
        decisions._append([{"what": "key", "model": "", "subject": "", "about": {"key": mine.public}, "content": ""}])
    with pytest.raises(ChainBroken, match="entry 10 of the chain was not written by the judge"):
        promote(opened(place), 1, 2)


# --- the end of the chain, known from elsewhere -----------------------------------------------------------------------


def test_nothing_is_decided_after_an_end_that_was_cut_off(place: Path) -> None:
    attack(place, *ATTACKS["the last row and entry are cut off"][0])
    with pytest.raises(ChainBroken, match="end with entry 7, and entry 9 that was made after that, or instead, is known"):
        promote(opened(place), 2, 1)
    (place / signing.HEAD_FILE).unlink()
    assert problems(place) == [], "nobody here knows more"
    assert any("entry 9 of the chain" in problem for problem in problems(place, f"9:{'a' * 64}"))


def test_what_a_worker_writes_in_place_of_the_newest_entry_does_not_stop_the_judge(place: Path) -> None:
    for text in ('{"number": 99, "hash": "a", "key": "b", "signature": "c"}', "no json", "[]", '{"number": "x"}'):
        (place / signing.HEAD_FILE).write_text(text)
        assert problems(place) == []
    promote(opened(place), 1, 2)
    assert problems(place) == []


def test_a_removed_chain_is_not_begun_again_by_the_next_decision(place: Path) -> None:
    attack(place, "DELETE FROM perennial_chain")
    (place / signing.HEAD_FILE).unlink()
    with pytest.raises(ChainBroken, match="the chain of decisions was removed from the ledger"):
        promote(opened(place), 1, 2)
    opened(place).migrate()
    assert entries(place) == []


def test_after_a_restore_the_chain_goes_on_and_says_what_was_given_up(place: Path) -> None:
    copy = place / "copy.db"
    with closing(sqlite3.connect(place / "perennial.db")) as now, closing(sqlite3.connect(copy)) as then:
        now.backup(then)
    promote(opened(place), 1, 2)
    newest = entries(place)[-1]
    for file in place.glob("perennial.db*"):
        file.unlink()
    copy.rename(place / "perennial.db")

    assert [problem.split(",")[0].split(" (")[0] for problem in problems(place)] == ["entry 11 of the chain"]
    ledger = opened(place)
    assert (
        ledger.follow_restored(actor="ann") == "the chain of decisions goes on after entry 9; newer ones are not in the backup"
    )
    assert ledger.follow_restored(actor="ann", noted=[f"11:{newest['hash']}"]) is None
    found = ledger.check_decisions(noted=[f"11:{newest['hash']}"])
    assert found.problems == []
    assert "by ann: an older backup of the ledger was restored; it adopted 5 rows" in found.notes[0]
    assert "gave up the entries to 11" in found.notes[0]
    promote(ledger, 1, 2)
    assert problems(place) == []


def test_a_restore_does_not_accept_what_else_is_wrong(place: Path) -> None:
    attack(place, *ATTACKS["the last row and entry are cut off"][0], "UPDATE perennial_approvals SET words = 'no'")
    assert opened(place).follow_restored(actor="ann") is None
    assert len(problems(place)) == 2


# --- the key ----------------------------------------------------------------------------------------------------------


def test_the_key_is_made_once_for_this_user_alone(place: Path) -> None:
    file = place / signing.KEY_FILE
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    before = file.read_text()
    promote(opened(place), 1, 2)
    assert file.read_text() == before
    assert not list(place.glob(f".{signing.KEY_FILE}*"))


def test_a_lost_key_is_not_replaced_unasked_and_a_person_who_does_is_named(place: Path) -> None:
    (place / signing.KEY_FILE).unlink()
    with pytest.raises(SettingsError, match="no key to sign a decision with"):
        promote(opened(place), 1, 2)
    assert not (place / signing.KEY_FILE).exists()
    assert opened(place).begin_again(actor="ann", reason="the disk with the key is lost") == 5
    found = opened(place).check_decisions()
    assert found.problems == []
    assert "begun again on" in found.notes[0]
    assert "by ann: the disk with the key is lost; it adopted 5 rows as they were then" in found.notes[0]
    # Who has neither key cannot tell that from a forgery.
    (place / signing.KEY_FILE).unlink()
    assert "begins it again with another key" in problems(place)[0]


def test_a_key_is_replaced_by_an_entry_that_the_former_key_signs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    former, new = (place / signing.KEY_FILE).read_text().strip(), key()
    monkeypatch.setenv(KEY, new)
    with pytest.raises(ChainBroken, match=r"this process has .* put the key back, or replace it"):
        opened(place).take_over_key()
    monkeypatch.setenv(FORMER_KEY, former)
    opened(place).take_over_key()
    opened(place).take_over_key()
    monkeypatch.delenv(FORMER_KEY)
    promote(opened(place), 1, 2)
    found = opened(place).check_decisions()
    assert (found.problems, found.notes) == ([], [])
    assert [entry["what"] for entry in entries(place)[-3:]] == ["key", "written", "written"]
    signers = [entry["signer"] for entry in entries(place)]
    assert signers[-3] == signers[0] != signers[-1] == found.head.key if found.head else False
    # The former key is good for nothing any more.
    monkeypatch.setenv(KEY, former)
    with pytest.raises(ChainBroken):
        promote(opened(place), 2, 1)
    assert any("the key has to be" in problem for problem in problems(place))


def test_no_chain_begins_in_a_new_ledger_because_its_key_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, key())
    monkeypatch.setenv(FORMER_KEY, key())
    ledger = opened(tmp_path)
    ledger.migrate()
    ledger.take_over_key()
    # A backup that is restored now would not go on after an entry of another chain.
    assert not (tmp_path / signing.HEAD_FILE).exists()
    assert entries(tmp_path) == []


@pytest.mark.parametrize("text", ["short", "a" * 44, base64.b64encode(b"x" * 31).decode(), "ä" * 44])
def test_what_is_not_a_key_is_refused_by_name_and_not_quoted(text: str) -> None:
    with pytest.raises(SettingsError, match=f"{KEY} is not a key") as caught:
        Keys(None, {KEY: text}).known()
    assert text not in str(caught.value)


def test_a_person_can_accept_what_is_wrong_and_a_later_change_is_still_found(place: Path) -> None:
    attack(place, "UPDATE perennial_chain SET signature = '' WHERE number = 3", "UPDATE perennial_approvals SET words = 'no'")
    opened(place).begin_again(actor="ann", reason="repaired by hand")
    found = opened(place).check_decisions()
    assert found.problems == []
    assert "1 entries before it are wrong, which was accepted" in found.notes[0]
    attack(place, "UPDATE perennial_approvals SET words = 'yes'")
    assert len(problems(place)) == 1
    attack(place, "UPDATE perennial_chain SET signature = '' WHERE number IN (4, 5)")
    assert len(problems(place)) == 4


# --- how long it takes ------------------------------------------------------------------------------------------------


def test_a_model_is_checked_by_its_own_signatures_and_all_links(place: Path) -> None:
    attack(place, "UPDATE perennial_promotions SET version = 1 WHERE id = 2")
    ledger = opened(place)
    assert len(ledger.check_decisions(MODEL).problems) == 1
    assert ledger.check_decisions("another").problems == []
    attack(place, "DELETE FROM perennial_chain WHERE number = 4")
    assert len(ledger.check_decisions("another").problems) == 1


def test_thousands_of_decisions_are_checked_by_a_few_statements(place: Path) -> None:
    ledger = opened(place)
    with ledger._deciding(MODEL) as decisions:
        for _ in range(500):
            decisions.write(sa.update(tables.versions).where(tables.versions.c.version == 1).values(spec_digest="x"))
            decisions.write(sa.update(tables.promotions).values(reason="y"))
            decisions.write(sa.update(tables.approvals).values(words="z"))
    asked: list[str] = []
    sa.event.listen(ledger._database.engine, "before_cursor_execute", lambda *given: asked.append(given[2]))
    found = ledger.check_decisions()
    assert (found.problems, found.entries) == ([], 2_009)
    assert len(asked) < 50
