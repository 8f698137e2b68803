"""A scorer that is killed while rows are pushed to it loses none that it has confirmed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa

from perennial.core.settings import Settings
from tests.composed import free_port
from tests.unit.ingestion.test_pushed import ALONE, FIRST, Pushed, row, url

__all__ = ["url"]

#: Clients at once, and rows of a request.
CLIENTS, ROWS = 4, 3


@contextmanager
def process(settings: Settings) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A scorer in a process of its own, and its address."""
    port = free_port()
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PERENNIAL", "MLFLOW"))}
    environment = {
        **inherited,
        "PERENNIAL_STATE": str(settings.state),
        "PERENNIAL_MODELS": str(settings.models),
        "PERENNIAL_DATABASE_URL": settings.database_url,
        "PERENNIAL_CATALOG_URL": settings.catalog_url,
        "PERENNIAL_PREDICTIONS_URL": settings.predictions_url,
        "PERENNIAL_WAREHOUSE": str(settings.warehouse),
        "PERENNIAL_SERVE_PORT": str(port),
        "PERENNIAL_SERVE_DEADLINE": "60",
        "MLFLOW_TRACKING_URI": settings.mlflow_url,
    }
    run = subprocess.Popen([sys.executable, "-m", "perennial.cli", "serve"], env=environment)
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while True:
            assert run.poll() is None
            assert time.monotonic() < deadline
            try:
                if httpx.get(f"{address}/v2/health/live", trust_env=False).status_code == 200:
                    break
            except httpx.HTTPError:
                time.sleep(0.05)
        yield run, address
    finally:
        run.kill()
        run.wait()


class Load:
    """Clients that push without a pause until the scorer is gone, and note what it has confirmed."""

    def __init__(self, address: str, turn: int) -> None:
        self.confirmed: list[str] = []
        self._url, self._turn = f"{address}/models/shop/tables/orders", turn
        self._threads = [threading.Thread(target=self._push, args=(number,)) for number in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def _push(self, client: int) -> None:
        with httpx.Client(trust_env=False, timeout=60) as http:
            for number in range(100_000):
                keys = [f"{self._turn}-{client}-{number}-{place}" for place in range(ROWS)]
                try:
                    answer = http.post(self._url, json={"rows": [row(key, number) for key in keys]})
                except httpx.HTTPError:
                    return
                if answer.status_code != 200:
                    return
                assert answer.json()["accepted"] == ROWS
                self.confirmed += keys

    def wait_for(self, rows: int) -> None:
        while len(self.confirmed) < rows:
            assert any(thread.is_alive() for thread in self._threads)
            time.sleep(0.01)

    def join(self) -> list[str]:
        for thread in self._threads:
            thread.join(60)
        return self.confirmed


@pytest.mark.slow
def test_kill_9_of_a_scorer_under_load_loses_no_confirmed_row(tmp_path: Path, url: str | None) -> None:
    pushed = Pushed(tmp_path, url, **ALONE)
    confirmed: list[str] = []
    for turn in range(2):
        with process(pushed.shop.settings) as (run, address):
            load = Load(address, turn)
            load.wait_for(150 + 77 * turn)
            run.send_signal(signal.SIGKILL)
            run.wait()
            confirmed += load.join()

    with sa.create_engine(pushed.shop.settings.predictions_url).connect() as connection:
        texts = connection.execute(sa.text('SELECT "row" FROM pushed_rows')).scalars().all()
    stored = [json.loads(text)["id"] for text in texts]
    assert len(stored) == len(set(stored))
    assert set(confirmed) <= set(stored)
    # What was not confirmed is there as a whole, or not at all.
    assert len(stored) % ROWS == 0
    pushed.shop.ingest(FIRST)
    assert {key for key, _ in pushed.shop.rows()} == set(stored)
