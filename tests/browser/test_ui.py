"""What a person sees: both UIs in a real browser, after the life of a small model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta

import pytest
from playwright.sync_api import ConsoleMessage, Page, expect, sync_playwright

from tests.browsing import PALE, open_page
from tests.e2e.test_approval import ASKED, done, load_history, train
from tests.living import MODEL, STAGES, Living

pytestmark = [pytest.mark.browser, pytest.mark.stack]


@pytest.fixture(scope="module")
def page(living: Living, chromium: str) -> Iterator[Page]:
    """A browser that is signed in to Airflow."""
    with sync_playwright() as playwright:
        page = open_page(playwright, chromium, patience=60)
        page.goto(living.stack.airflow_url)
        page.fill("input[name=username]", "admin")
        page.fill("input[name=password]", living.stack.password)
        page.get_by_role("button", name=re.compile("sign in", re.IGNORECASE)).click()
        page.wait_for_url(re.compile(re.escape(living.stack.airflow_url) + "/(?!auth)"))
        yield page
        page.context.close()


def test_airflow_lists_every_stage_of_the_model(living: Living, page: Page) -> None:
    page.goto(f"{living.stack.airflow_url}/dags?name_pattern={MODEL}")
    for stage in STAGES:
        expect(page.get_by_role("link", name=f"{MODEL}.{stage}", exact=True).first).to_be_visible()


def test_the_model_board_shows_every_model_and_leads_out_of_its_frame(living: Living, page: Page) -> None:
    page.goto(living.stack.airflow_url)
    page.get_by_role("link", name="Models", exact=True).click()
    board = page.frame_locator("iframe[title=Models]")
    row = board.get_by_role("row", name=re.compile(rf"^{MODEL} "))
    # Other tests may have gone on with the model's life.
    ledger = living.deployment.ledger
    until = max(made.interval.end for made in ledger.publications(MODEL, "features")) - timedelta(days=1)
    expect(row.get_by_role("cell").nth(2)).to_contain_text(f"{until.day} {until:%b %Y}")
    expect(row.get_by_role("cell").nth(1)).to_contain_text(f"v{ledger.champion(MODEL)}")
    expect(row.locator("svg polyline, svg circle").first).to_be_visible()
    board.get_by_placeholder("Filter by any word").fill(f"{MODEL} v{ledger.champion(MODEL)}")
    expect(board.locator("tbody tr:visible")).to_have_count(1)
    with page.context.expect_page() as opened:
        row.locator("a.pill").first.click()
    report = opened.value
    expect(report.get_by_role("heading", name=re.compile(f"{MODEL}, 2024"))).to_be_visible()
    assert "/perennial/reports/" in report.url
    report.close()
    row.get_by_role("link", name=MODEL, exact=True).click()
    expect(board.get_by_role("heading", name=MODEL, exact=True)).to_be_visible()
    board.get_by_role("link", name="its DAGs", exact=True).click()
    expect(page.get_by_role("link", name=f"{MODEL}.score", exact=True).first).to_be_visible()
    assert f"name_pattern={MODEL}." in page.url


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 480])
def test_the_page_of_a_model_is_whole_and_readable_on_every_screen(living: Living, page: Page, width: int, scheme: str) -> None:
    said: list[str] = []

    def hear(message: ConsoleMessage) -> None:
        said.append(message.text)

    page.on("console", hear)
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    page.set_viewport_size({"width": width, "height": 1000})
    page.goto(f"{living.stack.airflow_url}/perennial/models/{MODEL}")
    try:
        for part in ("What to do now", "Performance", "Drift", "Data", "Champions", "Versions", "Alerts", "Retraining"):
            expect(page.get_by_role("heading", name=part, exact=True)).to_be_visible()
        expect(page.locator(f"svg.chart.{'wide' if width > 700 else 'narrow'}")).to_be_visible()
        expect(page.locator("svg.chart:visible")).to_have_count(1)
        expect(page.locator("table.heat td a:visible").first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.evaluate(PALE) == []
        assert said == []
    finally:
        page.remove_listener("console", hear)
        page.emulate_media(color_scheme="light")
        page.set_viewport_size({"width": 1400, "height": 1000})


def test_a_task_leads_to_the_page_of_its_model_and_a_cell_to_the_report_of_its_window(living: Living, page: Page) -> None:
    run = living.runs("monitor")[0]
    page.goto(f"{living.stack.airflow_url}/dags/{MODEL}.monitor/runs/{run.run_id}/tasks/judge_drift/details")
    link = page.get_by_role("link", name="Model", exact=True)
    expect(link).to_be_visible()
    page.goto(str(link.get_attribute("href")))
    with page.context.expect_page() as opened:
        page.locator("table.heat td a:visible").last.click()
    expect(opened.value.get_by_role("heading", name=re.compile(f"{MODEL}, 2024"))).to_be_visible()
    opened.value.close()


def test_a_run_has_a_note_of_what_came_of_it(living: Living, page: Page) -> None:
    run = living.runs("monitor")[0]
    answer = page.request.get(f"{living.stack.airflow_url}/api/v2/dags/{MODEL}.monitor/dagRuns/{run.run_id}")
    assert re.search(r"2024: (ok|drift|unknown|a training)", answer.json()["note"])


def test_the_dag_page_tells_what_to_do_when_it_fails(living: Living, page: Page) -> None:
    page.goto(f"{living.stack.airflow_url}/dags/{MODEL}.ingest")
    page.get_by_role("button", name=re.compile("dag docs", re.IGNORECASE)).first.click()
    expect(page.get_by_role("heading", name="When it fails")).to_be_visible()


def test_the_rollback_form_asks_for_a_reason(living: Living, page: Page) -> None:
    page.goto(f"{living.stack.airflow_url}/dags/{MODEL}.rollback")
    page.get_by_role("button", name=re.compile("trigger", re.IGNORECASE)).first.click()
    expect(page.get_by_text("Reason").first).to_be_visible()
    expect(page.get_by_text("Empty: the champion before this one.").first).to_be_visible()


def test_a_fitted_candidate_links_to_its_mlflow_run(living: Living, page: Page) -> None:
    run = living.runs("train")[0]
    page.goto(f"{living.stack.airflow_url}/dags/{MODEL}.train/runs/{run.run_id}/tasks/fit_candidate/mapped/0/details")
    link = page.get_by_role("link", name="MLflow", exact=True)
    expect(link).to_be_visible()
    assert (link.get_attribute("href") or "").startswith(f"{living.stack.mlflow_url}/#/experiments/")


def test_a_verdict_links_to_its_report(living: Living, page: Page) -> None:
    run = living.runs("monitor")[0]
    page.goto(f"{living.stack.airflow_url}/dags/{MODEL}.monitor/runs/{run.run_id}/tasks/judge_drift/details")
    link = page.get_by_role("link", name="Report", exact=True)
    expect(link).to_be_visible()
    assert (link.get_attribute("href") or "").endswith("/report.html")


def test_mlflow_shows_versions_and_the_champion(living: Living, page: Page) -> None:
    page.goto(f"{living.stack.mlflow_url}/#/models/{MODEL}")
    expect(page.get_by_text("champion").first).to_be_visible()


def test_mlflow_shows_the_plots_of_a_candidate(living: Living, page: Page) -> None:
    record = living.deployment.ledger.versions(MODEL)[0]
    run = living.deployment.registry.run_url(record.mlflow_run_id)
    assert run is not None
    page.goto(run.replace("?", "/artifacts?"))
    page.get_by_text("validation", exact=False).last.click()
    expect(page.get_by_text(re.compile(r"residuals.*\.png")).first).to_be_visible()


def test_a_version_is_approved_on_a_page_that_compares_it_with_the_champion(living: Living, page: Page) -> None:
    load_history(living, ASKED)
    waiting = train(living, ASKED, "2024-01-17")
    page.goto(f"{living.stack.airflow_url}/dags/{waiting.dag_id}/runs/{waiting.run_id}/tasks/ask_approval/required_actions")
    version = living.deployment.ledger.versions(ASKED)[-1].version
    expect(page.get_by_text(f"Make version {version} the champion of {ASKED}?").first).to_be_visible()
    expect(page.get_by_role("cell", name="rmse", exact=True)).to_be_visible()
    expect(page.get_by_role("link", name="Model card")).to_be_visible()
    page.locator("#element_words").fill("seen in a browser")
    page.get_by_role("button", name="Approve").click()
    assert done(living, waiting).state == "success"
    assert living.deployment.ledger.approvals(ASKED, version)[-1].words == "seen in a browser"
    assert living.deployment.registry.champion(ASKED) == version


def test_the_servers_answer_on_the_loopback_address_alone(living: Living) -> None:
    import psutil

    ports = {living.stack.ports.airflow, living.stack.ports.mlflow, living.stack.ports.execution}
    listening = {
        (connection.laddr.ip, connection.laddr.port)
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port in ports
    }
    assert listening == {("127.0.0.1", port) for port in ports}
