"""A stored model is loaded only if it is exactly what was registered; whatever else lies there is never run."""

from __future__ import annotations

import ast
import json
import os
import pickle
import shutil
import sys
import textwrap
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import skops.io
import yaml
from mlflow import MlflowClient
from sklearn.preprocessing import FunctionTransformer

from perennial.core.errors import ArtifactRejected, ScoringError, TrainingError
from perennial.core.settings import PROJECT, Settings
from perennial.ledger.records import VersionRecord
from perennial.ledger.store import Ledger
from perennial.model import artifacts
from perennial.model.artifacts import FeatureList, LoadedModel
from perennial.registry.store import Registry
from perennial.spec.folder import ModelFolder
from tests.unit import synthetic


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.make_template(tmp_path_factory.mktemp("mlflow"))


@pytest.fixture
def registry(settings: Settings, ledger: Ledger, empty_store: Path) -> Registry:
    synthetic.copy_store(empty_store, settings)
    return Registry(settings, ledger)


@pytest.fixture
def folder(tmp_path: Path) -> ModelFolder:
    return synthetic.write_folder(tmp_path / "models")


@pytest.fixture
def stored(registry: Registry, folder: ModelFolder, settings: Settings) -> Path:
    """The files of version 1, where MLflow keeps them."""
    synthetic.register(registry, folder)
    return next((settings.state / "mlflow-artifacts").rglob("MLmodel")).parent


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.mark),))


