"""No folder can make a deployment load a type that runs programs, and a reviewer can allow less than a folder names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from perennial.core.private_parts import TREE_TYPES
from perennial.spec.trust import may_never_be_trusted, reviewed_types
from tests.unit.spec.late import changed, problems, read

#: Types that models of usual libraries hold.
USUAL = [
    *TREE_TYPES, "numpy.dtype", "lightgbm.sklearn.LGBMClassifier", "lightgbm.basic.Booster", "xgboost.core.Booster",
    "catboost.core.CatBoostClassifier", "functools.partial", "sklearn.utils.validation.check_array", "collections.OrderedDict",
    "category_encoders.target_encoder.TargetEncoder", "imblearn.pipeline.Pipeline",
    "pandas.core.dtypes.dtypes.CategoricalDtype",
]  # fmt: skip
DANGEROUS = [
    "posix.system", "os.popen", "nt.system", "subprocess.Popen", "builtins.eval", "builtins.exec", "importlib.import_module",
    "ctypes.CDLL", "pickle.loads", "_pickle.loads", "socket.socket", "shutil.rmtree", "sys.exit", "runpy.run_path", "pty.spawn",
    "pandas.io.pickle.read_pickle", "pandas.read_pickle", "numpy.load", "joblib.load", "operator.methodcaller", "pathlib.Path",
    "sklearn.utils.os.system", "webbrowser.open", "urllib.request.urlopen", "perennial.core.settings.settings",
]  # fmt: skip


@pytest.mark.parametrize("name", DANGEROUS)
def test_a_folder_that_trusts_what_runs_programs_is_refused(name: str, tmp_path: Path) -> None:
    [problem] = problems(tmp_path, changed("label:", f"training: {{trusted_types: [a.Good, {name}]}}\nlabel:"))

    assert f"training.trusted_types.1: {name} may never be trusted" in problem


def test_types_of_usual_libraries_can_be_trusted(tmp_path: Path) -> None:
    assert [name for name in USUAL if may_never_be_trusted(name)] == []
    folder = read(tmp_path, changed("label:", f"training: {{trusted_types: [{', '.join(USUAL)}]}}\nlabel:"))
    assert folder.spec.training.trusted_types == USUAL


def test_the_real_name_of_os_system_is_one_of_those() -> None:
    assert may_never_be_trusted(f"{os.system.__module__}.system")


def test_a_reviewer_allows_types_by_name_or_module() -> None:
    named = ["lightgbm.basic.Booster", "lightgbm.sklearn.LGBMClassifier", "lightgbm_extra.Booster", "posix.system"]

    assert reviewed_types(named, None) == named[:3]
    assert reviewed_types(named, []) == []
    assert reviewed_types(named, ["lightgbm"]) == named[:2]
    assert reviewed_types(named, ["lightgbm.basic.Booster", "posix"]) == named[:1]
