"""What is poison to the join, and what it is called: nothing that a producer writes may end the service."""

import json
from typing import Any, NamedTuple

import pytest
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.instants import parse_us
from tidemill_contracts.reasons import Reason
from tidemill_contracts.serving.v1 import records_pb2 as serving
from tidemill_features.expressions import compile_expression, schema_of
from tidemill_monitoring.decode import LabelPlan, StreamPlan, event, labels, prediction, stored
from tidemill_monitoring.scores import unpack
from tidemill_runtime.errors import Poison

FIELDS = [
    definition.Field(name="ride", type=definition.FIELD_TYPE_STRING),
    definition.Field(name="fare", type=definition.FIELD_TYPE_FLOAT64),
    definition.Field(name="seats", type=definition.FIELD_TYPE_INT64),
    definition.Field(name="at", type=definition.FIELD_TYPE_TIMESTAMP),
]
STREAM = definition.Stream(name="rides", fields=FIELDS, key_field="ride", time_field="at", max_future_ms=60_000)
SCHEMA = schema_of(FIELDS)
EXPRESSION = compile_expression("fare > 10 AND seats > 1", SCHEMA)
PLAN = StreamPlan(STREAM, [LabelPlan("cheap", "ride", EXPRESSION, [SCHEMA[name] for name in EXPRESSION.columns])])
GOOD = {"ride": "r-1", "fare": 11.5, "seats": 2, "at": "2013-06-04T10:00:00Z"}
NOW_US = parse_us("2013-06-04T10:00:01Z")


class Raw(NamedTuple):
    """A record as it lies in the log."""

    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()
    topic: str = "events.rides"
    partition: int = 0
    offset: int = 0
    timestamp: int = 0
    key: bytes | None = b"r-1"


def but(**changes: Any) -> bytes:
    """Return the good event with some fields changed; `...` leaves one out."""
    return json.dumps({k: v for k, v in {**GOOD, **changes}.items() if v is not ...}).encode()


def read(raw: Raw) -> Any:
    """Read one record as the step does."""
    found = event(raw, PLAN, NOW_US)
    return labels(found, PLAN, found.time_us)


BAD = [
    (b"", Reason.EMPTY, ""),
    (b"\xff\xfe", Reason.BAD_UTF8, ""),
    (but().decode().encode("utf-16"), Reason.BAD_UTF8, ""),
    (but()[:-3], Reason.UNDECODABLE, ""),
    (b"[1]", Reason.UNDECODABLE, ""),
    (but()[:-1] + b', "extra": ' + b"[" * 40_000 + b"]" * 40_000 + b"}", Reason.UNDECODABLE, ""),
    (but(ride=...), Reason.MISSING_FIELD, "ride"),
    (but(ride=None), Reason.NULL_KEY, "ride"),
    (but(ride=""), Reason.NULL_KEY, "ride"),
    (but(ride=7), Reason.WRONG_TYPE, "ride"),
    (but(ride="a\0b"), Reason.BAD_UTF8, "ride"),
    (but(ride="\ud800"), Reason.BAD_UTF8, "ride"),
    (but(ride="r" * 513), Reason.OVERSIZED, "ride"),
    (but(fare=None), Reason.MISSING_FIELD, "fare"),
    (but(fare="12"), Reason.WRONG_TYPE, "fare"),
    (but(fare=float("inf")), Reason.NON_FINITE, ""),
    (but().replace(b"11.5", b"1e999"), Reason.NON_FINITE, "fare"),
    (but(seats=2**63), Reason.OUT_OF_RANGE, "seats"),
    (but(at="2013-06-04T10:00:00"), Reason.NAIVE_TIMESTAMP, "at"),
    (but(at=None), Reason.MISSING_FIELD, "at"),
    (but(at=7), Reason.WRONG_TYPE, "at"),
    (but(at="yesterday"), Reason.WRONG_TYPE, "at"),
    (but(at="0001-01-01T00:00:00+14:00"), Reason.OUT_OF_RANGE, "at"),
    (but(at="2013-06-04T10:02:00Z"), Reason.TOO_FAR_IN_FUTURE, "at"),
]


