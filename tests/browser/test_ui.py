"""What a person sees: both UIs in a real browser, after the life of a small model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from tests.browsing import open_page
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
    expect(page.get_by_role("link", name=f"{MODEL}.score", exact=True).first).to_be_visible()
    assert f"name_pattern={MODEL}." in page.url


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
