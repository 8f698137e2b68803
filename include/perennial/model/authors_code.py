"""Where the code of a model's authors runs, and where their stored models are loaded: in this process, or elsewhere.

Workers run it themselves. A process that decides must not: it would run with that process's rights. There, everything that
would run it is handed to a :class:`Place`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from perennial.spec.folder import ModelFolder
    from perennial.spec.types import Task


class Place(Protocol):
    """Runs it in another process, and gives only numbers and texts back."""

    def load(self, file: Path, trusted: Sequence[str]) -> Any:
        """A stored model as an estimator: it has ``classes_``, ``predict`` and ``predict_proba``."""

    def fit(
        self,
        folder: ModelFolder,
        name: str,
        params: Mapping[str, Any],
        frame: pd.DataFrame,
        truth: NDArray[Any],
        weight: NDArray[Any] | None,
    ) -> Any:
        """A fitted candidate of a folder, as an estimator."""

    def cost(self, folder: ModelFolder, truth: NDArray[Any], predicted: NDArray[Any]) -> NDArray[Any]:
        """What the cost function of the folder's ``model.py`` gives."""

    def behave(self, folder: ModelFolder, reference: str, task: Task, estimator: Any, frame: pd.DataFrame) -> str | None:
        """What a behaviour test of ``model.py`` says of an estimator that this place gave."""


_place: ContextVar[Place | None] = ContextVar("place", default=None)


def elsewhere() -> Place | None:
    """Where to run it instead of here; None: here."""
    return _place.get()


@contextmanager
def running_in(place: Place) -> Iterator[None]:
    """Within the block, the code of models runs in another place."""
    token = _place.set(place)
    try:
        yield
    finally:
        _place.reset(token)
