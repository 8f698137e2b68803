"""What is not exactly a value of its feature is refused, with its row and field."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perennial.core.errors import NotAnswered
from perennial.model.artifacts import FeatureList
from perennial.serving.requests import Keys, Rows, from_inference, from_invocations, from_question, read_json

TAKES = FeatureList(("x", "noise"), ("kind",))
OUTPUTS = ("prediction",)


def features(text: str | bytes, most: int = 3) -> Rows:
    rows = from_question(text if isinstance(text, bytes) else text.encode(), TAKES, most, None)
    assert isinstance(rows, Rows)
    return rows


def tensor(**changed: Any) -> dict[str, Any]:
    return {"name": "x", "shape": [2], "datatype": "FP64", "data": [1.5, 2], **changed}


def test_the_plain_form_gives_columns_and_says_what_was_missing() -> None:
    rows = features('{"features": [{"x": 1, "kind": "a"}, {"noise": -0.5, "x": null}]}')
    assert rows.columns == {"x": [1.0, None], "noise": [None, -0.5], "kind": ["a", None]}
    assert rows.count == 2
    assert rows.came[0] == {"given": ["x", "kind"], "missing": ["noise"]}
    assert rows.came[1] == {"given": ["noise"], "missing": ["x", "kind"]}


def test_all_forms_of_the_same_rows_give_the_same_columns() -> None:
    records = [{"x": 1.5, "kind": "a"}, {"x": 2, "kind": None}]
    expected = features(json.dumps({"features": records}))
    columns = {"x": [1.5, 2], "kind": ["a", None]}
    forms: list[dict[str, Any]] = [
        {"dataframe_records": records},
        {"inputs": columns},
        {"dataframe_split": {"index": [7, 8], "columns": ["kind", "x"], "data": [["a", 1.5], [None, 2]]}},
    ]
    for form in forms:
        assert from_invocations(json.dumps(form).encode(), TAKES, 3) == expected
    kind = {"name": "kind", "shape": [2, 1], "datatype": "BYTES", "data": [["a"], [None]]}
    asked = from_inference(json.dumps({"id": "q", "inputs": [tensor(), kind]}).encode(), TAKES, 3, OUTPUTS)
    assert asked.rows == expected
    assert (asked.id, asked.outputs) == ("q", None)


def test_categories_are_cast_as_the_batch_casts_them() -> None:
    rows = features('{"features": [{"kind": 7}, {"kind": true}, {"kind": "\uff17"}]}')
    assert rows.columns["kind"] == [
        pa.array([7]).cast(pa.string())[0].as_py(),
        pa.array([True]).cast(pa.string())[0].as_py(),
        "\uff17",
    ]


@pytest.mark.parametrize(
    ("row", "field", "says"),
    [
        ('{"x": "1"}', "x", '"1" is not a number'),
        ('{"x": "\uff11\uff12"}', "x", "is not a number"),
        ('{"x": true}', "x", "true is not a number"),
        ('{"x": NaN}', "x", "NaN is not a number"),
        ('{"x": -Infinity}', "x", "-Infinity is not a number"),
        ('{"x": 1e400}', "x", "too large"),
        ('{"x": 9007199254740993}', "x", "held exactly"),
        ('{"x": [1]}', "x", "a list is not a number"),
        ('{"x": {"y": 1}}', "x", "an object is not a number"),
        ('{"kind": 1.5}', "kind", "1.5 is not a category"),
        ('{"kind": NaN}', "kind", "NaN is not a category"),
        ('{"kind": ["a"]}', "kind", "a list is not a category"),
        ('{"kind": "\\ud800"}', "kind", "half a surrogate pair"),
        ('{"x": 1, "z": 2}', "z", 'no feature "z"'),
        ('{"X": 1}', "X", 'no feature "X"'),
        ('{"x": 1, "x": 2}', "x", "stands twice"),
        ('{"x": 1, "x\\u200b": 2}', "x\\u200b", "no feature"),
        ("{}", None, "no feature at all"),
        ('{"x": null}', None, "no feature at all"),
        ("[1]", None, "must be an object"),
        ("null", None, "must be an object"),
    ],
)
def test_a_wrong_value_is_refused_with_its_row_and_field(row: str, field: str | None, says: str) -> None:
    with pytest.raises(NotAnswered) as refused:
        features(f'{{"features": [{{"x": 1}}, {row}]}}')
    assert (refused.value.status, refused.value.row, refused.value.field) == (422, 1, field)
    assert says in str(refused.value)
    assert "row 1" in str(refused.value)


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ("", 400, "not JSON"),
        ("{", 400, "line 1, column 2"),
        ('{"features": [{"x": \uff11}]}', 400, "not JSON"),
        (b'{"features": "\xff"}', 400, "not UTF-8"),
        ("[" * 100_000, 400, "nested too deeply"),
        ('{"features": [{"x": ' + "9" * 5_000 + "}]}", 400, "number that is too long"),
        ("[]", 422, "the body must be an object"),
        ("NaN", 422, "the body must be an object"),
        ("{}", 422, "lacks the field features"),
        ('{"features": {}}', 422, "must be a list"),
        ('{"features": []}', 422, "no row"),
        ('{"features": [], "features": []}', 422, "stands twice"),
        ('{"features": [{"x": 1}], "more": 1}', 422, 'unknown field "more"'),
        ('{"features": [{"x":1},{"x":1},{"x":1},{"x":1}]}', 413, "at most 3"),
    ],
)
def test_a_wrong_body_is_refused(body: str | bytes, status: int, says: str) -> None:
    with pytest.raises(NotAnswered) as refused:
        features(body)
    assert refused.value.status == status
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "exactly one of"),
        ({"inputs": {}, "dataframe_records": []}, "exactly one of"),
        ({"instances": []}, 'unknown field "instances"'),
        ({"inputs": [[1]]}, "inputs must be an object"),
        ({"inputs": {"z": [1]}}, 'unknown feature "z"'),
        ({"inputs": {"x": 1}}, "x must be a list"),
        ({"inputs": {"x": [1, 2], "kind": ["a"]}}, "different numbers of rows: 1, 2"),
        ({"dataframe_split": {"columns": ["x"]}}, "lacks the field data"),
        ({"dataframe_split": {"columns": ["x", "x"], "data": [[1, 1]]}}, "stands twice"),
        ({"dataframe_split": {"columns": ["z"], "data": [[1]]}}, 'no feature "z"'),
        ({"dataframe_split": {"columns": ["x"], "data": [[1, 2]]}}, "a list of 1 values"),
        ({"dataframe_split": {"columns": ["x"], "data": [["1"]]}}, "is not a number"),
        ({"dataframe_split": {"columns": [], "data": [[]]}}, "no feature at all"),
    ],
)
def test_a_wrong_body_of_mlflows_form_is_refused(body: dict[str, Any], says: str) -> None:
    with pytest.raises(NotAnswered) as refused:
        from_invocations(json.dumps(body).encode(), TAKES, 3)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "lacks the field inputs"),
        ({"inputs": []}, "no row"),
        ({"inputs": [tensor(name="z")]}, 'no feature "z"'),
        ({"inputs": [tensor(), tensor()]}, "stands twice"),
        ({"inputs": [tensor(shape=[3])]}, "its shape must be [2]"),
        ({"inputs": [tensor(shape=[2, 2])]}, "its shape must be [2]"),
        ({"inputs": [tensor(shape=[True], data=[1.0])]}, "its shape must be [1]"),
        ({"inputs": [tensor(datatype="BYTES")]}, "it must be FP64"),
        ({"inputs": [tensor(datatype="FP32")]}, "it must be FP64"),
        ({"inputs": [tensor(datatype="INT8", data=[1, 200])]}, "200 is no INT8"),
        ({"inputs": [tensor(datatype="UINT8", data=[1, -1])]}, "-1 is no UINT8"),
        ({"inputs": [tensor(datatype="INT64", data=[1, 1.5])]}, "1.5 is no INT64"),
        ({"inputs": [tensor(data=[[1], [2, 3]])]}, "one value per row"),
        ({"inputs": [tensor(data=[True, 1])]}, "true is not a number"),
        ({"inputs": [{"name": "kind", "shape": [1], "datatype": "FP64", "data": [1]}]}, "it must be BYTES"),
        ({"inputs": [tensor(parameters={"binary_data_size": 16})]}, "has parameters"),
        ({"inputs": [tensor()], "parameters": {"binary_data_output": True}}, "has parameters"),
        ({"inputs": [tensor()], "outputs": [{"name": "score"}]}, 'no output "score"; it has prediction'),
        ({"inputs": [tensor()], "id": 7}, "id must be a text"),
        ({"inputs": [tensor()], "raw": 1}, 'unknown field "raw"'),
    ],
)
def test_a_wrong_body_of_the_inference_protocol_is_refused(body: dict[str, Any], says: str) -> None:
    with pytest.raises(NotAnswered) as refused:
        from_inference(json.dumps(body).encode(), TAKES, 3, OUTPUTS)
    assert says in str(refused.value)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=3) | st.sampled_from(["x", "kind", "FP64"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["features", "inputs", "dataframe_split", "columns", "data", "name", "shape", "datatype", "x", "kind", "z"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(value=_VALUES)
def test_whatever_is_sent_is_answered_or_refused_and_never_fails(value: Any) -> None:
    body = json.dumps(value).encode()
    readers: tuple[Callable[[], Rows], ...] = (
        lambda: features(body),
        lambda: from_invocations(body, TAKES, 3),
        lambda: from_inference(body, TAKES, 3, OUTPUTS).rows,
    )
    for read in readers:
        with suppress(NotAnswered):
            rows = read()
            assert {len(values) for values in rows.columns.values()} == {rows.count}


@given(text=st.text(max_size=20) | st.binary(max_size=20))
def test_whatever_bytes_are_sent_are_json_or_refused(text: str | bytes) -> None:
    with suppress(NotAnswered):
        read_json(text.encode(errors="surrogatepass") if isinstance(text, str) else text)


# --- by key ----------------------------------------------------------------------------------------------------------

KEY = pa.schema(
    [
        ("id", pa.string()), ("number", pa.int64()), ("at", pa.timestamp("us", tz="UTC")), ("day", pa.date32()),
        ("share", pa.float64()), ("open", pa.bool_()),
    ]
)  # fmt: skip
ENTITY = {"id": "a", "number": 7, "at": "2024-05-01T12:00:00+02:00", "day": "2024-05-01", "share": 0.5, "open": True}


def keys(value: Any, key: pa.Schema = KEY) -> Keys:
    found = from_question(json.dumps(value).encode(), TAKES, 3, key)
    assert isinstance(found, Keys)
    return found


def test_a_key_has_the_types_of_its_columns() -> None:
    found = keys({"keys": [ENTITY]})
    assert found.table.schema.equals(KEY)
    [row] = found.table.to_pylist()
    assert row["at"].isoformat() == "2024-05-01T10:00:00+00:00"
    assert (row["id"], row["number"], row["day"].isoformat(), row["share"], row["open"]) == ("a", 7, "2024-05-01", 0.5, True)
    assert found.overrides == [{}]


def test_features_beside_keys_replace_stored_ones_row_by_row() -> None:
    found = keys({"keys": [ENTITY, ENTITY], "features": [{"x": 2, "kind": None}, {}]})
    assert found.overrides == [{"x": 2.0, "kind": None}, {}]


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"id": 7}, "id"),
        ({"id": None}, "id"),
        ({"number": "7"}, "number"),
        ({"number": True}, "number"),
        ({"number": 7.0}, "number"),
        ({"number": 1 << 63}, "number"),
        ({"at": "2024-05-01T12:00:00"}, "at"),
        ({"at": "2024-05-01"}, "at"),
        ({"at": "\uff12024-05-01T12:00:00Z"}, "at"),
        ({"at": 1_714_557_600}, "at"),
        ({"day": "2024-02-30"}, "day"),
        ({"share": "0.5"}, "share"),
        ({"open": 1}, "open"),
        ({"more": 1}, "more"),
    ],
)
def test_a_wrong_key_is_refused_with_its_row_and_field(changed: dict[str, Any], field: str) -> None:
    with pytest.raises(NotAnswered) as refused:
        keys({"keys": [ENTITY, {**ENTITY, **changed}]})
    assert (refused.value.status, refused.value.row, refused.value.field) == (422, 1, field)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"keys": [{"id": "a"}]}, "lacks the field number"),
        ({"keys": []}, "no row"),
        ({"keys": {}}, "must be a list"),
        ({"keys": [ENTITY], "features": []}, "1 keys, and features for 0 rows"),
        ({"keys": [ENTITY], "features": [{"z": 1}]}, 'no feature "z"'),
    ],
)
def test_a_wrong_question_by_key_is_refused(body: dict[str, Any], says: str) -> None:
    with pytest.raises(NotAnswered) as refused:
        keys(body)
    assert says in str(refused.value)


def test_a_model_without_online_cannot_be_asked_by_key() -> None:
    with pytest.raises(NotAnswered, match="cannot be asked by key"):
        features(json.dumps({"keys": [ENTITY]}))
