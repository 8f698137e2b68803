"""The functions of a model folder's ``model.py``, which is imported once.

``model.py`` runs with the rights of the team that wrote it, and only where its functions are called. Reading a folder
(:mod:`perennial.spec.folder`) never runs it.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

from perennial.core.errors import SpecError
from perennial.spec.folder import ModelFolder

_lock = threading.RLock()


def folder_function(folder: ModelFolder, reference: str) -> Callable[..., Any]:
    """A function of the folder's ``model.py``.

    The text that was read with the spec is what runs, so the folder's digest covers it. To use an edited ``model.py``, read
    the folder again.

    Args:
        folder: the model's folder.
        reference: ``model:name``.

    Raises:
        SpecError: the file cannot be imported, or it defines no such function.
    """
    name = reference.removeprefix("model:")
    file = folder.path / "model.py"
    found = getattr(_module(folder), name, None)
    if not callable(found):
        raise SpecError(f"{file}: defines no function {name}, which model.yaml names as {reference}")
    return found  # type: ignore[no-any-return]  # no more than callable() can be known


def _module(folder: ModelFolder) -> ModuleType:
    # The name stays the same for a model, so that pickle finds its classes again.
    name = f"_perennial_model_{folder.spec.name}"
    file = str(folder.path / "model.py")
    with _lock:
        module = sys.modules.get(name)
        if module is not None and getattr(module, "_perennial_code", None) == (file, folder.code):
            return module
        module = ModuleType(name)
        module.__file__ = file
        previous = sys.modules.get(name)
        sys.modules[name] = module
        try:
            exec(compile(folder.code, file, "exec", dont_inherit=True), module.__dict__)  # noqa: S102  # the team's own code, by design
        except (Exception, SystemExit) as error:
            if previous is None:
                del sys.modules[name]
            else:
                sys.modules[name] = previous
            raise SpecError(f"{file}: importing it raised {type(error).__name__}: {error}") from error
        module.__dict__["_perennial_code"] = (file, folder.code)
        return module
