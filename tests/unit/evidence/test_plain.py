"""Evidence goes into JSON and comes back, and a row of another release is read whatever it holds or lacks."""

from __future__ import annotations

import json
import math
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perennial.evidence.decision import GateDecision
from perennial.evidence.evaluation import Contender, Evaluation, GainOverChampion
from perennial.evidence.plain import Evidence
from perennial.evidence.training import CodeState, TrainingRecord, TrainingSet
from perennial.evidence.verdict import ColumnDrift, Estimate, Impact, VerdictDetails

KINDS: list[type[Evidence]] = [
    TrainingRecord, TrainingSet, CodeState, Evaluation, GateDecision, VerdictDetails, GainOverChampion, Contender,
    ColumnDrift, Estimate, Impact,
]  # fmt: skip

TEXT = st.text(max_size=3)
#: Any values of a type; NaN and infinity are among the numbers, and what an estimator's parameter may be stands for Any.
VALUES: dict[Any, st.SearchStrategy[Any]] = {
    str: TEXT,
    int: st.integers(),
    float: st.floats(),
    bool: st.booleans(),
    NoneType: st.none(),
    Any: st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
}


def of(hint: Any) -> st.SearchStrategy[Any]:
    """Any values of a type, in small collections."""
    if hint in VALUES:
        return VALUES[hint]
    if isinstance(hint, type) and is_dataclass(hint):
        return st.builds(hint, **{name: of(get_type_hints(hint)[name]) for name in (field.name for field in fields(hint))})
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        return st.sampled_from(parts)
    if origin is dict:
        return st.dictionaries(TEXT, of(parts[1]), max_size=2)
    if origin in (list, tuple):
        return st.lists(of(parts[0]), max_size=2).map(origin)
    return st.one_of(*(of(part) for part in parts))


def through_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(data=st.data())
def test_what_is_written_is_read_the_same(kind: type[Evidence], data: st.DataObject) -> None:
    # A class has a hash; mypy takes the __hash__ of its dataclass for it.
    evidence = data.draw(of(kind))
    # Compared by what they show, since NaN equals nothing.
    assert repr(kind.from_json(evidence.to_json())) == repr(evidence)
    assert repr(kind.from_json(through_json(evidence.to_json()))) == repr(evidence)
    assert repr(kind.from_json({**evidence.to_json(), "of a later release": [1]})) == repr(evidence)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(data=st.data())
def test_a_row_that_lacks_anything_is_read(kind: type[Evidence], data: st.DataObject) -> None:
    whole = through_json(data.draw(of(kind)).to_json())
    lost = data.draw(st.sets(st.sampled_from(sorted(whole))))
    less = {name: value for name, value in whole.items() if name not in lost}
    again = kind.from_json(through_json(kind.from_json(less).to_json()))
    assert repr(again) == repr(kind.from_json(less))
    for field in fields(kind):
        if field.name in lost and field.default is not MISSING:
            assert getattr(again, field.name) == field.default


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_row_says_nothing(kind: type[Evidence]) -> None:
    nothing = kind.from_json({})
    assert nothing.is_empty
    assert repr(kind.from_json(through_json(nothing.to_json()))) == repr(nothing)


def test_what_is_absent_promotes_nothing_and_claims_nothing() -> None:
    decision, evaluation, training = GateDecision.from_json({}), Evaluation.from_json({}), TrainingRecord.from_json({})
    assert (decision.promote, decision.results, decision.champion) == (False, [], None)
    assert (evaluation.candidate.metrics, evaluation.candidate.predictions, evaluation.champion) == ({}, None, None)
    assert (training.as_of, training.task, training.snapshots) == ("", None, {})
    assert CodeState.from_json({"dirty": None, "packages": None}) == CodeState()
    assert ColumnDrift.from_json({"column": "x"}).status == "unusable"
    assert math.isnan(ColumnDrift.from_json({"column": "x"}).threshold)
    assert VerdictDetails.from_json({}).severity is None
    assert Impact.from_json({"reasons": ["moved"]}).severity == "warning"


def test_nested_evidence_of_another_release_is_read() -> None:
    old = {"candidate": {"name": "boosting", "of a later release": 1, "predictions": {"rows": 3}}, "slices": {"judged": [{}]}}
    found = Evaluation.from_json(old)
    assert found.candidate.predictions is not None
    assert (found.candidate.name, found.candidate.predictions.rows, found.candidate.rows) == ("boosting", 3, 0)
    assert found.slices is not None
    assert math.isnan(found.slices.judged[0].gain)


def test_what_people_and_other_programs_read_is_written_with_it() -> None:
    column = ColumnDrift("x", "numeric", 0.4, 0.1, "drifted", 0.0, 0.0, "x moved")
    details = VerdictDetails(columns=[column], impact=Impact("warning", False, ("realised",), ("fell",)))
    assert details.to_json()["columns"][0]["drifted"] is True
    assert details.to_json()["impact"]["reasons"] == ["fell"]
    assert Evaluation.from_json({"rows": 3, "entities": 4}).to_json()["label_coverage"] == 0.75
    refused = {"results": [{"gate": "champion", "passed": False, "reason": "worse"}]}
    assert GateDecision.from_json(refused).to_json()["reasons"] == ["worse"]
