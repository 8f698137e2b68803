"""The OpenAPI document of the scorer, with the features of the models that the reader may ask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from perennial.model.artifacts import FeatureList
from perennial.serving.answers import outputs_of
from perennial.serving.champion import Served
from perennial.spec.data import Table

_JSON = "application/json"


def describe(models: Sequence[Served], most_rows: int, *, with_tokens: bool) -> dict[str, Any]:
    """The document.

    Args:
        models: the versions that answer.
        most_rows: most rows of a request.
        with_tokens: whether requests need a token.
    """
    paths: dict[str, Any] = {
        "/v2/health/live": {"get": _get("Whether the process runs", {"live": _BOOLEAN})},
        "/v2/health/ready": {
            "get": _get("Whether it can answer, and whether it knows the champions", {"ready": _BOOLEAN, "degraded": _BOOLEAN})
        },
        "/v2": {"get": _get("The server", {"name": _TEXT, "version": _TEXT})},
    }
    schemas: dict[str, Any] = {"Error": _ERROR}
    for served in models:
        name, row = served.model, f"{served.model}_features"
        schemas[row] = _features(served.loaded.takes)
        rows = {"type": "array", "items": {"$ref": f"#/components/schemas/{row}"}, "minItems": 1, "maxItems": most_rows}
        columns = {
            feature: {"type": "array", "items": kind, "minItems": 1, "maxItems": most_rows}
            for feature, kind in schemas[row]["properties"].items()
        }
        paths[f"/models/{name}/predict"] = {"post": _post(f"Predictions of {name}", _question(served, rows, most_rows))}
        paths[f"/models/{name}/invocations"] = {
            "post": _post(
                f"Predictions of {name} as MLflow's server gives them",
                {
                    "oneOf": [
                        _object({"dataframe_records": rows}, ["dataframe_records"]),
                        _object(
                            {"inputs": {"type": "object", "properties": columns, "additionalProperties": False}}, ["inputs"]
                        ),
                        _object({"dataframe_split": _split(list(schemas[row]["properties"]), most_rows)}, ["dataframe_split"]),
                    ]
                },
            )
        }
        tables = {} if served.folder is None or served.online is None else served.folder.spec.tables
        for table, spec in tables.items():
            if served.online is not None and table in served.online.push:
                paths[f"/models/{name}/tables/{table}"] = {"post": _push(name, table, spec, most_rows)}
        paths[f"/v2/models/{name}"] = {"get": _get(f"Inputs and outputs of {name}", {"name": _TEXT})}
        paths[f"/v2/models/{name}/ready"] = {"get": _get(f"Whether {name} answers", {"ready": _BOOLEAN})}
        paths[f"/v2/models/{name}/infer"] = {
            "post": _post(f"Predictions of {name} in the Open Inference Protocol", _object(_inference(served), ["inputs"]))
        }
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "Perennial's scorer",
            "version": "1",
            "description": "Predictions of the champions, one request at a time.",
        },
        "paths": paths,
        "components": {"schemas": schemas},
    }
    if not with_tokens:
        return document
    scheme = {"token": {"type": "http", "scheme": "bearer"}}
    return {**document, "components": {"schemas": schemas, "securitySchemes": scheme}, "security": [{"token": []}]}


#: By type of the lake, the schema of a part of the key; all others are texts.
_KEY = {"int64": {"type": "integer"}, "double": {"type": "number"}, "bool": {"type": "boolean"}}
_TEXT, _BOOLEAN = {"type": "string"}, {"type": "boolean"}
#: A value of a column, which is cast as ingestion casts it.
_VALUE = {"type": ["string", "number", "boolean", "null"]}


def _object(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


_ERROR = {
    "type": "object",
    "properties": {"error": _TEXT, "request_id": _TEXT, "row": {"type": "integer"}, "field": _TEXT},
    "required": ["error", "request_id"],
}
_TENSOR = _object(
    {
        "name": _TEXT,
        "shape": {"type": "array", "items": {"type": "integer"}},
        "datatype": _TEXT,
        "data": {"type": "array"},
        "parameters": {"type": "object", "maxProperties": 0},
    },
    ["name", "shape", "datatype", "data"],
)


def _split(features: list[str], most: int) -> dict[str, Any]:
    """Pandas' form: the names of columns, then rows."""
    columns = {"type": "array", "items": {"enum": features}, "minItems": 1, "uniqueItems": True}
    data = {"type": "array", "items": {"type": "array", "minItems": 1}, "minItems": 1, "maxItems": most}
    return _object({"columns": columns, "data": data, "index": {"type": "array"}}, ["columns", "data"])


