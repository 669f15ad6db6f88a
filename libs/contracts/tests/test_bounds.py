"""Everything in a definition has a bound, and what lies beyond it is named by its place."""

import math
from collections.abc import Iterator

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.struct_pb2 import ListValue, Value
from tidemill_contracts.bounds import LENGTHS, MAX_MS, RANGES, faults
from tidemill_contracts.definition.v1 import definition_pb2 as definition

Definition = definition.Definition


def fields_of(message: Descriptor, seen: set[str]) -> Iterator[tuple[str, FieldDescriptor]]:
    if message.full_name in seen:
        return
    seen.add(message.full_name)
    for field in message.fields:
        yield f"{message.name}.{field.name}", field
        if field.message_type is not None:
            yield from fields_of(field.message_type, seen)


def test_every_number_and_every_list_of_a_definition_has_a_bound() -> None:
    numbers, lists = set(), set()
    for name, field in fields_of(Definition.DESCRIPTOR, set()):
        if field.is_repeated:
            lists.add(name)
        if field.cpp_type not in {
            FieldDescriptor.CPPTYPE_MESSAGE,
            FieldDescriptor.CPPTYPE_STRING,
            FieldDescriptor.CPPTYPE_ENUM,
            FieldDescriptor.CPPTYPE_BOOL,
        }:
            numbers.add(name)
    assert numbers == set(RANGES)
    assert lists == set(LENGTHS)


def stream(**changed: object) -> Definition:
    return Definition(streams=[definition.Stream(**{"partitions": 1, **changed})])  # type: ignore[arg-type]


def feature(**changed: object) -> Definition:
    counted = {"function": definition.AGGREGATION_FUNCTION_COUNT, **changed}
    return Definition(views=[definition.View(features=[definition.Aggregation(**counted)])])  # type: ignore[arg-type]


def pipeline(**changed: object) -> Definition:
    return Definition(pipelines=[definition.Pipeline(**changed)])  # type: ignore[arg-type]


def parameter(value: Value) -> Definition:
    return pipeline(learner=definition.Learner(parameters=[definition.Parameter(name="depth", fixed=value)]))


def alarms(count: int, period_ms: int) -> Definition:
    budget = definition.Budget(count=count, period_ms=period_ms)
    return pipeline(retrain=definition.RetrainPolicy(false_alarms=budget))


def test_what_lies_within_is_not_named() -> None:
    for applied in (
        Definition(),
        pipeline(label=definition.Label(wait_ms=MAX_MS)),
        alarms(1, 1),
        feature(edges=[-1e308, 0.0, 1e308], quantile=1.0),
        stream(partitions=256, name="x" * 4_096),
        parameter(Value(bool_value=True)),
    ):
        assert list(faults(applied)) == []


@pytest.mark.parametrize(
    ("applied", "says"),
    [
        (stream(partitions=0), "streams[0].partitions must be 1 to 256, not 0"),
        (stream(partitions=257), "streams[0].partitions must be 1 to 256, not 257"),
        (stream(lateness_ms=-1), "streams[0].lateness_ms must be 0 to 316,224,000,000, not -1"),
        (stream(key_field="x" * 4_097), "streams[0].key_field is longer than 4,096 characters"),
        (stream(time_field="a\0t"), "streams[0].time_field holds a NUL character"),
        (stream(late_policy=99), "not 99"),
        (stream(fields=[definition.Field(name="at")]), "streams[0].fields[0].type must be one of FIELD_TYPE_BOOL, "),
        (stream(fields=[definition.Field()] * 501), "streams[0].fields holds 501; at most 500 are possible"),
        (feature(function=0), "views[0].features[0].function must be one of AGGREGATION_FUNCTION_COUNT, "),
        (feature(quantile=math.nan), "views[0].features[0].quantile must be 0 to 1, not nan"),
        (feature(edges=[0.0, math.inf]), "views[0].features[0].edges[1] must be a finite number, not inf"),
        (pipeline(label=definition.Label(wait_ms=MAX_MS + 1)), "pipelines[0].label.wait_ms must be 0 to 316,224,"),
        (pipeline(label=definition.Label(wait_ms=2**63 - 1)), "pipelines[0].label.wait_ms must be"),
        (alarms(1, 0), "pipelines[0].retrain.false_alarms.period_ms must be 1 to 316,224,000,000, not 0"),
        (alarms(0, 1), "pipelines[0].retrain.false_alarms.count must be 1 to 999,999, not 0"),
        (parameter(Value(number_value=math.nan)), "learner.parameters[0].fixed.number_value must be a finite number"),
        (parameter(Value(list_value=ListValue(values=[Value()] * 51))), "list_value.values holds 51; at most 50"),
    ],
)
def test_what_lies_beyond_is_named_with_its_place(applied: Definition, says: str) -> None:
    (fault,) = faults(applied)
    assert says in fault
