"""The chain of decisions: a signed entry for each write of a row that says which version is champion, or why.

An entry holds the hash of the row as it was written, and the hash of the entry before it. The judge alone has the key that
signs entries. So a row or an entry that was changed, removed, inserted or forged by others does not fit: :func:`check` names
it. What the hashes cannot show is an end that was cut off, rows and entries together. It shows where the newest entry was
written down: in the state folder (:mod:`perennial.ledger.signing`), in backups, or by a person.

The rows of :data:`PROTECTED` are written by :meth:`Decisions.write` alone, which appends the entry in the same transaction;
the database refuses others (:func:`guard`). Neighbour: :mod:`perennial.operations.agreement` tells what is found.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from perennial.core.database import take_turn
from perennial.core.errors import ChainBroken, LedgerDamaged
from perennial.ledger import tables
from perennial.ledger.signing import ChainHead, Keys, Signer, fingerprint, is_key, is_signed

#: The tables that say which version is champion, and why. ``alias_moves`` says who is at work, and ``rulings`` what a task was
#: answered: both are removed again.
PROTECTED = (tables.versions, tables.promotions, tables.approvals, tables.retirements)

#: What an entry says. ``begun`` and ``key`` name a key in ``about``: with this key, the chain begins (again), or goes on.
#: ``adopted``: the row was there when the chain began. ``written`` and ``removed``: the row was.
BEGUN, KEY, ADOPTED, WRITTEN, REMOVED = "begun", "key", "adopted", "written", "removed"

#: The revision of the ledger's schema that has the chain.
SINCE = "0008"

#: What the first entry has instead of the hash of the one before.
_NOTHING = "0" * 64
_NAMES = {table.name: table for table in PROTECTED}
_ALLOWED = "decision"


@dataclass(frozen=True)
class Checked:
    """The result of a check.

    Attributes:
        entries: how many entries the chain has.
        rows: how many rows of decisions were compared with it.
        head: the newest entry; None if the chain has not begun.
        trust: why the key in force is trusted.
        notes: what people should know, and what is no fault.
        problems: what was changed, removed, inserted or forged, and what to do.
    """

    entries: int
    rows: int
    head: ChainHead | None
    trust: str
    notes: list[str]
    problems: list[str]

    @property
    def words(self) -> str:
        """How much was compared, with which key, and the newest entry, as one sentence."""
        if self.head is None:
            return f"decisions: {self.rows} rows, {self.entries} signed entries; the chain has not begun"
        return (
            f"decisions: {self.rows} rows, {self.entries} signed entries; key {self.head.key} ({self.trust}); newest entry "
            f"{self.head}"
        )


class Decisions:
    """A transaction that writes decisions.

    Attributes:
        connection: for everything else that the transaction does.
        head: the newest entry that it has appended.
    """

    def __init__(self, connection: sa.Connection, keys: Keys) -> None:
        self.connection = connection
        self.head: ChainHead | None = None
        self._keys = keys
        self._signer: Signer | None = None

    def write(self, statement: sa.Insert | sa.Update | sa.Delete) -> Sequence[sa.RowMapping]:
        """Write rows of a protected table, and append an entry for each.

        Returns:
            The rows as they are now; those that were removed, as they were.

        Raises:
            ChainBroken: the chain is not as the judge has left it.
            SettingsError: this process has no key.
        """
        self.be_ready()
        if not isinstance(statement, sa.Insert):
            self._check_rows(statement)
        written = statement.returning(*statement.table.c).execution_options(**{_ALLOWED: True})
        rows = self.connection.execute(written).mappings().all()
        what = REMOVED if statement.is_delete else WRITTEN
        table = _NAMES[str(statement.table.description)]
        self._append([_of_row(what, table, row) for row in rows])
        return rows

    def require_sound(self, model: str) -> None:
        """Refuse to decide on records that others have changed.

        Raises:
            ChainBroken: a row of the model, or the chain, is not as the judge has written it.
        """
        self.be_ready()
        # The end is genuine, so by their links all entries are.
        if problems := check(self.connection, self._keys, model=model, signatures=False).problems:
            more = f"; and {len(problems) - 1} more" if len(problems) > 1 else ""
            raise ChainBroken(f"{model}: nothing is decided, since {problems[0]}{more}")

    def begin(self, *, actor: str, reason: str, over: str | None = None, known: int = 0) -> int:
        """Begin the chain, also where there is one: the rows that are there now are adopted.

        Args:
            actor: who asks for it.
            reason: why.
            over: an entry that is known from elsewhere and is given up, as ``NUMBER:HASH``.
            known: how many problems there are with the entries before, which the actor accepts.

        Returns:
            How many rows were adopted.
        """
        last = self._last()
        self._signer = self._keys.signer(make=True)
        self.head = head_of(last) if last is not None else None
        rows = [
            _of_row(ADOPTED, table, row)
            for table in PROTECTED
            for row in self.connection.execute(sa.select(table).order_by(*table.primary_key.columns)).mappings()
        ]
        about = {
            "actor": actor, "reason": reason, "key": self._signer.public, "known": known,
            "over": over,
        }  # fmt: skip
        self._append([_entry(BEGUN, "", "", about), *rows])
        return len(rows)

    def be_ready(self) -> None:
        """Wait for other writers of the chain, and make sure that it may be continued, with another key if one was given.

        Raises:
            ChainBroken, SettingsError: as in :meth:`write`.
        """
        if self._signer is not None:
            return
        try:
            last = self._last()
        except ValueError as error:
            raise ChainBroken(
                f"the newest entry of the chain of decisions cannot be read ({error}), so nothing is decided: run perennial "
                "verify, and see docs/operate.md, The record of decisions"
            ) from error
        if last is None:
            if self._keys.head() is not None or has_decisions(self.connection):
                raise ChainBroken(
                    "the chain of decisions was removed from the ledger, so nothing is decided: restore the ledger from a "
                    "backup. If you know why, run perennial verify --begin-again REASON"
                )
            self.begin(actor="perennial", reason="the first decision")
            return
        signer = self._keys.signer(make=False)
        in_force = _key_after(last)
        if in_force != signer.fingerprint:
            former = self._keys.former()
            if former is None or former.fingerprint != in_force:
                raise ChainBroken(
                    f"the decisions are signed with the key {in_force}, and this process has {signer.fingerprint}, so nothing "
                    "is decided: put the key back, or replace it as docs/operate.md says under Secrets"
                )
            self._check_end(last)
            self._signer = former
            self._append([_entry(KEY, "", "", {"key": signer.public})])
        else:
            self._check_end(last)
        self._signer = signer

    def take_over_key(self) -> None:
        """Go on with this process's key, if anything was decided. A new ledger has no chain yet: a restore begins with one.

        Raises:
            ChainBroken, SettingsError: as in :meth:`write`.
        """
        if has_decisions(self.connection) or self._last() is not None:
            self.be_ready()

    def _check_rows(self, statement: sa.Update | sa.Delete) -> None:
        """Refuse to write a row that others have changed: the entry of the write would make it genuine."""
        table, publics = _NAMES[str(statement.table.description)], _publics(self.connection)
        query = sa.select(table) if statement.whereclause is None else sa.select(table).where(statement.whereclause)
        for row in self.connection.execute(query).mappings().all():
            of_row = _of_row(WRITTEN, table, row)
            mine = (tables.chain.c.subject == table.name, tables.chain.c.about == of_row["about"])
            newest = sa.select(tables.chain).where(*mine).order_by(tables.chain.c.number.desc()).limit(1)
            entry = self.connection.execute(newest).mappings().one_or_none()
            if entry is None or entry["content"] != of_row["content"] or not _is_genuine(entry, publics):
                raise ChainBroken(
                    f"{_row_called(row['model'], table.name, of_row['about'])} is not as the judge has written it, so it was "
                    "left as it is: run perennial verify, and see docs/operate.md, The record of decisions"
                )

    def _check_end(self, last: Mapping[str, Any]) -> None:
        """Refuse to go on after an entry that the judge has not signed, or before one that is known from elsewhere."""
        self.head = head_of(last)
        if not _is_genuine(last, _publics(self.connection, before=last["number"])):
            raise ChainBroken(
                f"{_called(last)} was not written by the judge, so nothing is decided: run perennial verify, and see "
                "docs/operate.md, The record of decisions"
            )
        noted = known_elsewhere(self.connection, self._keys)
        if noted is not None and _hash_at(self.connection, noted.number) != noted.hash:
            raise ChainBroken(
                f"the decisions in the ledger end with entry {last['number']}, and entry {noted.number} that was made after "
                "that, or instead, is known from the state folder, so nothing is decided: run perennial verify"
            )

    def _last(self) -> dict[str, Any] | None:
        if self.connection.dialect.name == "postgresql":
            take_turn(self.connection, "perennial/chain")
        found = sa.select(tables.chain).order_by(tables.chain.c.number.desc()).limit(1)
        row = self.connection.execute(found).mappings().one_or_none()
        return None if row is None else dict(row)

    def _append(self, entries: Iterable[dict[str, Any]]) -> None:
        assert self._signer is not None
        number, previous = (self.head.number, self.head.hash) if self.head is not None else (0, _NOTHING)
        rows = []
        at = datetime.now(UTC)
        for entry in entries:
            number += 1
            row = {**entry, "number": number, "at": at, "previous": previous, "signer": self._signer.fingerprint}
            previous = row["hash"] = _hash(row)
            row["signature"] = self._signer.sign(number, previous)
            rows.append(row)
        if rows:
            self.connection.execute(sa.insert(tables.chain), rows)
            self.head = head_of(rows[-1])


def guard(engine: sa.Engine) -> None:
    """Let a protected table be written by :meth:`Decisions.write` only: no write can be forgotten in the chain."""

    @sa.event.listens_for(engine, "before_execute")
    def refuse(_: sa.Connection, statement: sa.Executable, __: object, ___: object, options: Mapping[str, Any]) -> None:
        writes = isinstance(statement, sa.Insert | sa.Update | sa.Delete) and statement.table.description in _NAMES
        if writes and not options.get(_ALLOWED):
            raise AssertionError(f"{statement} is written by Decisions.write only")


def head_of(entry: Mapping[str, Any]) -> ChainHead:
    """What is written down of the newest entry."""
    return ChainHead(entry["number"], entry["hash"], _key_after(entry), entry["signature"])


def known_elsewhere(connection: sa.Connection, keys: Keys) -> ChainHead | None:
    """The newest entry that was written down in the state folder; None if there is none, or the judge did not sign it."""
    noted = keys.head()
    if noted is None:
        return None
    publics = set(_publics(connection).values())
    if (own := keys.known()) is not None:
        publics.add(own.public)
    # Workers may be able to write there. What they write must not stop the judge.
    return noted if any(is_signed(public, noted.number, noted.hash, noted.signature) for public in publics) else None


def has_decisions(connection: sa.Connection) -> bool:
    """Whether a protected table has a row."""
    one = (sa.select(sa.literal(1)).select_from(table).limit(1) for table in PROTECTED)
    return any(connection.execute(query).first() is not None for query in one)


def newest_missing(connection: sa.Connection, heads: Sequence[str]) -> str | None:
    """Of entries that are known from elsewhere, the newest one that the ledger does not have."""
    missing = [head for head in heads if f"{_hash_at(connection, _number(head))}" != head.partition(":")[2]]
    return max(missing, key=_number, default=None)


def _number(head: str) -> int:
    return int(head.partition(":")[0])


def _publics(connection: sa.Connection, *, before: int | None = None) -> dict[str, str]:
    """The public keys that the chain names, by fingerprint; only those named before an entry, or by it as it begins."""
    chain = tables.chain.c
    query = sa.select(chain.about).where(chain.what.in_((BEGUN, KEY)))
    if before is not None:
        query = query.where((chain.number < before) | ((chain.number == before) & (chain.what == BEGUN)))
    return {fingerprint(key): key for about in connection.execute(query).scalars() if (key := _key_in(about)) is not None}


def _key_in(about: Any) -> str | None:
    """The public key that an entry names; None if it names none."""
    key = about.get("key") if isinstance(about, dict) else None
    return key if isinstance(key, str) and is_key(key) else None


def _is_genuine(entry: Mapping[str, Any] | sa.RowMapping, publics: Mapping[str, str]) -> bool:
    """Whether an entry is as one of these keys has signed it."""
    public = publics.get(entry["signer"])
    if public is None or entry["hash"] != _hash(entry):
        return False
    return is_signed(public, entry["number"], entry["hash"], entry["signature"])


# --- entries ---------------------------------------------------------------------------------------------------------


def _entry(what: str, model: str, subject: str, about: Mapping[str, Any], content: str = "") -> dict[str, Any]:
    return {"what": what, "model": model, "subject": subject, "about": dict(about), "content": content}


def _of_row(what: str, table: sa.Table, row: sa.RowMapping) -> dict[str, Any]:
    key = {column.name: _plain(row[column.name]) for column in table.primary_key.columns}
    return _entry(what, row["model"], table.name, key, "" if what == REMOVED else _content(table, row))


def _content(table: sa.Table, row: sa.RowMapping) -> str:
    """The hash of a row.

    Empty values are left out: a later revision of the schema can add a column with such values, and no hash changes.
    """
    values = {column.name: _plain(row[column.name]) for column in table.columns}
    return _digest({name: value for name, value in values.items() if value is not None and value != {}})


def _hash(entry: Mapping[str, Any] | sa.RowMapping) -> str:
    names = ("number", "at", "what", "model", "subject", "about", "content", "previous", "signer")
    return _digest({name: _plain(entry[name]) for name in names})


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value


def _key_after(entry: Mapping[str, Any]) -> str:
    """The fingerprint of the key in force after an entry."""
    key = _key_in(entry["about"]) if entry["what"] == KEY else None
    return str(entry["signer"]) if key is None else fingerprint(key)


def _hash_at(connection: sa.Connection, number: int) -> str | None:
    return connection.execute(sa.select(tables.chain.c.hash).where(tables.chain.c.number == number)).scalar_one_or_none()


def _called(entry: Mapping[str, Any]) -> str:
    row = f" ({_row_called(entry['model'], entry['subject'], entry['about'])})" if entry["subject"] in _NAMES else ""
    return f"entry {entry['number']} of the chain{row}"


def _row_called(model: str, subject: str, key: Any) -> str:
    key = key if isinstance(key, dict) else {}
    kind = subject.removeprefix("perennial_").removesuffix("s")
    values = (str(key.get(column.name)) for column in _NAMES[subject].primary_key.columns if column.name != "model")
    return f"{model}: {kind} {', '.join(values)}"


# --- the check -------------------------------------------------------------------------------------------------------

_RESTORE = "find out who can write to the ledger's database, and restore it from a backup"


def check(
    connection: sa.Connection,
    keys: Keys,
    *,
    model: str | None = None,
    noted: Sequence[str] = (),
    signatures: bool = True,
) -> Checked:
    """Compare the rows of decisions with the chain, and the chain with itself and with what is known of it elsewhere.

    Args:
        connection: a transaction that reads.
        keys: what this process knows.
        model: compare the rows and signatures of this model only, beside the links of all entries, the newest signature and
            each change of the key; None: compare everything.
        noted: entries that are known from elsewhere, such as from a backup: ``NUMBER:HASH``.
        signatures: False: of signatures, only the newest and each change of the key.
    """
    try:
        return _check(connection, keys, model, noted, signatures)
    except (ValueError, LedgerDamaged) as error:  # no moment, or no JSON
        told = f"a value in the record of decisions cannot be read ({error}), and the judge did not write it: {_RESTORE}"
        return Checked(0, 0, None, "", [], [told])


def _check(connection: sa.Connection, keys: Keys, model: str | None, noted: Sequence[str], signatures: bool) -> Checked:
    entries = [dict(row) for row in connection.execute(sa.select(tables.chain).order_by(tables.chain.c.number)).mappings()]
    if not entries:
        missing = []
        if noted or has_decisions(connection):
            missing.append(
                "the ledger has decisions, but no chain of them: it was removed. Restore the ledger from a backup; if you know "
                "why, run perennial verify --begin-again REASON"
            )
        return Checked(0, 0, None, "", [], missing)
    publics = _publics(connection)
    begun = [place for place, entry in enumerate(entries) if entry["what"] == BEGUN and _is_genuine(entry, publics)]
    began = begun[-1] if begun else 0
    before: list[str] = []
    faults: list[str] = []
    for place, problem in _faults(entries, lambda entry: signatures and model in (None, entry["model"])):
        (before if place < began else faults).append(problem)
    notes = list(_notes(entries, began, before)) if begun else []
    if before and len(before) > entries[began]["about"]["known"]:
        faults = before + faults
    rows, differences = _compare(connection, entries[began:], model)
    key = _key_after(entries[-1])
    expected, trust = keys.expected()
    if expected is not None and fingerprint(expected) != key:
        faults.append(
            f"the decisions are signed with the key {key}, but the key has to be {fingerprint(expected)}, since {trust}: if "
            f"nobody has replaced it, {_RESTORE}"
        )
    elif expected is None and began and entries[began]["signer"] != _key_after(entries[began - 1]):
        faults.append(
            f"{_called(entries[began])} begins it again with another key, and nothing here tells whether that is the judge's: "
            "check with the service that promotes"
        )
    for head in noted:
        told = _of_head(entries, [entries[place] for place in begun], head)
        if told is not None:
            (notes if told[0] else faults).append(told[1])
    trusted = trust.format(public=publics.get(key, "?"))
    return Checked(len(entries), rows, head_of(entries[-1]), trusted, notes, faults + differences)


def _faults(
    entries: Sequence[Mapping[str, Any]], check_signature: Callable[[Mapping[str, Any]], bool]
) -> Iterator[tuple[int, str]]:
    """What is wrong with entries: the place of each in the list, and a sentence."""
    number, previous = 0, _NOTHING
    public: str | None = None
    for place, entry in enumerate(entries):
        if entry["number"] != number + 1:
            lost = f"{number + 1}" if entry["number"] == number + 2 else f"{number + 1} to {entry['number'] - 1}"
            yield place, f"entry {lost} of the chain was removed: {_RESTORE}"
        elif entry["previous"] != previous:
            yield place, f"{_called(entry)} does not follow entry {number}: one of the two was changed or moved; {_RESTORE}"
        number, previous = entry["number"], entry["hash"]
        if entry["hash"] != _hash(entry):
            yield place, f"{_called(entry)} was changed after it was signed: {_RESTORE}"
        if entry["what"] == BEGUN:
            public = _key_in(entry["about"])
        seen = entry["what"] in (BEGUN, KEY) or place == len(entries) - 1 or check_signature(entry)
        if seen and not (
            public is not None
            and entry["signer"] == fingerprint(public)
            and is_signed(public, number, entry["hash"], entry["signature"])
        ):
            yield place, f"{_called(entry)} is forged: the judge's key did not sign it; {_RESTORE}"
        elif entry["what"] == KEY:
            public = _key_in(entry["about"])


def _notes(entries: Sequence[Mapping[str, Any]], began: int, before: Sequence[str]) -> Iterator[str]:
    entry = entries[began]
    adopted = sum(1 for other in entries[began:] if other["what"] == ADOPTED)
    said = entry["about"]
    words = f"{entry['at']:%Y-%m-%d %H:%M} UTC by {said['actor']}: {said['reason']}"
    if began:
        over = f", and gave up the entries to {said['over'].partition(':')[0]}" if said["over"] else ""
        wrong = f" {len(before)} entries before it are wrong, which was accepted." if before else ""
        yield f"the chain was begun again on {words}; it adopted {adopted} rows as they were then{over}.{wrong}"
    elif adopted:
        yield f"the chain was begun on {words}; {adopted} rows were there before it, and are adopted as they were then"


def _compare(connection: sa.Connection, entries: Sequence[Mapping[str, Any]], model: str | None) -> tuple[int, list[str]]:
    """Compare rows with the newest entry of each. Returns how many rows were compared, and what differs."""
    newest: dict[tuple[str, str], Mapping[str, Any]] = {}
    for entry in entries:
        if entry["subject"] in _NAMES and model in (None, entry["model"]):
            newest[entry["subject"], json.dumps(entry["about"], sort_keys=True)] = entry
    count, problems = 0, []
    for table in PROTECTED:
        query = sa.select(table).order_by(*table.primary_key.columns)
        for row in connection.execute(query if model is None else query.where(table.c.model == model)).mappings():
            count += 1
            now_is = _of_row(WRITTEN, table, row)
            of_row = (table.name, json.dumps(now_is["about"], sort_keys=True))
            last = newest.pop(of_row) if of_row in newest else None
            name = _row_called(row["model"], table.name, now_is["about"])
            if last is None or last["what"] == REMOVED:
                problems.append(f"{name} was inserted into the ledger, and the judge did not write it: {_RESTORE}")
            elif last["content"] != now_is["content"]:
                written = f"entry {last['number']}, {last['at']:%Y-%m-%d %H:%M} UTC"
                problems.append(f"{name} was changed in the ledger after the judge wrote it ({written}): {_RESTORE}")
    problems += [
        f"{_row_called(entry['model'], entry['subject'], entry['about'])} was removed from the ledger (entry "
        f"{entry['number']}, {entry['at']:%Y-%m-%d %H:%M} UTC): {_RESTORE}"
        for entry in newest.values()
        if entry["what"] != REMOVED
    ]
    return count, problems


def _of_head(entries: Sequence[Mapping[str, Any]], begun: Sequence[Mapping[str, Any]], head: str) -> tuple[bool, str] | None:
    """What an entry that is known from elsewhere tells: whether all is well, and a sentence; None if it is in the chain."""
    text, _, digest = head.partition(":")
    number = int(text)
    if any(entry["number"] == number and entry["hash"] == digest for entry in entries):
        return None
    given_up = [entry for entry in begun if _number(entry["about"]["over"] or "0:") >= number]
    if given_up:
        return True, f"entry {number}, which is known from elsewhere, was given up by entry {given_up[-1]['number']}"
    return False, (
        f"entry {number} of the chain ({digest[:12]}) is known from elsewhere, and the ledger, whose newest entry is "
        f"{entries[-1]['number']}, does not have it: decisions were removed, or an older backup was restored. After a restore, "
        f"run perennial verify --settle; otherwise {_RESTORE}"
    )
