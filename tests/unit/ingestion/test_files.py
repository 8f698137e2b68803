"""Files are found by their pattern and opened safely; what is not a sound file is rejected with a clear error."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from perennial.core.errors import SourceError
from perennial.core.files import open_below
from perennial.core.intervals import Interval
from perennial.ingestion import casting, files, landing
from perennial.ingestion.files import BOMB_RATIO
from perennial.ingestion.sources import land
from tests.unit.landing import (
    FILE,
    GOOD,
    HEADER,
    at,
    ingest,
    no_connection,
    parquet,
    rejects,
    row,
    trips,
    typed,
    write,
    write_parquet,
)


def test_plain_text_named_gzip_is_accepted_with_a_notice(tmp_path: Path) -> None:
    write(tmp_path, HEADER + row(), "trips/2013-04-01.csv.gz")

    done = ingest(trips(tmp_path, source={"files": "trips/%Y-%m-%d.csv.gz"}), tmp_path)

    assert done.published == [GOOD]
    assert done.landed.notices == [
        "trips/2013-04-01.csv.gz: read as plain text: the content says so, although the name does not"
    ]


def test_gzip_of_several_members_is_read_whole(tmp_path: Path) -> None:
    content = gzip.compress((HEADER + row()).encode()) + gzip.compress(row("b").encode())
    write(tmp_path, content, "trips/2013-04-01.csv.gz")

    done = ingest(trips(tmp_path, source={"files": "trips/%Y-%m-%d.csv.gz"}), tmp_path)

    assert done.column("id") == ["a", "b"]


def test_the_same_name_with_new_content_is_another_file(tmp_path: Path) -> None:
    folder = trips(tmp_path)
    write(tmp_path, HEADER + row())
    first = ingest(folder, tmp_path)
    write(tmp_path, HEADER + row(n="2"))
    second = ingest(folder, tmp_path)

    assert first.column("n") == [1]
    assert second.column("n") == [2]
    assert first.landed.files[0]["name"] == second.landed.files[0]["name"] == FILE
    assert first.landed.files[0]["sha256"] != second.landed.files[0]["sha256"]


def test_the_same_content_under_a_new_name_is_read_once(tmp_path: Path) -> None:
    write(tmp_path, HEADER + row(), "trips/one.csv")
    write(tmp_path, HEADER + row(), "trips/two.csv")
    write(tmp_path, HEADER + row("b"), "trips/three.csv")

    done = ingest(trips(tmp_path, source={"files": "trips/*.csv"}), tmp_path)

    assert sorted(done.column("id")) == ["a", "b"]
    assert done.landed.notices == ["trips/two.csv: has the same content as trips/one.csv; read once"]


def test_yesterdays_content_under_todays_name_is_not_todays_data(tmp_path: Path) -> None:
    write(tmp_path, HEADER + row(), "trips/2013-04-01.csv")
    write(tmp_path, HEADER + row(), "trips/2013-04-02.csv")

    done = ingest(trips(tmp_path), tmp_path, Interval.of("2013-04-01", "2013-04-03"))

    assert done.result.refused
    assert done.faults["trips/2013-04-02.csv:2"][0].endswith(
        "lies outside the period of its file; if files may hold rows of earlier days, state `late` of the table"
    )


def test_a_missing_file_is_named_with_the_pattern_that_wants_it(tmp_path: Path) -> None:
    write(tmp_path, HEADER + row(), "trips/2013-03-31.csv")

    rejects(tmp_path, f"trips/2013-04-01.csv: there is no such file below {tmp_path / 'data'} (`files: trips/%Y-%m-%d.csv`")


def test_csv_named_parquet_is_rejected(tmp_path: Path) -> None:
    write(tmp_path, HEADER + row(), "trips/2013-04-01.parquet")

    rejects(tmp_path, "not Parquet, although its name says so", source={"files": "trips/%Y-%m-%d.parquet"})


def test_parquet_cut_is_rejected(tmp_path: Path) -> None:
    write(tmp_path, parquet(pa.table({"id": ["a"]}))[:-20], "trips/2013-04-01.parquet")

    rejects(tmp_path, "trips/2013-04-01.parquet: damaged Parquet", source={"files": "trips/%Y-%m-%d.parquet"})


def test_parquet_with_a_damaged_page_is_rejected(tmp_path: Path) -> None:
    content = bytearray(
        parquet(pa.table({name: [f"{name}{n}" for n in range(5000)] for name in ("id", "begun", "place", "n", "x")}))
    )
    content[1000:9000] = bytes(8000)
    write(tmp_path, bytes(content), "trips/2013-04-01.parquet")

    rejects(tmp_path, "trips/2013-04-01.parquet: damaged Parquet", source={"files": "trips/%Y-%m-%d.parquet"})


def test_a_file_name_that_cannot_be_shown_is_rejected(tmp_path: Path) -> None:
    write(tmp_path, HEADER + row(), "trips/\x1b[2Jgone.csv")

    rejects(tmp_path, "'trips/\\x1b[2Jgone.csv': the file name has characters", source={"files": "trips/*.csv"})


def test_a_zip_bomb_is_rejected_before_it_has_gone_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "BOMB_FROM", 1 << 20)
    write(tmp_path, gzip.compress((HEADER + row() * 200_000).encode()))

    rejects(tmp_path, f"{FILE}: it expands to more than {BOMB_RATIO} times its size")


def test_a_symbolic_link_out_of_the_data_folder_is_rejected(tmp_path: Path) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text(HEADER + row())
    (tmp_path / "data" / "trips").mkdir(parents=True)
    (tmp_path / "data" / FILE).symlink_to(secret)

    rejects(tmp_path, f"{FILE}: it leads out of the data folder")


def test_a_folder_that_is_a_link_out_of_the_data_folder_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "2013-04-01.csv").write_text(HEADER + row())
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "trips").symlink_to(tmp_path / "elsewhere")

    rejects(tmp_path, f"{FILE}: it leads out of the data folder")


def test_a_symbolic_link_within_the_data_folder_is_read(tmp_path: Path) -> None:
    write(tmp_path, HEADER + row(), "trips/delivered")
    (tmp_path / "data" / FILE).symlink_to("delivered")

    assert ingest(trips(tmp_path), tmp_path).published == [GOOD]


@pytest.mark.parametrize(
    ("make", "kind"),
    [(os.mkfifo, "FIFO"), (os.mkdir, "folder")],
    ids=["FIFO", "folder"],
)
def test_what_is_no_regular_file_is_rejected_without_waiting(make: Callable[[Path], None], kind: str, tmp_path: Path) -> None:
    (tmp_path / "data" / "trips").mkdir(parents=True)
    make(tmp_path / "data" / FILE)

    rejects(tmp_path, f"{FILE}: this is a {kind}, not a regular file")


def test_a_link_to_a_device_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "data" / "trips").mkdir(parents=True)
    (tmp_path / "data" / FILE).symlink_to("/dev/zero")

    rejects(tmp_path, f"{FILE}: it leads out of the data folder")


def test_a_pattern_does_not_match_through_a_link_out_of_the_data_folder(tmp_path: Path) -> None:
    (tmp_path / "elsewhere" / "inner").mkdir(parents=True)
    (tmp_path / "elsewhere" / "inner" / "secret.csv").write_text(HEADER + row())
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere")

    for pattern in ("*/inner/*.csv", "linked/inner/*.csv", "linked/*/secret.csv"):
        rejects(tmp_path, "linked/inner/secret.csv: it leads out of the data folder", source={"files": pattern})


def test_a_link_through_another_link_out_of_the_data_folder_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "secret.csv").write_text(HEADER + row())
    write(tmp_path, "", "trips/other")
    (tmp_path / "data" / "hop").symlink_to("..")
    (tmp_path / "data" / FILE).symlink_to("../hop/secret.csv")

    rejects(tmp_path, f"{FILE}: it leads out of the data folder")


@pytest.mark.parametrize("swap", ["file", "folder"])
def test_a_link_that_replaces_the_file_after_it_was_looked_at_is_not_followed(
    swap: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "elsewhere" / "2013-04-01.csv"
    secret.parent.mkdir()
    secret.write_text(HEADER + row("secret"))
    file = write(tmp_path, HEADER + row())

    def swap_and_open(root: Path, parts: Any) -> int:
        if swap == "file":
            file.unlink()
            file.symlink_to(secret)
        else:
            file.parent.rename(tmp_path / "aside")
            file.parent.symlink_to(secret.parent)
        return open_below(root, parts)

    monkeypatch.setattr(files, "open_below", swap_and_open)

    rejects(tmp_path, f"{FILE}: cannot be read: ")


def test_a_data_folder_that_is_a_link_itself_is_read(tmp_path: Path) -> None:
    write(tmp_path / "mounted", HEADER + row())
    (tmp_path / "data").symlink_to(tmp_path / "mounted" / "data")

    assert ingest(trips(tmp_path), tmp_path).published == [GOOD]


def test_a_file_that_changes_while_it_is_read_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path, HEADER + row())
    bind = casting.bind

    def append_and_bind(*arguments: Any) -> Any:
        with file.open("a") as stream:
            stream.write(row("b"))
        return bind(*arguments)

    monkeypatch.setattr(landing, "bind", append_and_bind)

    rejects(
        tmp_path, f"{FILE}: the file changed while it was read; write it under another name, and rename it when it is complete"
    )


# --- which files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "interval", "names"),
    [
        ("%Y.csv", Interval.of("2012-12-31", "2013-01-02"), ["2012.csv", "2013.csv"]),
        ("%Y/%m.csv", Interval.of("2012-12-15", "2013-02-01"), ["2012/12.csv", "2013/01.csv"]),
        ("%Y-%m-%d.csv", Interval.of("2013-02-28", "2013-03-02"), ["2013-02-28.csv", "2013-03-01.csv"]),
        ("%d-%H.csv", Interval.of("2013-04-01T22:30:00Z", "2013-04-02T00:00:01Z"), ["01-22.csv", "01-23.csv", "02-00.csv"]),
        ("%Y/%m/%d/part-?.csv", Interval.day("2013-04-01"), ["2013/04/01/part-1.csv", "2013/04/01/part-2.csv"]),
        ("100%25 [a].csv", Interval.day("2013-04-01"), ["100%25 [a].csv"]),
    ],
    ids=["years", "months", "days", "hours", "several a day", "no codes"],
)  # fmt: skip
def test_a_pattern_means_a_file_for_each_step_of_its_smallest_code(
    pattern: str, interval: Interval, names: list[str], tmp_path: Path
) -> None:
    for n, name in enumerate(names):
        write(tmp_path, HEADER + row(str(n)), name)
    write(tmp_path, HEADER + row("x"), "1999-01-01.csv")

    folder = trips(tmp_path, source={"files": pattern})
    landed = land(folder, "trips", interval, tmp_path / "out", data=tmp_path / "data", connect=no_connection)

    assert [file["name"] for file in landed.files] == names
    assert landed.rows == len(names)


# --- other file systems ----------------------------------------------------------------------------------------------


@pytest.fixture
def memory() -> Iterator[Any]:
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


def test_a_file_of_a_store_is_read(tmp_path: Path, memory: Any) -> None:
    memory.pipe("/bucket/2013-04-01.csv", (HEADER + row()).encode())
    memory.pipe("/bucket/2013-04-02.csv", (HEADER + row("b", at(6, 2))).encode())

    done = ingest(
        trips(tmp_path, source={"files": "memory://bucket/%Y-%m-%d.csv"}), tmp_path, Interval.of("2013-04-01", "2013-04-03")
    )

    assert done.column("id") == ["a", "b"]
    assert [file["name"] for file in done.landed.files] == [
        "memory:///bucket/2013-04-01.csv", "memory:///bucket/2013-04-02.csv",
    ]  # fmt: skip


def test_remote_parquet_and_patterns_are_read(tmp_path: Path, memory: Any) -> None:
    stream = io.BytesIO()
    pq.write_table(typed(), stream)
    memory.pipe("/bucket/one.parquet", stream.getvalue())

    done = ingest(trips(tmp_path, source={"files": "memory://bucket/*.parquet"}), tmp_path)

    assert done.column("begun") == [datetime(2013, 4, 1, 6, tzinfo=UTC)]
    assert done.landed.files[0]["sha256"] == hashlib.sha256(stream.getvalue()).hexdigest()


def test_a_remote_file_that_is_missing_is_rejected(tmp_path: Path, memory: Any) -> None:
    rejects(
        tmp_path, "memory://bucket/2013-04-01.csv: there is no such file (`files: memory://bucket/%Y-%m-%d.csv`",
        source={"files": "memory://bucket/%Y-%m-%d.csv"},
    )  # fmt: skip


def test_a_remote_file_that_changes_while_it_is_read_is_rejected(
    tmp_path: Path, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.pipe("/bucket/all.csv", (HEADER + row()).encode())
    bind = casting.bind

    def replace_and_bind(*arguments: Any) -> Any:
        memory.pipe("/bucket/all.csv", (HEADER + row() + row("b")).encode())
        return bind(*arguments)

    monkeypatch.setattr(landing, "bind", replace_and_bind)

    rejects(tmp_path, "changed while it was read", source={"files": "memory://bucket/all.csv"})


def test_an_address_without_its_file_system_is_rejected_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(SourceError) as raised:
        ingest(trips(tmp_path, source={"files": "oci://user:secret@host/%Y.csv"}), tmp_path)

    assert "oci://***@host/2013.csv: no file system for this address" in str(raised.value)
    assert "secret" not in str(raised.value)


# --- other formats, and columns of folders ---------------------------------------------------------------------------


def test_tsv_is_split_by_tabs(tmp_path: Path) -> None:
    write(tmp_path, (HEADER + row()).replace(",", "\t"), "trips/2013-04-01.tsv")

    assert ingest(trips(tmp_path, source={"files": "trips/%Y-%m-%d.tsv"}), tmp_path).published == [GOOD]


def zstd(content: str) -> bytes:
    return bytes(pa.compress(content.encode(), "zstd", asbytes=True))


def test_zstd_is_read_also_in_several_frames(tmp_path: Path) -> None:
    write(tmp_path, zstd(HEADER + row("a")) + zstd(row("b")), "trips/2013-04-01.csv.zst")

    done = ingest(trips(tmp_path, source={"files": "trips/%Y-%m-%d.csv.zst"}), tmp_path)

    assert done.column("id") == ["a", "b"]
    assert done.landed.notices == []


def test_zstd_that_is_cut_is_rejected(tmp_path: Path) -> None:
    content = zstd(HEADER + "".join(row(f"{n}") for n in range(2000)))
    write(tmp_path, content[: len(content) // 2], "trips/2013-04-01.csv.zst")

    rejects(tmp_path, "trips/2013-04-01.csv.zst: damaged or truncated zstd", source={"files": "trips/%Y-%m-%d.csv.zst"})


def test_a_zstd_bomb_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "BOMB_FROM", 1 << 20)
    write(tmp_path, zstd(HEADER + row() * 400_000), "trips/2013-04-01.csv.zst")

    rejects(tmp_path, "expands to more than 250 times its size", source={"files": "trips/%Y-%m-%d.csv.zst"})


HIVE = {"files": "trips/day=%Y-%m-%d/place=*/part-*.csv"}
PARTITIONED = {"day": {"type": "date"}, "place": {"type": "string", "nullable": True}}


def test_the_names_of_folders_give_columns(tmp_path: Path) -> None:
    lines = "id,begun,n,x\na,2013-04-01T06:00:00Z,1,0.5\n"
    for place in ("EWR", "S%C3%A3o%20Paulo", "__HIVE_DEFAULT_PARTITION__"):
        write(tmp_path, lines.replace("a,", f"{place[0]},"), f"trips/day=2013-04-01/place={place}/part-0.csv")

    done = ingest(trips(tmp_path, source=HIVE, columns=PARTITIONED), tmp_path)

    assert {(kept["id"], kept["place"], f"{kept['day']}") for kept in done.published} == {
        ("E", "EWR", "2013-04-01"), ("S", "São Paulo", "2013-04-01"), ("_", None, "2013-04-01"),
    }  # fmt: skip


def test_a_column_of_the_file_counts_more_than_its_folder(tmp_path: Path) -> None:
    write_parquet(tmp_path, typed(), "trips/place=LGA/day=2013-04-01/1.parquet")
    source = {"files": "trips/place=*/day=%Y-%m-%d/*.parquet"}

    done = ingest(trips(tmp_path, source=source, columns={"day": {"type": "date"}}), tmp_path)

    assert [(kept["place"], f"{kept['day']}") for kept in done.published] == [("EWR", "2013-04-01")]


def test_folders_that_the_table_does_not_mention_say_nothing(tmp_path: Path) -> None:
    write(tmp_path, HEADER + row(), "trips/region=eu/2013-04-01.csv")

    assert ingest(trips(tmp_path, source={"files": "trips/region=eu/%Y-%m-%d.csv"}), tmp_path).landed.notices == []