def _inference(served: Served) -> dict[str, Any]:
    """The Open Inference Protocol: a tensor a feature, and the names of wanted outputs."""
    nothing = {"type": "object", "maxProperties": 0}
    output = _object({"name": {"enum": list(outputs_of(served.loaded.task))}, "parameters": nothing}, ["name"])
    return {
        "id": _TEXT,
        "inputs": {"type": "array", "items": _TENSOR, "minItems": 1},
        "outputs": {"type": "array", "items": output},
        "parameters": nothing,
    }


def _question(served: Served, rows: dict[str, Any], most: int) -> dict[str, Any]:
    """The plain form: features; keys with or without features beside them; or entities."""
    by_features = _object({"features": rows}, ["features"])
    if served.key is None:
        return by_features
    key = _object({part.name: _KEY.get(str(part.type), _TEXT) for part in served.key}, served.key.names)
    keys = {"type": "array", "items": key, "minItems": 1, "maxItems": most}
    beside = {**rows, "items": {**_features(served.loaded.takes), "minProperties": 0}}
    by_key = _object({"keys": keys, "features": beside}, ["keys"])
    assert served.folder is not None  # as it has a key
    columns = served.folder.spec.entity_table.columns
    entity = {"type": "object", "properties": dict.fromkeys(columns, _VALUE), "additionalProperties": False}
    entities = {"type": "array", "items": entity, "minItems": 1, "maxItems": most}
    moment = {"type": ["string", "null"], "format": "date-time"}
    return {"oneOf": [by_features, by_key, _object({"entities": entities, "as_of": moment}, ["entities"])]}


def _push(model: str, called: str, table: Table, most: int) -> dict[str, Any]:
    """Rows of a table, whose values are cast and checked as ingestion does it."""
    row = {"type": "object", "properties": dict.fromkeys(table.columns, _VALUE), "additionalProperties": False}
    rows = {"type": "array", "items": row, "minItems": 1, "maxItems": most}
    fault = {"type": "object", "properties": {"row": {"type": "integer"}, "field": _TEXT, "reason": _TEXT}}
    count = {"type": "integer", "minimum": 0}
    answer = {"accepted": count, "new": count, "refused": {"type": "array", "items": fault}}
    described = _post(f"Push rows of {called} of {model}", _object({"rows": rows}, ["rows"]))
    schema = {"type": "object", "properties": answer, "required": list(answer)}
    shown = {"description": "the good rows are stored; what is wrong in the others", "content": {_JSON: {"schema": schema}}}
    return {**described, "responses": {**described["responses"], "200": shown}}


def _features(takes: FeatureList) -> dict[str, Any]:
    """A row: every feature may be missing, but not all of them."""
    number, category = {"type": ["number", "null"]}, {"type": ["string", "integer", "boolean", "null"]}
    properties = {**dict.fromkeys(takes.numeric, number), **dict.fromkeys(takes.categorical, category)}
    return {"type": "object", "properties": properties, "additionalProperties": False, "minProperties": 1}


def _get(summary: str, properties: dict[str, Any]) -> dict[str, Any]:
    shown = {"description": "the answer", "content": {_JSON: {"schema": {"type": "object", "properties": properties}}}}
    return {"summary": summary, "responses": {"200": shown, **_failures(401, 403, 404, 503)}}


def _post(summary: str, schema: dict[str, Any]) -> dict[str, Any]:
    shown = {"description": "the predictions, and what they are made of", "content": {_JSON: {"schema": {"type": "object"}}}}
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": {_JSON: {"schema": schema}}},
        "responses": {"200": shown, **_failures(400, 401, 403, 404, 413, 415, 422, 500, 503)},
    }


_MEANINGS = {
    400: "the body is not JSON",
    401: "a valid token is required",
    403: "the token may not ask this model",
    404: "no such model, or not its champion",
    413: "too many bytes or rows",
    415: "not JSON",
    422: "a value is not one of its feature; the answer names row and field",
    500: "the version gives no prediction for these rows",
    503: "too many requests, or not ready; Retry-After says when to try again",
}


def _failures(*statuses: int) -> dict[str, Any]:
    content = {_JSON: {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {str(status): {"description": _MEANINGS[status], "content": content} for status in statuses}