@pytest.mark.parametrize(("value", "reason", "field"), BAD)
def test_a_bad_label_event_is_refused_with_its_one_reason(value: bytes, reason: Reason, field: str) -> None:
    assert read(Raw(but()))[0].join_key == "r-1"
    with pytest.raises(Poison) as caught:
        read(Raw(value))
    assert (caught.value.reason, caught.value.field) == (reason, field)


@pytest.mark.parametrize(("source", "name"), [(b"s", b"\xff"), (b"s\0", b"1"), (b"s", b"1" * 600)])
def test_an_identity_that_no_table_takes_still_names_its_event(source: bytes, name: bytes) -> None:
    same, again = (read(Raw(but(), (("ce_source", source), ("ce_id", name)), offset=n))[0].identity for n in (1, 2))
    other = read(Raw(but(), (("ce_source", source), ("ce_id", name + b"x"))))[0].identity
    assert same == again != other
    assert len(same.encode()) < 100


@pytest.mark.parametrize(
    ("changes", "reason", "field"),
    [
        ({"join_key": ""}, Reason.MISSING_FIELD, "join_key"),
        ({"join_key": "a\0b"}, Reason.BAD_UTF8, "join_key"),
        ({"join_key": "k" * 513}, Reason.OVERSIZED, "join_key"),
        ({"as_of_us": 2**63 - 1}, Reason.OUT_OF_RANGE, "as_of_us"),
    ],
)
def test_a_prediction_that_no_table_takes_is_refused(changes: dict[str, Any], reason: Reason, field: str) -> None:
    good: dict[str, Any] = {"prediction_id": "p", "pipeline": "cheap", "join_key": "r-1", "as_of_us": NOW_US}
    assert prediction(Raw(serving.PredictionRecord(**good).SerializeToString())).join_key == "r-1"
    with pytest.raises(Poison) as caught:
        prediction(Raw(serving.PredictionRecord(**{**good, **changes}).SerializeToString()))
    assert (caught.value.reason, caught.value.field) == (reason, field)


@pytest.mark.parametrize(
    ("probability", "role", "reason", "field"),
    [
        (float("nan"), 1, Reason.NON_FINITE, "probability"),
        (float("inf"), 1, Reason.NON_FINITE, "probability"),
        (-3.0, 1, Reason.OUT_OF_RANGE, "probability"),
        (1.0000001, 1, Reason.OUT_OF_RANGE, "probability"),
        (0.5, 200, Reason.OUT_OF_RANGE, "role"),
        (0.5, -1, Reason.OUT_OF_RANGE, "role"),
    ],
)
def test_an_answer_that_no_sum_takes_is_refused_whichever_version_gave_it(
    probability: float, role: Any, reason: Reason, field: str
) -> None:
    good: dict[str, Any] = {"prediction_id": "p", "pipeline": "cheap", "join_key": "r-1", "as_of_us": NOW_US}
    fine = serving.Score(model_version=1, probability=0.0, role=serving.ROLE_CHAMPION)
    bad = serving.Score(model_version=2, probability=probability, role=role)
    answers = [serving.PredictionRecord(**good, scores=[fine, bad])]
    if field == "probability":
        answers.append(serving.PredictionRecord(**good, probability=probability))
    for answer in answers:
        with pytest.raises(Poison) as caught:
            prediction(Raw(answer.SerializeToString()))
        assert (caught.value.reason, caught.value.field) == (reason, field)


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_a_sure_answer_in_a_role_of_a_later_release_is_kept(probability: float) -> None:
    later: Any = 100
    score = serving.Score(model_version=2, probability=probability, role=later)
    logged = serving.PredictionRecord(
        prediction_id="p", pipeline="cheap", join_key="r-1", as_of_us=NOW_US, scores=[score]
    )
    raw = logged.SerializeToString()
    assert unpack(stored(prediction(Raw(raw)), raw).scores).by_version == ((2, later, probability),)
