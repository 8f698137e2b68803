"""Whatever lies in a model's folder is an error of that folder, found soon: Airflow reads all folders for each DAG file."""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from perennial.core.errors import SpecError
from perennial.spec.folder import MAX_CODE, model_folders, read_model, read_models
from perennial.spec.problems import MAX_MESSAGES
from perennial.spec.strict_yaml import MAX_BYTES
from tests.unit.spec.late import GOOD, write

#: Of processor time. Far above what any of these takes, far below the 30 s that Airflow waits for a DAG file.
SECONDS = 5
MEGABYTES = 400


def _pipe(file: Path) -> None:
    os.mkfifo(file)


def _device(file: Path) -> None:
    file.symlink_to("/dev/zero")


def _directory(file: Path) -> None:
    file.mkdir()


def _loop(file: Path) -> None:
    file.symlink_to(file.name)


def _nowhere(file: Path) -> None:
    file.symlink_to("nowhere")


def _socket(file: Path) -> None:
    os.mknod(file, 0o600 | 0o140000)


def _huge(file: Path) -> None:
    with file.open("wb") as opened:
        opened.truncate(2 * 1024**3)


def _latin_1(file: Path) -> None:
    file.write_bytes(b"caf\xe9")


ODD: dict[Callable[[Path], None], str] = {
    _pipe: "not a regular file",
    _device: "not a regular file",
    _directory: "not a regular file",
    _socket: "not a regular file",
    _loop: "cannot be read: Too many levels of symbolic links",
    _nowhere: "cannot be read: No such file or directory",
    _huge: "larger than",
    _latin_1: "not UTF-8 at byte 3",
}


def error_of(models: Path, name: str = "hostile") -> str:
    """What is told of a folder, while the sound one beside it is read, soon and in little room."""
    write(models, GOOD)
    began, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    good, broken = read_models(models)
    assert time.process_time() - began < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEGABYTES * 1024
    assert list(good) == ["late"]
    assert list(broken) == [name]
    return str(broken[name])


@pytest.mark.parametrize("name", ["model.yaml", "features.sql", "model.py", "drift.yaml"])
@pytest.mark.parametrize("make", ODD, ids=lambda make: make.__name__.strip("_"))
def test_a_file_that_is_none_is_an_error_of_its_folder(make: Callable[[Path], None], name: str, tmp_path: Path) -> None:
    folder = write(tmp_path, GOOD.replace("name: late", "name: hostile"), name="hostile")
    (folder / name).unlink(missing_ok=True)
    make(folder / name)

    assert error_of(tmp_path).startswith(f"{folder / name}: {ODD[make]}")


LARGE = {
    "deep": ("a: " + "[" * 400_000, "nested deeper than 20 levels"),
    "many values": ("a: [" + "1," * 400_000 + "]", "more than 50,000 values"),
    "many mappings": ("a: [" + "{}," * 300_000 + "]", "more than 50,000 values"),
    "an anchor": ("a: &a [x]\nb: [" + "*a," * 200_000 + "]", "anchors and aliases"),
    "too large": ("# " + "x" * MAX_BYTES, "larger than 1,000,000 bytes"),
    "a long number": ("a: " + "9" * 900_000, "unknown key"),
}


@pytest.mark.parametrize("case", LARGE)
def test_what_would_take_long_is_given_up_early(case: str, tmp_path: Path) -> None:
    text, message = LARGE[case]
    write(tmp_path, text, name="hostile")

    assert message in error_of(tmp_path)


def test_of_very_many_problems_some_are_told(tmp_path: Path) -> None:
    write(tmp_path, "\n".join(f"k{n}: 1" for n in range(20_000)), name="hostile")

    told = error_of(tmp_path).splitlines()

    assert len(told) == MAX_MESSAGES + 1
    assert told[-1].endswith("more")


