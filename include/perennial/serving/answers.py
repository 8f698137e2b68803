"""From predictions to the bodies of answers, in the three forms that :mod:`perennial.serving.requests` reads. Pure functions.

Numbers are written with as many digits as they need to be read back to the last bit.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from perennial.model.artifacts import Prediction
from perennial.serving.challengers import Role
from perennial.serving.champion import Served
from perennial.serving.requests import Rows
from perennial.spec.types import Task


@dataclass(frozen=True)
class Answer:
    """What a request gets, whatever its form.

    Attributes:
        served: the version that has answered.
        rows: what was asked.
        prediction: a prediction per row.
        request_id: of the request.
        checked: seconds since the ledger said that this version is champion.
        degraded: whether that is too long ago.
        role: as what the version has answered.
    """

    served: Served
    rows: Rows
    prediction: Prediction
    request_id: str
    checked: float
    degraded: bool
    role: Role = "champion"

    @property
    def provenance(self) -> dict[str, Any]:
        """What every answer says of itself."""
        return {
            "model": self.served.model,
            "version": self.served.version,
            "role": self.role,
            "champion_checked_seconds_ago": round(self.checked, 1),
            "degraded": self.degraded,
            "request_id": self.request_id,
        }


def as_json(value: Any) -> bytes:
    """JSON in UTF-8. NaN and infinity are refused."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def plain(answer: Answer) -> dict[str, Any]:
    """The answer to the plain form: per row ``prediction`` (for classes also ``probability`` and ``probabilities``, by name),
    how its features came, and what is known of stored ones.
    """
    said = answer.prediction
    values = said.values.tolist()
    if answer.served.loaded.task == "multiclass_classification":
        assert said.probability is not None
        assert said.probabilities is not None
        rows = [
            {"prediction": value, "probability": chance, "probabilities": dict(zip(said.classes, chances, strict=True))}
            for value, chance, chances in zip(values, said.probability.tolist(), said.probabilities.tolist(), strict=True)
        ]
    else:
        rows = [{"prediction": value} for value in values]
    origins = answer.rows.origins or [{}] * len(rows)
    predictions = [
        {**row, "features": came, **origin} for row, came, origin in zip(rows, answer.rows.came, origins, strict=True)
    ]
    return {**answer.provenance, "predictions": predictions}


def invocations(answer: Answer) -> dict[str, Any]:
    """The answer to MLflow's form: ``predictions`` as its server gives them, numbers or the probabilities of all classes."""
    said = answer.prediction
    numbers = said.values if said.probabilities is None else said.probabilities
    return {"predictions": numbers.tolist(), **answer.provenance, "features": answer.rows.came}


def outputs_of(task: Task) -> tuple[str, ...]:
    """Names of the outputs in the Open Inference Protocol."""
    return ("prediction", "probability", "probabilities") if task == "multiclass_classification" else ("prediction",)


def inference(answer: Answer, identifier: str | None, wanted: Sequence[str] | None) -> dict[str, Any]:
    """The answer to the Open Inference Protocol.

    Args:
        answer: what is answered.
        identifier: the client's; without one, the request's own.
        wanted: names of outputs; None: all.
    """
    said, count = answer.prediction, len(answer.prediction)
    outputs = []
    for name in outputs_of(answer.served.loaded.task) if wanted is None else dict.fromkeys(wanted):
        if name == "probabilities":
            assert said.probabilities is not None
            shape, kind, data = [count, len(said.classes)], "FP64", said.probabilities.ravel().tolist()
        elif name == "probability":
            assert said.probability is not None
            shape, kind, data = [count], "FP64", said.probability.tolist()
        else:
            shape, data = [count], said.values.tolist()
            kind = "BYTES" if answer.served.loaded.task == "multiclass_classification" else "FP64"
        output = {"name": name, "datatype": kind, "shape": shape, "data": data}
        outputs.append({**output, "parameters": {"classes": list(said.classes)}} if name == "probabilities" else output)
    about = {**answer.provenance, "features": answer.rows.came}
    return {
        "model_name": answer.served.model,
        "model_version": str(answer.served.version),
        "id": identifier if identifier is not None else answer.request_id,
        "parameters": {name: about[name] for name in about if name not in ("model", "version")},
        "outputs": outputs,
    }


def metadata(served: Served) -> dict[str, Any]:
    """What the Open Inference Protocol tells of a model."""
    takes, task, classes = served.loaded.takes, served.loaded.task, served.loaded.classes
    inputs = [{"name": name, "datatype": "FP64", "shape": [-1]} for name in takes.numeric]
    inputs += [{"name": name, "datatype": "BYTES", "shape": [-1]} for name in takes.categorical]
    outputs = []
    for name in outputs_of(task):
        text = name == "prediction" and task == "multiclass_classification"
        shape = [-1, len(classes)] if name == "probabilities" else [-1]
        outputs.append({"name": name, "datatype": "BYTES" if text else "FP64", "shape": shape})
    return {
        "name": served.model,
        "versions": [str(served.version)],
        "platform": "perennial",
        "inputs": inputs,
        "outputs": outputs,
        "parameters": {"task": task, "classes": list(classes), "trained_on": served.loaded.trained_on},
    }
