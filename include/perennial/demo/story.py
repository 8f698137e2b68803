"""What people and sources do in the demo, week by week, besides what time does.

Nothing of it is special to the demo: a team changes its model's folder, a source delivers a wrong file and later the right
one, people trigger DAGs. The flights are real. The one invention is the wrong file, and :func:`misplace_delays` says what is
wrong with it.
"""

from __future__ import annotations

import csv
import gzip
import io
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perennial.core.files import replacing
from perennial.core.intervals import Interval

MODEL = "flight_delay"

#: The line of the example's ``model.yaml`` in whose place the demo's first recipes stand.
_EXAMPLE = "    search: {learning_rate: [0.05, 0.1]}\n"
#: The line of a baseline that the demo's team does not have: its first recipe would not beat it.
_BASELINE = "  logistic: {estimator: logistic_regression, baseline: true}\n"
#: What the team begins with: a small model.
FIRST: dict[str, Any] = {"max_iter": 10, "max_leaf_nodes": 6}


@dataclass(frozen=True)
class Week:
    """What happens in a week of the demo besides its data.

    Attributes:
        recipe: the parameters that the team commits before the week begins; an empty mapping: those of the example. None: the
            team commits nothing.
        spoiled: whether the source delivers misplaced delays; they are delivered again, right, after the week.
        train: why a person triggers a training after the week; None: nobody does.
        override: why a person makes the newest refused replacement champion after ``train``; None: nobody does.
        rollback: why a person rolls back after ``override``; None: nobody does.
        words: what happens, for people.
    """

    recipe: Mapping[str, Any] | None = None
    spoiled: bool = False
    train: str | None = None
    override: str | None = None
    rollback: str | None = None
    words: str = field(default="", kw_only=True)


#: By number of the week, from 1.
STORY: Mapping[int, Week] = {
    1: Week(
        recipe={"max_iter": 10, "max_leaf_nodes": 3},
        train="the team committed another recipe",
        override="we are sure that it is better",
        rollback="the gates were right: it is worse on the holdout",
        words="the team commits another recipe, with smaller trees",
    ),
    2: Week(
        recipe={},
        words="storms delay flights; the team commits a better recipe, that of the example: more, larger trees, and a search",
    ),
    3: Week(spoiled=True, words="the source delivers each arrival delay with another flight"),
}


def write_models(models: Path, example: Path, recipe: Mapping[str, Any]) -> None:
    """Write the demo's folder of models: the example with one of the demo's recipes.

    Args:
        models: the folder of model folders; made if need be.
        example: the example's folder.
        recipe: parameters of the candidate ``boosting``; empty: those of the example.

    Raises:
        ValueError: the example's ``model.yaml`` no longer has the lines that are replaced.
    """
    folder = models / MODEL
    shutil.copytree(example, folder, dirs_exist_ok=True)
    said = (example / "model.yaml").read_text(encoding="utf-8")
    for line in (_EXAMPLE, _BASELINE):
        if line not in said:
            raise ValueError(f"{example / 'model.yaml'} does not have the line {line.strip()}")
    said = said.replace(_BASELINE, "")
    if recipe:
        params = ", ".join(f"{name}: {value}" for name, value in recipe.items())
        said = said.replace(_EXAMPLE, f"    params: {{{params}}}\n")
    with replacing(folder / "model.yaml") as draft:
        draft.write_text(said, encoding="utf-8")


def misplace_delays(data: Path, interval: Interval) -> None:
    """Make the flights of these days wrong: each arrival delay stands with another flight, from half the interval later.

    Every value is one that a flight had, so no check of values can find it.
    """
    files = [data / "flights" / f"{day.key}.csv.gz" for day in interval.days()]
    days = [list(csv.reader(io.StringIO(gzip.decompress(file.read_bytes()).decode()))) for file in files]
    place = days[0][0].index("arr_delay")
    known = [row for _, *rows in days for row in rows if row[place] not in ("", "NA")]
    delays = [row[place] for row in known]
    for number, row in enumerate(known):
        row[place] = delays[(number + len(delays) // 2) % len(delays)]
    for file, rows in zip(files, days, strict=True):
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        with replacing(file) as draft:
            draft.write_bytes(gzip.compress(text.getvalue().encode(), compresslevel=6, mtime=0))
