"""The example of an hourly regression lives from its file to a verdict, and does what its page says of local times."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import pytest
from threadpoolctl import threadpool_limits

from perennial.cli.starting import rehearse
from perennial.core.intervals import utc
from perennial.core.settings import PROJECT, Settings
from perennial.operations.inspection import find_faults, find_todos
from perennial.spec.folder import read_model

EXAMPLE = PROJECT / "examples" / "bike_demand"


def test_the_folder_has_no_faults_and_is_as_short_as_its_page_says() -> None:
    folder = read_model(EXAMPLE)
    assert [*find_faults(folder), *find_todos(folder)] == []
    page = (EXAMPLE / "README.md").read_text()
    spec, query = (len((EXAMPLE / name).read_text().splitlines()) for name in ("model.yaml", "features.sql"))
    assert f"\n{spec} lines of `model.yaml` and {query} of `features.sql`" in page


def test_the_data_are_shipped_whole_with_their_notice() -> None:
    with gzip.open(EXAMPLE / "hour.csv.gz", "rt") as rows:
        assert sum(1 for _ in rows) == 17_380
    page = (EXAMPLE / "README.md").read_text()
    for notice in ("CC BY 4.0", "Fanaee-T, H. and Gama, J.", "UCI Machine Learning Repository", "otherwise\nunchanged"):
        assert notice in page


@pytest.mark.slow
def test_the_example_lives_on_two_months_and_quarantines_the_hour_that_clocks_show_twice(
    settings: Settings, tmp_path: Path
) -> None:
    shutil.copytree(EXAMPLE, tmp_path / "models" / "bike_demand")
    spec = tmp_path / "models" / "bike_demand" / "model.yaml"
    shorter = {
        "window: 365d, holdout: 63d, validation: 28d": "window: 40d, holdout: 14d, validation: 7d",
        "max_iter: 300": "max_iter: 60",
    }
    for whole, part in shorter.items():
        assert whole in spec.read_text()
        spec.write_text(spec.read_text().replace(whole, part))
    place = settings.model_copy(update={"models": tmp_path / "models", "data": EXAMPLE})
    said: list[str] = []

    with threadpool_limits(1):
        assert rehearse(place, "bike_demand", utc("2011-12-01"), say=said.append)

    told = "\n".join(said)
    assert "quarantine 2, features" in told
    assert "No feature depends on data that were not known yet." in told
    assert "bike_demand version 1 is champion" in told
    page = (place.state / "try" / "bike_demand.html").read_text()
    assert "rmse of boosting" in page
