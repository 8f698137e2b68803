"""What a person sees of the scorer: its page in a real browser, on real scorers of small models."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import ConsoleMessage, Page, expect, sync_playwright

from perennial.core.intervals import Interval
from perennial.evidence.parity import Consistency, Parity
from perennial.serving.tokens import make_token
from tests.browsing import PALE, open_page
from tests.unit.serving.conftest import champion_of, running
from tests.unit.serving.test_lookup import asked_by_entity, asked_by_key

pytestmark = pytest.mark.browser

#: Fields without a label.
_UNNAMED = """() => [...document.querySelectorAll("input, select")]
  .filter(one => !one.labels.length || !one.labels[0].textContent).map(one => one.id)"""


@pytest.fixture(scope="module")
def page(chromium: str) -> Iterator[Page]:
    """A browser in which the page may not say anything to the console: neither an error nor a breach of its policy."""
    said: list[ConsoleMessage] = []
    broken: list[str] = []
    with sync_playwright() as playwright:
        page = open_page(playwright, chromium, patience=60)
        page.on("console", lambda message: said.append(message))
        page.on("pageerror", lambda error: broken.append(str(error)))
        yield page
        page.context.close()
    # A refusal of the scorer is told there too.
    assert [one.text for one in said if "Failed to load resource" not in one.text] == []
    assert broken == []


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of a scorer that is asked by features."""
    with running(champion_of(tmp_path_factory.mktemp("toy"))) as (_, client):
        yield client