CODE = {
    "operators": "x = " + "-" * (MAX_CODE - 10) + "1",
    "attributes": "x = a" + ".b" * (MAX_CODE // 2 - 10),
    "sums": "x = " + "1+" * (MAX_CODE // 2 - 10) + "1",
    "brackets": "(" * 1000,
    "a long number": "x = " + "9" * (MAX_CODE - 10),
    "a NUL character": "x = '\0'",
    "too much": "#" * (MAX_CODE + 1),
}


@pytest.mark.parametrize("case", CODE)
def test_code_that_python_cannot_parse_is_an_error_of_its_folder(case: str, tmp_path: Path) -> None:
    folder = write(tmp_path, GOOD.replace("name: late", "name: hostile"), name="hostile", code=CODE[case])

    assert error_of(tmp_path).startswith(f"{folder / 'model.py'}:")


def test_the_worst_code_that_is_accepted_is_read_soon(tmp_path: Path) -> None:
    code = "x = f'" + "{a}" * (MAX_CODE // 3 - 10) + "'"
    write(tmp_path / "models", GOOD, code=code)

    began = time.process_time()
    good, _ = read_models(tmp_path / "models")

    assert list(good) == ["late"]
    assert time.process_time() - began < SECONDS


def test_code_is_not_run_whatever_it_would_do(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    code = f"import os\nos.fork()\nopen({str(mark)!r}, 'w')\nwhile True: bytes(2**30)\n"

    read_model(write(tmp_path / "models", GOOD, code=code))

    assert not mark.exists()


@pytest.fixture
def strangers_folder() -> Iterator[Path]:
    """Model folders that a user without rights may read."""
    place = Path(tempfile.mkdtemp())
    place.chmod(0o755)
    yield place
    shutil.rmtree(place)


@pytest.mark.parametrize("forbidden", ["", "model.yaml", "features.sql"])
def test_a_folder_that_may_not_be_read_is_an_error_until_it_may(forbidden: str, strangers_folder: Path) -> None:
    folder = write(strangers_folder, GOOD.replace("name: late", "name: hostile"), name="hostile")
    (folder / forbidden).chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # root may read everything
    try:
        _, broken = read_models(strangers_folder)
    finally:
        os.seteuid(user)

    assert "Permission denied" in str(broken["hostile"])
    (folder / forbidden).chmod(0o755)
    good, broken = read_models(strangers_folder)
    assert (list(good), broken) == (["hostile"], {})


def test_what_has_no_spec_is_no_model_and_no_folder_no_models(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "README.md").write_text("x")
    (tmp_path / "again").symlink_to(tmp_path)
    (tmp_path / "deep" / "/".join(["d"] * 500)).mkdir(parents=True)
    os.mkdir(os.fsencode(tmp_path) + b"/caf\xe9")
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")) / "model.yaml").write_text(GOOD)
    write(tmp_path, GOOD)

    assert [folder.name for folder in model_folders(tmp_path)] == ["late"]
    assert model_folders(tmp_path / "nowhere") == []
    with pytest.raises(SpecError, match="cannot be read: Not a directory"):
        model_folders(tmp_path / "README.md")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("schedules: {ingest: 99 99 * * *}", "99 99 * * * is not a cron expression"),
        ("schedules: {ingest: 0 0 30 2 *}", "0 0 30 2 * names a day that never comes"),
        ("schedules: {maintain: R 2 * * *}", "R 2 * * * is not a cron expression"),
        ("schedules: {maintain: H(1-3) 2 * * *}", "H(1-3) 2 * * * is not a cron expression"),
        ('card: {limits: ["\\0"]}', "a text with a NUL character"),
    ],
)
def test_what_airflow_or_its_database_would_refuse_is_refused_here(line: str, message: str, tmp_path: Path) -> None:
    write(tmp_path, f"{GOOD.replace('name: late', 'name: hostile')}{line}\n", name="hostile")

    assert message in error_of(tmp_path)


@pytest.mark.parametrize("cron", ["0 2 * * *", "*/5 * * * *", "0 2 * mar-oct fri", "0 0 L * *", "30 4 1,15 * 1-5"])
def test_a_schedule_that_airflow_takes_is_taken(cron: str, tmp_path: Path) -> None:
    assert read_model(write(tmp_path, f"{GOOD}schedules: {{maintain: '{cron}'}}\n")).spec.schedules.maintain == cron
