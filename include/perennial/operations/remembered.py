"""The content of a model's folder after it was removed. Commands for history, lineage and maintenance still need it."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path

from perennial.core.errors import ArtifactRejected, SpecError, TrainingError
from perennial.deployment import Deployment
from perennial.registry.folders import open_folder
from perennial.spec.folder import ModelFolder, is_model_folder, read_model

log = logging.getLogger(__name__)


def remembered(parts: Deployment, model: str) -> ModelFolder:
    """The folder of a model.

    If the folder was removed, this is its content when the model was retired, or else when the newest version that kept it was
    trained. Then the folder's path may not exist: use only the content.

    Raises:
        SpecError: the folder is broken, or neither a retirement nor a version kept its content.
    """
    if is_model_folder(parts.settings.models / model):
        return parts.model(model)
    retired = parts.ledger.retirements(model)
    if retired and retired[-1].files:
        return _read(model, retired[-1].files)
    for record in reversed(parts.ledger.versions(model)):
        try:
            with open_folder(record, None, parts.registry, []) as folder:
                log.info("%s has no folder; the files of the training of version %d are used", model, record.version)
                return folder
        except (TrainingError, ArtifactRejected, SpecError) as error:
            log.info("the files of the folder of %s version %d are not known: %s", model, record.version, error)
    known = ", ".join(parts.ledger.models()) or "none"
    raise SpecError(
        f"{model} has no folder below {parts.settings.models}, and no retirement or version kept its files; "
        f"known models: {known}"
    )


def _read(model: str, files: Mapping[str, str]) -> ModelFolder:
    with tempfile.TemporaryDirectory(prefix="perennial-folder-") as scratch:
        place = Path(scratch) / model
        place.mkdir()
        for name, text in files.items():
            (place / name).write_text(text, encoding="utf-8")
        return read_model(place)