def amend(ledger: Ledger, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Let the ledger say something else of version 1, as if it had been registered that way."""
    record = ledger.version("toy", 1)
    assert record is not None
    changed = replace(record, **changes)

    def version(_: Ledger, model: str, number: int) -> VersionRecord | None:
        return changed if (model, number) == ("toy", 1) else None

    monkeypatch.setattr(Ledger, "version", version)


# --- the manifest ----------------------------------------------------------------------------------------------------


def test_an_untouched_artifact_is_loaded_and_predicts(registry: Registry, stored: Path, folder: ModelFolder) -> None:
    model = registry.load("toy", 1, spec=folder.spec)
    rows = pa.Table.from_pandas(synthetic.make_rows(1)[["kind", "noise", "x"]], preserve_index=False)
    prediction = model.predict(rows)
    assert len(prediction) == 60
    assert prediction.classes == model.classes == ("False", "True")
    assert ((prediction.values > 0) & (prediction.values < 1)).all()
    assert model.features == ["x", "noise", "kind"]
    assert model.reference().column_names == ["x", "noise", "kind"]
    assert (model.version, model.task, model.trained_on) == (1, "binary_classification", "2013-03-01--2013-03-21")


def _delete(file: Path) -> None:
    file.unlink()


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-10])


def _change(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


@pytest.mark.parametrize("harm", [_delete, _cut, _change])
@pytest.mark.parametrize("name", ["model.skops", "MLmodel", "reference.parquet", "requirements.txt"])
def test_a_file_that_is_missing_cut_or_changed_is_named(
    name: str, harm: Callable[[Path], None], registry: Registry, stored: Path
) -> None:
    harm(stored / name)
    with pytest.raises(ArtifactRejected, match=rf"toy version 1: .*{name}"):
        registry.load("toy", 1)


def test_an_extra_file_is_named(registry: Registry, stored: Path) -> None:
    (stored / "code").mkdir()
    (stored / "code" / "sitecustomize.py").write_text("print('hello')")
    with pytest.raises(ArtifactRejected, match=r"code/sitecustomize\.py is not in the manifest"):
        registry.load("toy", 1)


def test_an_artifact_that_is_gone_is_rejected(registry: Registry, stored: Path) -> None:
    shutil.rmtree(stored)
    with pytest.raises(ArtifactRejected, match="toy version 1"):
        registry.load("toy", 1)


def test_a_version_without_files_is_rejected(
    registry: Registry, stored: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in stored.iterdir():
        path.unlink()
    amend(ledger, monkeypatch, manifest={})
    with pytest.raises(ArtifactRejected):
        registry.load("toy", 1)


def test_an_empty_manifest_vouches_for_nothing(tmp_path: Path) -> None:
    with pytest.raises(ArtifactRejected, match="manifest is empty"):
        artifacts.check_manifest(tmp_path, {})


def test_symbolic_links_and_devices_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "model.skops").symlink_to("/etc/hostname")
    with pytest.raises(ArtifactRejected, match=r"model\.skops is neither a file"):
        artifacts.manifest(tmp_path)
    (tmp_path / "model.skops").unlink()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ArtifactRejected, match="pipe is neither a file"):
        artifacts.manifest(tmp_path)


# --- what must never run ---------------------------------------------------------------------------------------------


def test_an_mlmodel_edited_from_skops_to_pickle_runs_nothing(
    registry: Registry, stored: Path, ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "ran"
    (stored / "model.pkl").write_bytes(pickle.dumps(Payload(mark)))
    description = yaml.safe_load((stored / "MLmodel").read_text())
    description["flavors"]["sklearn"] |= {"serialization_format": "pickle", "pickled_model": "model.pkl"}
    description["flavors"]["python_function"]["model_path"] = "model.pkl"
    (stored / "MLmodel").write_text(yaml.safe_dump(description))
    with pytest.raises(ArtifactRejected, match="MLmodel has SHA-256"):
        registry.load("toy", 1)
    # Even if it had been registered like that, it is not MLmodel that says what is loaded.
    amend(ledger, monkeypatch, manifest=artifacts.manifest(stored))
    assert len(registry.load("toy", 1).predict(registry.load("toy", 1).reference())) == 300
    assert not mark.exists()


def test_a_pickle_in_place_of_the_model_is_not_unpickled(
    registry: Registry, stored: Path, ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "ran"
    (stored / "model.skops").write_bytes(pickle.dumps(Payload(mark)))
    amend(ledger, monkeypatch, manifest=artifacts.manifest(stored))
    with pytest.raises(ArtifactRejected, match=r"model\.skops cannot be loaded"):
        registry.load("toy", 1)
    assert not mark.exists()


def test_a_widened_list_of_trusted_types_in_the_artifact_is_not_believed(
    registry: Registry, stored: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    skops.io.dump(FunctionTransformer(func=os.getcwd), stored / "model.skops")
    description = yaml.safe_load((stored / "MLmodel").read_text())
    description["flavors"]["sklearn"]["skops_trusted_types"] += ["posix.getcwd"]
    (stored / "MLmodel").write_text(yaml.safe_dump(description))
    amend(ledger, monkeypatch, manifest=artifacts.manifest(stored))
    with pytest.raises(ArtifactRejected, match=r"not trusted: posix\.getcwd"):
        registry.load("toy", 1)


def trust(ledger: Ledger, stored: Path, monkeypatch: pytest.MonkeyPatch, func: Any, *names: str) -> None:
    """Let version 1 be a transformer that calls ``func``, and let the ledger say that its folder trusted these names."""
    skops.io.dump(FunctionTransformer(func=func), stored / "model.skops")
    record = ledger.version("toy", 1)
    assert record is not None
    amend(
        ledger, monkeypatch,
        manifest=artifacts.manifest(stored), training=replace(record.training, trusted_types=list(names)),
    )  # fmt: skip


def test_a_type_that_the_folder_no_longer_trusts_is_not_trusted(
    registry: Registry, stored: Path, ledger: Ledger, folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    trust(ledger, stored, monkeypatch, textwrap.dedent, "textwrap.dedent")
    assert isinstance(registry.load("toy", 1).estimator, FunctionTransformer)
    with pytest.raises(ArtifactRejected, match=r"not trusted: textwrap\.dedent"):
        registry.load("toy", 1, spec=folder.spec)


def test_what_runs_programs_is_not_loaded_although_folder_and_reviewer_trust_it(
    registry: Registry, stored: Path, settings: Settings, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    trust(ledger, stored, monkeypatch, os.system, "posix.system")
    with pytest.raises(ArtifactRejected, match=r"not trusted: posix\.system"):
        registry.load("toy", 1)
    reviewed = Registry(settings.model_copy(update={"trusted_types": ("posix",)}), ledger)
    with pytest.raises(ArtifactRejected, match=r"not trusted: posix\.system"):
        reviewed.load("toy", 1)
    with pytest.raises(ArtifactRejected, match=r"may never be trusted: posix\.system"):
        artifacts.load_estimator(stored, ["posix.system"])


def test_what_runs_programs_is_not_loaded_under_the_name_of_another_module(
    registry: Registry, stored: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module that imports ``system`` lends its own name to it."""
    lender = ModuleType("harmless_library")
    vars(lender)["system"] = os.system
    monkeypatch.setitem(sys.modules, "harmless_library", lender)
    trust(ledger, stored, monkeypatch, os.system, "harmless_library.system")
    file = stored / "model.skops"
    with zipfile.ZipFile(file) as packed:
        content = {name: packed.read(name) for name in packed.namelist()}
    content["schema.json"] = content["schema.json"].replace(b'"posix"', b'"harmless_library"')
    with zipfile.ZipFile(file, "w") as packed:
        for name, part in content.items():
            packed.writestr(name, part)
    record = ledger.version("toy", 1)
    assert record is not None
    amend(ledger, monkeypatch, manifest=artifacts.manifest(stored))

    with pytest.raises(ArtifactRejected, match=r"may never be trusted: harmless_library\.system"):
        registry.load("toy", 1)


def test_a_reviewer_of_the_deployment_decides_which_types_of_a_folder_are_loaded(
    registry: Registry, stored: Path, settings: Settings, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    trust(ledger, stored, monkeypatch, textwrap.dedent, "textwrap.dedent")
    for allowed, loads in ((("textwrap",), True), (("textwrap.dedent",), True), ((), False), (("text",), False)):
        reviewed = Registry(settings.model_copy(update={"trusted_types": allowed}), ledger)
        if loads:
            assert isinstance(reviewed.load("toy", 1).estimator, FunctionTransformer)
        else:
            with pytest.raises(ArtifactRejected, match=r"not trusted: textwrap\.dedent.*PERENNIAL_TRUSTED_TYPES"):
                reviewed.load("toy", 1)


def test_a_model_of_untrusted_types_is_not_stored_in_the_first_place(
    registry: Registry, folder: ModelFolder, settings: Settings
) -> None:
    with pytest.raises(TrainingError, match=r"posix\.getcwd.*training\.trusted_types"):
        synthetic.log_candidate(registry, folder, estimator=_Classes(FunctionTransformer(func=os.getcwd)))
    client = MlflowClient(tracking_uri=settings.mlflow_url, registry_uri=settings.mlflow_url)
    experiment = client.get_experiment_by_name("toy")
    assert experiment is not None
    assert list(client.search_logged_models([experiment.experiment_id])) == []
    assert [run.info.status for run in client.search_runs([experiment.experiment_id])] == ["FAILED"]


class _Classes(FunctionTransformer):  # type: ignore[misc]  # scikit-learn has no types
    """A transformer that looks enough like a classifier to be stored."""

    classes_ = (False, True)

    def __init__(self, func: Any = None) -> None:
        super().__init__(func=func.func if isinstance(func, FunctionTransformer) else func)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04",
        b"not a zip at all",
    ],
)
def test_a_file_that_is_no_skops_file_is_rejected(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.skops").write_bytes(content)
    with pytest.raises(ArtifactRejected, match=r"model\.skops cannot be loaded"):
        artifacts.load_estimator(tmp_path, [])


# --- what must fit ---------------------------------------------------------------------------------------------------


def test_a_model_of_another_scikit_learn_is_rejected_with_what_to_do(
    registry: Registry, stored: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = ledger.version("toy", 1)
    assert record is not None
    packages = {**record.code.packages, "scikit-learn": "1.8.0"}
    amend(ledger, monkeypatch, code=replace(record.code, packages=packages))
    with pytest.raises(ArtifactRejected, match=r"saved with scikit-learn 1\.8\.0 and this is .*train a new version"):
        registry.load("toy", 1)


def test_a_signature_other_than_the_registered_features_is_rejected(
    registry: Registry, stored: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    description = yaml.safe_load((stored / "MLmodel").read_text())
    inputs = json.loads(description["signature"]["inputs"])
    inputs[1]["name"] = "arrival_delay"
    description["signature"]["inputs"] = json.dumps(inputs)
    (stored / "MLmodel").write_text(yaml.safe_dump(description))
    amend(ledger, monkeypatch, manifest=artifacts.manifest(stored))
    with pytest.raises(ArtifactRejected, match="its signature has x double, arrival_delay double, kind string"):
        registry.load("toy", 1)


@pytest.mark.parametrize("text", ["", "flavors: [", "[1, 2]", "signature: {inputs: 'no json'}"])
def test_an_mlmodel_that_cannot_be_read_is_rejected(
    text: str, registry: Registry, stored: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    (stored / "MLmodel").write_text(text)
    amend(ledger, monkeypatch, manifest=artifacts.manifest(stored))
    with pytest.raises(ArtifactRejected, match="toy version 1"):
        registry.load("toy", 1)


def test_a_version_takes_its_own_features_whatever_the_spec_has_now(
    registry: Registry, stored: Path, tmp_path: Path, folder: ModelFolder
) -> None:
    fewer = synthetic.write_folder(tmp_path / "fewer", change="numeric: [x, noise] => numeric: [x]")
    other_kind = synthetic.write_folder(
        tmp_path / "other", a="numeric: [x, noise] => numeric: [x]", b="categorical: [kind] => categorical: [kind, noise]"
    )
    for present in (fewer, other_kind):
        assert registry.load("toy", 1, spec=present.spec).takes == FeatureList(("x", "noise"), ("kind",))


def test_a_version_of_another_task_is_rejected(registry: Registry, stored: Path, tmp_path: Path) -> None:
    regression = synthetic.write_folder(tmp_path / "regression", "regression")
    with pytest.raises(ArtifactRejected, match="the task binary_classification"):
        registry.load("toy", 1, spec=regression.spec)


def test_a_new_feature_in_the_spec_does_not_stop_the_champion(registry: Registry, stored: Path, tmp_path: Path) -> None:
    more = synthetic.write_folder(tmp_path / "more", change="numeric: [x, noise] => numeric: [x, noise, more]")
    assert registry.load("toy", 1, spec=more.spec).features == ["x", "noise", "kind"]


@pytest.mark.parametrize(
    "source",
    [
        "file:///srv/models/..%2f..%2fetc",
        "mlflow-artifacts:/1/models/m-1/artifacts/%2e%2e/%2e%2e",
        "file:///srv/models/..%252f..%252fetc",
        "/srv/models/../../etc",
        "s3://bucket/models/..\\..\\secrets",
    ],
)
def test_a_source_that_climbs_is_rejected(source: str) -> None:
    with pytest.raises(ArtifactRejected, match="may lead anywhere"):
        artifacts.check_source(source)


@pytest.mark.parametrize("source", ["file:///srv/models/m-1/artifacts", "mlflow-artifacts:/1/models/m-1", "s3://b/a..b/c"])
def test_a_plain_source_is_fine(source: str) -> None:
    artifacts.check_source(source)


def test_a_version_that_mlflow_says_lies_elsewhere_is_rejected(
    registry: Registry, stored: Path, ledger: Ledger, settings: Settings, folder: ModelFolder
) -> None:
    client = MlflowClient(tracking_uri=settings.mlflow_url, registry_uri=settings.mlflow_url)
    record = ledger.version("toy", 1)
    assert record is not None
    forged = client.create_model_version("toy", source=f"{stored.parent.as_uri()}/..%2f..%2fother", run_id=record.mlflow_run_id)
    ledger.record_version(replace(record, version=int(forged.version)))
    with pytest.raises(ArtifactRejected, match=r"toy version 2: MLflow says it is in .*\.\.%2f"):
        registry.load("toy", 2)


# --- predicting ------------------------------------------------------------------------------------------------------


class _Estimator:
    """Answers in whatever shape it is told."""

    classes_ = (False, True)

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def predict(self, _: Any) -> Any:
        return self.answer

    predict_proba = predict


def model_of(answer: Any, task: Any = "binary_classification") -> LoadedModel:
    return LoadedModel("toy version 1", 1, task, FeatureList(("x",), ("kind",)), "", "", _Estimator(answer), pa.table({}))


ROWS = pa.table({"x": [1.0, None, 3.0], "kind": ["a", None, "c"]})


@pytest.mark.parametrize(
    ("task", "shape"),
    [
        ("binary_classification", (2, 2)),
        ("binary_classification", (3, 1)),
        ("binary_classification", (3,)),
        ("multiclass_classification", (3, 3)),
        ("regression", (4,)),
        ("regression", (3, 1)),
    ],
)
def test_a_wrong_number_of_predictions_is_an_error(task: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ScoringError, match=r"toy version 1: the model gave predictions of the shape"):
        model_of(np.zeros(shape), task).predict(ROWS)


def test_a_binary_model_predicts_the_probability_of_true_whatever_the_order_of_its_classes() -> None:
    model = model_of(np.array([[0.2, 0.8]] * 3))
    assert model.predict(ROWS).values.tolist() == [0.8] * 3
    model.estimator.classes_ = (True, False)
    assert model.predict(ROWS).values.tolist() == [0.2] * 3
    model.estimator.classes_ = (0, 1)
    with pytest.raises(ScoringError, match="and not True"):
        model.predict(ROWS)


def test_a_row_without_probabilities_gets_no_class() -> None:
    model = model_of(np.array([[0.2, 0.8], [np.nan, 0.1], [0.6, 0.4]]), "multiclass_classification")
    model.estimator.classes_ = ("a", "b")
    prediction = model.predict(ROWS)
    assert prediction.values.tolist() == ["b", None, "a"]
    assert prediction.probability is not None
    assert np.isnan(prediction.probability[1])


def test_missing_features_are_named() -> None:
    with pytest.raises(ScoringError, match="lack the features kind"):
        model_of(np.zeros((3, 2))).predict(ROWS.select(["x"]))


def test_a_feature_that_cannot_be_a_number_is_named() -> None:
    with pytest.raises(ScoringError, match="feature x has the type string"):
        model_of(np.zeros((3, 2))).predict(pa.table({"x": ["1,5", "a", "b"], "kind": ["a", "b", "c"]}))


def test_estimators_get_numbers_as_float_and_missing_values_as_such() -> None:
    frame = FeatureList(("x",), ("kind",)).frame(
        pa.table({"kind": ["a", None], "x": pa.array([1, None], pa.int64()), "more": [1, 2]})
    )
    assert list(frame.columns) == ["x", "kind"]
    assert frame["x"].dtype == np.float64
    assert np.isnan(frame["x"][1])
    assert frame["kind"].tolist() == ["a", None]


def test_estimators_get_texts_as_python_has_them() -> None:
    texts = ["a", None, "", "ü", "a"]
    for given in (pa.chunked_array([texts]), pa.chunked_array([["x"], texts]).slice(1), pa.chunked_array([], pa.string())):
        frame = FeatureList((), ("kind",)).frame(pa.table({"kind": given}))
        assert frame["kind"].dtype == object
        assert frame["kind"].tolist() == texts[: len(given)]


# --- the one way to load ---------------------------------------------------------------------------------------------

#: What runs or revives what a file says, by the module it comes from; None: all of it.
LOADERS: dict[str, set[str] | None] = {
    "pickle": None, "cloudpickle": None, "dill": None, "joblib": None, "marshal": None, "shelve": None,
    "skops.io": {"load", "loads"},
    "mlflow": {"load_model"}, "mlflow.pyfunc": {"load_model"}, "mlflow.sklearn": {"load_model"},
    "numpy": {"load"}, "pandas": {"read_pickle"}, "torch": {"load"},
}  # fmt: skip
#: By file, what of it may be used there, and why.
ALLOWED = {
    ("include/perennial/model/artifacts.py", "skops.io.load"),  # behind the manifest, with our list of types
    # The usual ways that scoring and a week are measured beside; they load what they have made themselves.
    ("benchmarks/score.py", "mlflow.pyfunc.load_model"),
    ("benchmarks/peers/shared/steps.py", "mlflow.sklearn.load_model"),
}


def loaders_used(code: str) -> set[str]:
    """What of :data:`LOADERS` the code names, whatever it calls it."""
    tree, names, used = ast.parse(code), {}, set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                whole = alias.name if alias.asname else alias.name.partition(".")[0]
                names[alias.asname or whole] = whole
                used.add(alias.name)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                used.add(f"{node.module}.{alias.name}")
    for node in ast.walk(tree):
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.insert(0, node.attr)
            node = node.value
        if parts and isinstance(node, ast.Name) and node.id in names:
            used.add(".".join([names[node.id], *parts]))
    found = set()
    for name in used:
        for module, members in LOADERS.items():
            rest = name.removeprefix(module).removeprefix(".").split(".")[0]
            if name == module and members is None:
                found.add(module)
            elif name.startswith(f"{module}.") and (members is None or rest in members):
                found.add(f"{module}.{rest}")
    return found


def test_models_are_loaded_behind_manifest_and_trusted_types_and_nowhere_else() -> None:
    used = set()
    for folder in ("include", "dags", "plugins", "benchmarks", "examples"):
        for file in (PROJECT / folder).rglob("*.py"):
            place = file.relative_to(PROJECT).as_posix()
            used |= {(place, name) for name in loaders_used(file.read_text(encoding="utf-8"))}
    assert used - ALLOWED == set(), "load a model by Registry.load alone: nothing else looks at manifest and types first"
    assert ALLOWED - used == set(), "an exemption that nobody needs is a door left open"


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import pickle", "pickle"),
        ("from joblib import load as l", "joblib.load"),
        ("import skops.io as s\ns.load(f)", "skops.io.load"),
        ("from skops import io\nio.load(f)", "skops.io.load"),
        ("import skops.io\nskops.io.loads(b)", "skops.io.loads"),
        ("import mlflow\nmlflow.pyfunc.load_model(u)", "mlflow.pyfunc.load_model"),
        ("from mlflow.sklearn import load_model", "mlflow.sklearn.load_model"),
        ("def f():\n    import numpy as np\n    return np.load(f)", "numpy.load"),
        ("import pandas as pd\npd.read_pickle(f)", "pandas.read_pickle"),
    ],
)
def test_a_loader_is_found_under_any_name(code: str, found: str) -> None:
    assert loaders_used(code) == {found}
    assert loaders_used("import skops.io\nimport numpy as np\nskops.io.dumps(x)\nnp.save(f, x)") == set()
