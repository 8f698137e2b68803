"""Tokens are kept as hashes, have rights, and are changed without a restart."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from perennial.core.errors import NotAnswered, SettingsError
from perennial.serving.tokens import EVERY_MODEL, Tokens, make_token, read_tokens, revoke_tokens


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state" / "tokens.json"


def test_a_token_is_not_in_the_file_which_only_this_user_reads(file: Path) -> None:
    token = make_token(file, "shop", ("toy",))
    assert token not in file.read_text()
    assert token.removeprefix("perennial_") not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    [kept] = read_tokens(file) or []
    assert (kept.name, kept.models, kept.expires_at) == ("shop", ("toy",), "")


def test_a_token_asks_the_models_that_it_names(file: Path) -> None:
    tokens = Tokens(file, required=False)
    one, every = make_token(file, "shop", ("toy",)), make_token(file, "ops", (EVERY_MODEL,))
    for header, model, may in ((one, "toy", True), (one, "other", False), (every, "other", True)):
        found = tokens.check(f"Bearer {header}")
        assert found is not None
        assert found.may_ask(model) is may


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Bearer perennial_x", "Basic {token}", "{token}"])
def test_what_is_no_valid_token_is_refused(file: Path, header: str | None) -> None:
    token = make_token(file, "shop", ("toy",))
    with pytest.raises(NotAnswered) as refused:
        Tokens(file, required=False).check(header and header.format(token=token))
    assert refused.value.status == 401


def test_a_client_changes_its_token_without_a_gap_and_without_a_restart(file: Path) -> None:
    old = make_token(file, "shop", ("toy",))
    tokens = Tokens(file, required=False)
    new = make_token(file, "shop", ("toy",))
    assert tokens.check(f"Bearer {old}")
    assert tokens.check(f"bearer {new}")
    assert revoke_tokens(file, "shop", but_newest=True) == 1
    assert tokens.check(f"Bearer {new}")
    with pytest.raises(NotAnswered):
        tokens.check(f"Bearer {old}")


def test_a_token_expires(file: Path) -> None:
    token = make_token(file, "shop", ("toy",), days=-1)
    with pytest.raises(NotAnswered):
        Tokens(file, required=False).check(f"Bearer {token}")


def test_without_tokens_nobody_needs_one_until_there_is_one_and_then_for_ever(file: Path) -> None:
    tokens = Tokens(file, required=False)
    assert tokens.check(None) is None
    make_token(file, "shop", ("toy",))
    revoke_tokens(file, "shop")
    for _ in range(2):
        with pytest.raises(NotAnswered):
            tokens.check(None)
        file.unlink(missing_ok=True)


def test_where_others_can_reach_it_a_token_is_needed_from_the_start(file: Path) -> None:
    with pytest.raises(NotAnswered) as refused:
        Tokens(file, required=True).check(None)
    assert refused.value.status == 401


@pytest.mark.parametrize("text", ["", "1", "[1]", '[{"name": "shop"}]'])
def test_a_file_that_holds_no_tokens_lets_nobody_in(file: Path, text: str) -> None:
    token = make_token(file, "shop", ("toy",))
    file.write_text(text)
    with pytest.raises(NotAnswered) as refused:
        Tokens(file, required=False).check(f"Bearer {token}")
    assert refused.value.status == 503
    with pytest.raises(SettingsError, match="does not hold tokens"):
        make_token(file, "shop", ("toy",))


def test_a_file_that_others_can_change_lets_nobody_in(file: Path) -> None:
    token = make_token(file, "shop", ("toy",))
    file.chmod(0o666)
    with pytest.raises(NotAnswered) as refused:
        Tokens(file, required=False).check(f"Bearer {token}")
    assert refused.value.status == 503


@pytest.mark.parametrize("name", ["", "A", "a b", "a/b", "-a", "a" * 64])
def test_a_name_is_plain(file: Path, name: str) -> None:
    with pytest.raises(SettingsError, match="cannot name a token"):
        make_token(file, name, ("toy",))
