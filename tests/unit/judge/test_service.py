"""The judge's process: it answers, it notices who moves an alias, and it may be killed at any time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from perennial.core.errors import SettingsError
from perennial.core.settings import PROJECT
from perennial.deployment import Deployment
from perennial.judge.service import Judge, JudgeSettings, read_judge_settings
from perennial.ledger.proposals import Ruling
from perennial.operations.health import healthy
from perennial.registry.permissions import MOVED_BY
from tests.unit.monitored import World


class Running:
    """A judge in a process of its own, for a world."""

    def __init__(self, world: World) -> None:
        self.world, self.pulse = world, world.settings.state / "pulse"
        self.log = (world.settings.state / "judge.log").open("ab")
        settings = world.settings
        self.environment = {
            **os.environ,
            "PYTHONPATH": f"{PROJECT / 'include'}:{os.environ.get('PYTHONPATH', '')}",
            "PERENNIAL_STATE": str(settings.state), "PERENNIAL_MODELS": str(settings.models),
            "PERENNIAL_DATABASE_URL": settings.database_url, "PERENNIAL_CATALOG_URL": settings.catalog_url,
            "MLFLOW_TRACKING_URI": settings.mlflow_url, "PERENNIAL_PULSE": str(self.pulse),
        }  # fmt: skip
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "perennial.cli", "judge"]
        self.process = subprocess.Popen(command, env=self.environment, stdout=self.log, stderr=self.log)

    def said(self) -> str:
        return (self.world.settings.state / "judge.log").read_text()

    def wait_for(self, what: Callable[[], bool], patience: float = 120) -> None:
        deadline = time.monotonic() + patience
        while not what():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.05)

    def propose(self, step: str, key: str, stage: str, **said: object) -> int:
        return self.world.ledger.propose(
            key, model="toy", step=step, dag_id=f"toy.{stage}", run_id=key, said={**said, "actor": "airflow:ann"}
        )  # fmt: skip

    def ruled(self, proposal: int) -> Ruling:
        self.wait_for(lambda: self.world.ledger.ruling(proposal) is not None)
        found = self.world.ledger.ruling(proposal)
        assert found is not None
        return found


@pytest.fixture
def judge(world: World) -> Iterator[Running]:
    running = Running(world)
    yield running
    if running.process.poll() is None:
        for child in psutil.Process(running.process.pid).children(recursive=True):
            child.kill()
        running.process.kill()
    running.process.wait()
    running.log.close()


def test_it_answers_what_it_is_asked_and_ends_when_it_is_told_to(world: World, judge: Running) -> None:
    back = judge.propose("roll_back", "one", "rollback", form={"reason": "it is worse"})
    nothing = judge.propose("run_anything", "two", "train")
    assert judge.ruled(back).value["champion"] == 1
    assert judge.ruled(nothing).outcome == "failed"
    assert world.ledger.champion("toy") == 1
    assert healthy(str(judge.pulse))

    # Somebody moves the alias in MLflow: to a version that passed, and to one that nobody has registered.
    client = world.registry._client
    client.set_registered_model_tag("toy", MOVED_BY, "2 ann")
    client.set_registered_model_alias("toy", "champion", "2")
    judge.wait_for(lambda: world.ledger.champion("toy") == 2)
    newest = world.ledger.promotions("toy")[-1]
    assert (newest.action, newest.actor) == ("adopt", "mlflow:ann")
    foreign = client.create_model_version("toy", source="/tmp/nowhere")
    client.set_registered_model_alias("toy", "champion", foreign.version)
    judge.wait_for(lambda: world.registry.alias("toy") == 2)
    assert world.ledger.champion("toy") == 2
    assert [entry.alert.kind for entry in world.ledger.alerts()][-1] == "alias_put_back"

    judge.process.send_signal(signal.SIGTERM)
    assert judge.process.wait(timeout=60) == 0
    assert "Traceback" not in judge.said()


def test_a_judge_that_is_killed_takes_again_what_it_has_not_ruled_on(world: World, judge: Running) -> None:
    judge.wait_for(judge.pulse.exists)
    proposals = [judge.propose("roll_back", f"run {n}", "rollback", form={"reason": "worse", "version": 1}) for n in range(3)]
    judge.process.kill()
    judge.process.wait()
    judge.start()
    values = [judge.ruled(proposal).value for proposal in proposals]
    assert [value["champion"] for value in values] == [1, 1, 1]
    assert [made.version for made in world.ledger.promotions("toy")] == [1, 2, 1]


def test_who_may_not_promote_is_no_judge(world: World) -> None:
    deployment = Deployment(world.settings.model_copy(update={"may_promote": False}))
    with pytest.raises(SettingsError, match="PERENNIAL_MAY_PROMOTE is false"):
        Judge(deployment, JudgeSettings())


def test_an_unusable_setting_is_named() -> None:
    with pytest.raises(SettingsError, match=r"PERENNIAL_JUDGE_AT_ONCE: .*greater than or equal to 1"):
        read_judge_settings({"PERENNIAL_JUDGE_AT_ONCE": "0"})
