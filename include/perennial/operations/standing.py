"""Whether the version in use can go on, and through which folder: what ``check``, ``verify`` and ``maintain`` tell of it.

Neighbours: :mod:`perennial.registry.folders` decides. :mod:`perennial.operations.agreement` compares the stores.
"""

from __future__ import annotations

from dataclasses import dataclass

from perennial.core.errors import PerennialError, VersionUnusable
from perennial.deployment import Deployment
from perennial.registry.folders import changed_label, computable, differences, own_folder
from perennial.spec.folder import ModelFolder

#: What happens to a model whose champion can never be used again.
WAY_OUT = (
    "days stay without predictions until the next training promotes a candidate, which must pass all gates that need no "
    "champion"
)


@dataclass(frozen=True)
class Standing:
    """Where the champion stands.

    Attributes:
        version: the champion.
        usable: whether it can predict; None if that is unknown, because something does not answer or the model was renamed.
        words: the same for people, without a full stop.
        reason: why it is not usable; empty if it is.
    """

    version: int
    usable: bool | None
    words: str
    reason: str = ""


def standing(parts: Deployment, model: str, folder: ModelFolder | None) -> Standing | None:
    """Where the champion of a model stands, with the folder as it is now.

    Args:
        parts: the deployment.
        model: the model's name.
        folder: the model's folder; None if it has none, so that only MLflow is asked.

    Returns:
        None if the model has no champion.
    """
    version = parts.ledger.champion(model)
    if version is None:
        return None
    called = f"version {version}, the champion,"
    try:
        parts.registry.load(model, version, spec=folder.spec if folder is not None else None)
        if folder is None:
            return Standing(version, True, f"{called} can predict")
        own = own_folder(parts.registry, version, folder)
        computable(own, None, None)
        label = changed_label(own)
    except VersionUnusable as error:
        return Standing(version, False, f"{called} is unusable: {error}: {WAY_OUT}", str(error))
    except PerennialError as error:
        return Standing(version, None, f"{called} cannot be used now: {error}", str(error))
    # Whatever MLflow's client raises if its server does not answer.
    except Exception as error:
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        return Standing(
            version, None, f"whether {called} can be used is unknown, since MLflow does not answer: {reason}", reason
        )
    told = f"{called} has the features of this folder"
    if not own.is_current:
        told = (
            f"{called} {', '.join(differences(own))}: it is scored and measured by its own kept folder until a new version is "
            "promoted"
        )
    return Standing(version, True, told if label is None else f"{told}; {label}")
