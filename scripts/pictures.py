"""Take the pictures of README and docs from a demo that has ended and still runs.

`make demo` in one terminal; when its summary is there, in another: `.venv/bin/python scripts/pictures.py`. It needs Chromium.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from perennial.core.settings import read_settings
from perennial.stack.embedded import find_running
from perennial.stack.environment import passwords_file

PROJECT = Path(__file__).resolve().parents[1]
IMAGES = PROJECT / "docs" / "images"
MODEL = "flight_delay"
SCORER = "http://127.0.0.1:8090"
#: Milliseconds in which a page draws what it has fetched. Others' pages do not say when they have.
SETTLED = 4_000


def main() -> None:
    settings = read_settings({"PERENNIAL_STATE": str(PROJECT / "var" / "demo")})
    addresses = find_running(settings.state)
    if addresses is None:
        raise SystemExit("no demo runs: start `make demo`, and wait for its summary")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.set_default_timeout(60_000)
        sign_in(page, addresses["airflow"], json.loads(passwords_file(settings).read_text())["admin"])
        take(page, f"{addresses['airflow']}/perennial/", "board", height=250)
        take(page, f"{addresses['airflow']}/perennial/models/{MODEL}", "model", height=1500)
        take(page, f"{addresses['airflow']}/dags?name_pattern={MODEL}", "airflow")
        take(page, f"{addresses['mlflow']}/#/models/{MODEL}?workflowType=machine_learning", "mlflow")
        take(page, f"{SCORER}/models/{MODEL}", "try", whole=True)
        browser.close()


def sign_in(page: Page, airflow: str, password: str) -> None:
    page.goto(airflow)
    page.fill("input[name=username]", "admin")
    page.fill("input[name=password]", password)
    page.get_by_role("button", name=re.compile("sign in", re.IGNORECASE)).click()
    page.wait_for_url(re.compile(re.escape(airflow) + "/(?!auth)"))


def take(page: Page, address: str, name: str, *, height: int = 900, whole: bool = False) -> None:
    page.set_viewport_size({"width": 1400, "height": height})
    page.goto(address)
    page.wait_for_timeout(SETTLED)
    for close in page.get_by_role("button", name="Close", exact=True).all():
        close.click()
    page.screenshot(path=IMAGES / f"{name}.png", full_page=whole)
    sys.stdout.write(f"wrote {IMAGES / name}.png\n")


if __name__ == "__main__":
    main()
