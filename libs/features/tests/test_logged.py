"""Logged predictions as rows."""

import json
from dataclasses import replace

import numpy as np
import pytest
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.instants import parse_us
from tidemill_features.logged import Logged, predicted


def stream(name: str) -> definition.Stream:
    found = definition.Stream(name=name, partitions=2)
    found.fields.add(name="id", type=definition.FIELD_TYPE_STRING)
    found.fields.add(name="tail", type=definition.FIELD_TYPE_STRING, nullable=True)
    found.fields.add(name="at", type=definition.FIELD_TYPE_TIMESTAMP)
    found.fields.add(name="miles", type=definition.FIELD_TYPE_FLOAT64)
    return found


def logged(*ids: str) -> Logged:
    requests = [
        {"id": name, "tail": None if place else "N1", "at": "2013-01-01T00:00:00Z", "miles": 10 + place, "new": 1}
        for place, name in enumerate(ids)
    ]
    positions = [json.dumps({"events.departed": {"0": 5, "1": 7}}), json.dumps({"events.departed": {"1": 9, "4": 1}})]
    return Logged(
        prediction_id=ids,
        join_key=ids,
        as_of_us=np.arange(len(ids), dtype=np.int64),
        request_json=[json.dumps(request) for request in requests],
        positions=positions,
        positions_code=np.arange(len(ids)) % 2,
    )


def test_a_prediction_logged_twice_is_one_row_its_first() -> None:
    rows = predicted(logged("a", "b", "a", "c", "b"), stream("asked"), [stream("departed")], ["id"])
    assert rows.join_key.tolist() == ["a", "b", "c"]
    assert rows.as_of_us.tolist() == [0, 1, 3]


def test_fields_come_back_typed_with_their_nulls() -> None:
    rows = predicted(logged("a", "b"), stream("asked"), [], ["at", "miles", "tail"])
    assert rows.columns["at"].values.tolist() == [parse_us("2013-01-01T00:00:00Z")] * 2
    assert rows.columns["miles"].values.dtype == np.float64
    assert rows.columns["tail"].nulls.tolist() == [False, True]


def test_an_instant_that_was_null_is_null() -> None:
    one = replace(logged("a"), request_json=[json.dumps({"id": "a", "at": None})])
    rows = predicted(one, stream("asked"), [], ["id", "at"])
    assert rows.columns["at"].nulls.tolist() == [True]


OLD = {"bool": True, "int": 7, "float": 0.5, "text": "cash", "instant": "2013-01-01T00:00:00Z"}
FITTING = {
    definition.FIELD_TYPE_BOOL: {"bool": True},
    definition.FIELD_TYPE_INT64: {"int": 7},
    definition.FIELD_TYPE_FLOAT64: {"int": 7.0, "float": 0.5},
    definition.FIELD_TYPE_STRING: {"text": "cash", "instant": "2013-01-01T00:00:00Z"},
    definition.FIELD_TYPE_TIMESTAMP: {"instant": parse_us("2013-01-01T00:00:00Z")},
}


@pytest.mark.parametrize("kind", FITTING)
def test_what_was_logged_when_the_field_had_another_type_is_null(kind: "definition.FieldType.ValueType") -> None:
    asked = stream("asked")
    asked.fields.add(name="tip", type=kind, nullable=True)
    before = replace(logged(*OLD), request_json=[json.dumps({"id": name, "tip": OLD[name]}) for name in OLD])
    column = predicted(before, asked, [], ["tip"]).columns["tip"]
    found = zip(OLD, column.values.tolist(), column.nulls.tolist(), strict=True)
    assert {name: value for name, value, null in found if not null} == FITTING[kind]


def test_a_partition_that_the_positions_do_not_name_was_not_seen() -> None:
    rows = predicted(logged("a", "b"), stream("asked"), [stream("departed"), stream("arrived")], ["id"])
    # The second names a partition that was added after the definition was written.
    assert rows.cuts["departed"].tolist() == [[5, 7, 0, 0, 0], [0, 9, 0, 0, 1]]
    assert rows.cuts["arrived"].tolist() == [[0, 0], [0, 0]]


def test_no_predictions_are_no_rows() -> None:
    empty = np.empty(0, dtype=np.int64)
    rows = predicted(Logged((), (), empty, (), (), empty), stream("asked"), [stream("departed")], ["id", "at"])
    assert len(rows) == 0
    assert rows.cuts["departed"].shape == (0, 2)
