"""A bare FastAPI around the champion's own estimator, as its documentation shows it: a body with a field a feature, a function
that is not ``async`` since it computes, pandas for what the pipeline takes. Served by ``uvicorn benchmarks.online.bare:app``.
"""

from __future__ import annotations

import os
from typing import Any

import pandas as pd
from fastapi import FastAPI
from pydantic import BaseModel, create_model

from benchmarks import prepared

parts = prepared.deployment(os.environ["BENCH_STATE"])
model = parts.registry.load(prepared.MODEL, int(os.environ["BENCH_VERSION"]), spec=parts.model(prepared.MODEL).spec)
fields: dict[str, Any] = {
    **dict.fromkeys(model.takes.numeric, (float | None, None)),
    **dict.fromkeys(model.takes.categorical, (str | None, None)),
}
Features: type[BaseModel] = create_model("Features", **fields)
app = FastAPI()


@app.post("/predict")
def predict(features: Features) -> dict[str, float]:  # type: ignore[valid-type]
    frame = pd.DataFrame([features.model_dump()])  # type: ignore[attr-defined]
    frame[list(model.takes.numeric)] = frame[list(model.takes.numeric)].astype("float64")
    return {"prediction": float(model.estimator.predict_proba(frame)[0, 1])}
