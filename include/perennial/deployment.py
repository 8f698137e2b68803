"""One deployment: its ledger, lake and registry. The tasks and the command line work with it.

Neighbours: :mod:`perennial.core.settings` says where these parts are. Each part has its own module.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from perennial.core.errors import SpecError
from perennial.core.settings import Settings
from perennial.spec.folder import ModelFolder, is_model_folder, model_folders, read_model

if TYPE_CHECKING:
    from perennial.lake.publish import Lake
    from perennial.ledger.store import Ledger
    from perennial.registry.store import Registry


@dataclass(frozen=True)
class Deployment:
    """Ledger, lake and registry of one deployment. Each is opened at its first use."""

    settings: Settings

    @cached_property
    def ledger(self) -> Ledger:
        from perennial.ledger.store import Ledger

        return Ledger(self.settings.database_url, self.settings.state, read_only=self.settings.read_only)

    @cached_property
    def lake(self) -> Lake:
        from perennial.lake.publish import Lake

        return Lake(self.settings, self.ledger)

    @cached_property
    def registry(self) -> Registry:
        from perennial.registry.store import Registry

        return Registry(self.settings, self.ledger)

    def model(self, name: str) -> ModelFolder:
        """The folder of the model with this name.

        Raises:
            SpecError: there is no such folder, or it is broken.
        """
        folder = self.settings.models / name
        if folder.parent != self.settings.models or not is_model_folder(folder):
            there = ", ".join(other.name for other in model_folders(self.settings.models)) or "none"
            raise SpecError(f"no model is named {name}; there are: {there}")
        return read_model(folder)