@pytest.fixture(scope="module")
def by_entity(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of a scorer that is asked by entity too."""
    with running(asked_by_entity(tmp_path_factory.mktemp("entity"))) as (_, client):
        yield client


def answer(page: Page) -> str:
    expect(page.locator("#answer")).to_be_visible()
    return page.locator("#answer").inner_text()


def same_by_curl(page: Page) -> dict[str, object]:
    """What the command on the page gives."""
    words = shlex.split(page.locator("#answer pre").inner_text())
    said = json.loads(subprocess.run([*words, "--noproxy", "*"], capture_output=True, check=True).stdout)
    row: dict[str, object] = said["predictions"][0]
    return row


def test_a_model_is_tried_by_its_features_with_the_keyboard_alone(page: Page, toy: httpx.Client) -> None:
    page.goto(f"{toy.base_url}/")
    page.get_by_role("link", name="toy", exact=True).press("Enter")
    expect(page.get_by_role("heading", name="toy")).to_be_visible()
    expect(page.get_by_text("the probability of true, version 1, champion since")).to_be_visible()
    page.get_by_label("x", exact=True).fill("0.3")
    page.keyboard.press("Tab")
    page.keyboard.type("-1.25")
    page.get_by_label("kind").fill("a")
    page.keyboard.press("Enter")
    said = toy.post("/models/toy/predict", json={"features": [{"x": 0.3, "noise": -1.25, "kind": "a"}]}).json()
    assert str(said["predictions"][0]["prediction"]) in answer(page)
    assert same_by_curl(page) == said["predictions"][0]
    page.reload()
    expect(page.get_by_role("heading", name="toy")).to_be_visible()


def test_a_refusal_is_told_at_its_field_and_nothing_is_guessed(page: Page, toy: httpx.Client) -> None:
    page.goto(f"{toy.base_url}/models/toy")
    page.get_by_label("x", exact=True).fill("1,5")
    page.get_by_role("button", name="Ask").click()
    expect(page.get_by_role("alert")).to_have_text('row 0, x: "1,5" is not a number')
    expect(page.get_by_label("x", exact=True)).to_be_focused()
    expect(page.get_by_label("x", exact=True)).to_have_accessible_description('row 0, x: "1,5" is not a number')
    expect(page.locator("#answer")).to_be_hidden()
    page.get_by_label("x", exact=True).fill("9007199254740993")
    page.get_by_role("button", name="Ask").click()
    expect(page.get_by_role("alert")).to_contain_text("too large to be held exactly")
    page.goto(f"{toy.base_url}/models/%3Cimg%20src=x%3E")
    expect(page.get_by_role("alert")).to_contain_text("No model with a champion is named <img src=x>")


def test_classes_are_shown_with_their_probabilities(page: Page, tmp_path: Path) -> None:
    with running(champion_of(tmp_path, "multiclass_classification")) as (scorer, _):
        page.goto(f"http://127.0.0.1:{scorer.port}/models/toy")
        page.get_by_label("x", exact=True).fill("0.3")
        page.get_by_role("button", name="Ask").click()
        answer(page)
        shares = [float(one.split(" %")[0]) for one in page.locator("table.bars td:last-child").all_inner_texts()]
        assert len(shares) == 3
        assert sum(shares) == pytest.approx(100, abs=0.2)
        assert shares == sorted(shares, reverse=True)


def test_a_model_is_tried_by_key_with_a_feature_beside_it(page: Page, tmp_path: Path) -> None:
    with running(asked_by_key(tmp_path)) as (scorer, _):
        page.goto(f"http://127.0.0.1:{scorer.port}/models/toy")
        page.get_by_label("by key").check()
        page.locator("fieldset:visible").get_by_label("visit").fill("new")
        page.get_by_text("Replace stored features").click()
        page.locator("fieldset:visible").get_by_label("x", exact=True).fill("2")
        page.get_by_role("button", name="Ask").click()
        words = answer(page)
        assert re.search(r"stored\s+kind", words)
        assert re.search(r"given\s+x", words)
        # An hour when this module's rows were made, which may be long before.
        assert re.search(r"age\s+(\d+ min|\d+ h|\d+ days)", words)
        page.locator("fieldset:visible").get_by_label("visit").fill("nobody")
        page.get_by_role("button", name="Ask").click()
        expect(page.get_by_role("alert")).to_contain_text("no features are stored for this entity")


def test_a_model_is_tried_by_entity(page: Page, by_entity: httpx.Client) -> None:
    page.goto(f"{by_entity.base_url}/models/toy")
    page.get_by_label("by entity").check()
    form = page.locator("fieldset:visible")
    form.get_by_label("visit").fill("not known yet")
    form.get_by_label("moment").fill("2013-04-08T12:00:00Z")
    form.get_by_label("x", exact=True).fill("0.1")
    page.get_by_role("button", name="Ask").click()
    assert re.search(r"computed\s+x", answer(page))
    assert "2013-04-08 11:00 UTC" in answer(page)


def test_what_was_counted_is_shown_with_parity_and_its_day(page: Page, tmp_path: Path) -> None:
    world = asked_by_key(tmp_path)
    measured = Parity(
        bound=0.99, interval="2013-03-31", rows=200, equal=150, features={"x": Consistency(equal=150, different=50)}
    )
    ledger = world.deployment.ledger
    ledger.record_parity(model="toy", definition="d", interval=Interval.day("2013-03-31"), measured=measured, run_id="r")
    with running(world) as (scorer, client):
        page.goto(f"http://127.0.0.1:{scorer.port}/models/toy")
        figures = page.locator("#figures")
        expect(figures).to_contain_text("0 answered, 0 refused, 0 failed")
        client.post("/models/toy/predict", json={"keys": [{"visit": "nobody"}]})
        page.get_by_label("by key").check()
        page.locator("fieldset:visible").get_by_label("visit").fill("new")
        page.get_by_role("button", name="Ask").click()
        expect(figures).to_contain_text("1 answered, 1 refused, 0 failed")
        words = figures.inner_text()
        assert re.search(r"time, predict\s+p50 [\d.]+ m?s, p99 [\d.]+ m?s", words)
        assert re.search(r"age of stored features\s+p50 \d+ \w+, p99 \d+ \w+", words)
        assert re.search(r"fallbacks\s+none", words)
        assert "75.0 % of 200 rows with features of 2013-03-31 equal the published tables; 99.0 % are required" in words
        assert "x (50 different)" in words


def test_a_token_is_asked_for_and_is_forgotten_when_the_page_is_left(page: Page, tmp_path: Path) -> None:
    world = champion_of(tmp_path)
    token = make_token(world.settings.state / "tokens.json", "shop", ("toy",))
    with running(world) as (scorer, client):
        assert b"toy" not in client.get("/models/toy").content, "the page holds nothing of a model"
        assert client.get("/models").status_code == 401
        page.goto(f"http://127.0.0.1:{scorer.port}/")
        page.get_by_label("Token").fill(token)
        page.keyboard.press("Enter")
        page.get_by_role("link", name="toy", exact=True).click()
        page.get_by_label("x", exact=True).fill("1")
        page.get_by_role("button", name="Ask").click()
        assert token not in answer(page)
        assert "$PERENNIAL_SERVE_TOKEN" in answer(page)
        stored = "JSON.stringify([localStorage, sessionStorage, document.cookie])"
        assert page.evaluate(stored) == '[{},{},""]'
        page.reload()
        expect(page.get_by_label("Token")).to_have_value("")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_field_has_a_label_and_nothing_is_cut_off_on_a_small_screen(
    page: Page, by_entity: httpx.Client, scheme: str
) -> None:
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    page.set_viewport_size({"width": 480, "height": 900})
    page.goto(f"{by_entity.base_url}/models/toy")
    page.get_by_label("x", exact=True).first.fill("1")
    page.get_by_role("button", name="Ask").click()
    answer(page)
    assert page.locator("form input:visible").count() > 3
    assert page.evaluate(_UNNAMED) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate(PALE) == []
    page.emulate_media(color_scheme="light")
    page.set_viewport_size({"width": 1400, "height": 1000})
