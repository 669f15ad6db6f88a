"""What the registry's topics say together: one pipeline that cannot be joined takes none with it."""

from collections.abc import Iterable

import pytest
from tidemill_contracts.canonical import from_json, to_json
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.instants import to_timestamp
from tidemill_contracts.reasons import Reason
from tidemill_contracts.registry.v1 import records_pb2 as registry
from tidemill_contracts.topics import events_topic
from tidemill_monitoring.clock import EventTimes
from tidemill_monitoring.decode import PREDICTIONS
from tidemill_monitoring.registered import Registered
from tidemill_monitoring.stepping import clocks_of
from tidemill_runtime.errors import Poison
from tidemill_runtime.positions import Partition


def stream(name: str, *more: str) -> definition.Stream:
    """Return a stream of one partition with a key, a time, x, and more numbers."""
    number = definition.FIELD_TYPE_FLOAT64
    return definition.Stream(
        name=name,
        fields=[
            definition.Field(name="id", type=definition.FIELD_TYPE_STRING),
            definition.Field(name="at", type=definition.FIELD_TYPE_TIMESTAMP),
            *(definition.Field(name=one, type=number) for one in ("x", *more)),
        ],
        key_field="id",
        time_field="at",
        partitions=1,
    )


def pipeline(name: str, told: definition.Stream, label: str = "x > 1", by: str = "id") -> bytes:
    """Return the record of a pipeline that is asked about on `ask` and labelled by `told`."""
    found = definition.Pipeline(
        name=name,
        request="ask",
        label=definition.Label(stream=told.name, expression=label, by=by, wait_ms=1_000),
    )
    closure = definition.Definition(streams=[stream("ask"), told], pipelines=[found])
    return to_json(definition.DefinitionRecord(kind="pipeline", name=name, revision=1, definition=closure))


def narrowed(told: definition.Stream) -> bytes:
    """Return the record of a stream by itself."""
    closure = definition.Definition(streams=[told])
    return to_json(definition.DefinitionRecord(kind="stream", name=told.name, revision=2, definition=closure))


def read(values: Iterable[bytes]) -> Registered:
    registered = Registered()
    for value in values:
        registered.fold_definition(value)
    return registered


def times(*streams: str) -> EventTimes:
    return EventTimes({Partition(events_topic(name), 0): 7 for name in streams})


TIPS = pipeline("tips", stream("told", "tip"), "tip > 1")
OTHER = pipeline("other", stream("told2"))
BROKEN = narrowed(stream("told"))
NEW = pipeline("new", stream("told3"))


@pytest.mark.parametrize("kept", [(TIPS, OTHER, BROKEN, NEW), (TIPS, BROKEN, NEW, OTHER), (NEW, TIPS, BROKEN, OTHER)])
def test_a_label_that_lost_its_field_leaves_every_other_pipeline_joined(kept: tuple[bytes, ...]) -> None:
    registered = read(kept)
    assert registered.pipelines() == ["new", "other"]
    assert registered.faults == {"tips": "its label: no field 'tip'; it has at, id, x (at column 1)"}
    assert registered.topics() == ["events.ask", "events.told2", "events.told3", PREDICTIONS]
    assert clocks_of(times("ask", "told2", "told3"), registered, 0) == {"new": 7, "other": 7}


def test_a_label_that_can_be_read_again_is_joined_again() -> None:
    registered = read((TIPS, OTHER, BROKEN, narrowed(stream("told", "tip"))))
    assert (registered.pipelines(), registered.faults) == (["other", "tips"], {})
    assert [plan.pipeline for plan in registered.plans["events.told"].labels] == ["tips"]


@pytest.mark.parametrize(
    ("label", "by", "fault"),
    [
        ("nonsense(", "id", "its label: not an SQL expression"),
        ("a_function_of_the_next_release(x) > 1", "id", "its label: "),
        ("id", "id", "its label: it is of type string, neither a condition nor a number"),
        ("x > 1", "nobody", "its label: stream 'told' has no string field 'nobody' to join it by"),
        ("x > 1", "x", "its label: stream 'told' has no string field 'x' to join it by"),
    ],
)
def test_a_label_that_cannot_be_read_spoils_no_other_label_of_its_stream(label: str, by: str, fault: str) -> None:
    registered = read((pipeline("odd", stream("told"), label, by), pipeline("good", stream("told"))))
    assert list(registered.faults) == ["odd"]
    assert registered.faults["odd"].startswith(fault)
    assert [plan.pipeline for plan in registered.plans["events.told"].labels] == ["good"]
    assert clocks_of(times("ask", "told"), registered, 0) == {"good": 7}


def test_a_pipeline_of_a_view_that_is_not_registered_is_not_joined() -> None:
    lookup = definition.ViewLookup(view="origin", on=["id"])
    found = definition.Pipeline(
        name="odd",
        request="ask",
        features=[definition.FeatureSource(name="view", view=lookup)],
        label=definition.Label(stream="told", expression="x > 1", by="id"),
    )
    closure = definition.Definition(streams=[stream("ask"), stream("told")], pipelines=[found])
    odd = to_json(definition.DefinitionRecord(kind="pipeline", name="odd", definition=closure))
    registered = read((odd, OTHER))
    assert registered.faults == {"odd": "'origin', which it reads, is not registered"}
    assert registered.pipelines() == ["other"]


def test_a_record_that_is_no_definition_is_refused_and_changes_nothing() -> None:
    registered = read((OTHER,))
    with pytest.raises(Poison) as caught:
        registered.fold_definition(b"{")
    assert caught.value.reason == Reason.UNDECODABLE
    assert registered.pipelines() == ["other"]


def version(number: int, stage: str = "refused") -> bytes:
    return to_json(registry.VersionRecord(pipeline="other", version=number, stage=stage))


@pytest.mark.parametrize("stage", ["champion", "canary", "shadow"])
def test_a_version_that_answers_keeps_its_profile_however_many_newer_ones_there_are(stage: str) -> None:
    registered = Registered()
    registered.fold_version(version(1, stage))
    for number in range(2, 60):
        registered.fold_version(version(number))
    kept = [number for number in range(1, 60) if registered.profile("other", number)]
    assert kept == [1, *range(40, 60)]
    registered.fold_version(version(1, "retired"))
    registered.fold_version(version(60))
    assert registered.profile("other", 1) is None


def test_the_schedule_counts_from_the_first_champion_not_from_the_present_one() -> None:
    registered = Registered()
    for number in (1, 2):
        found = registry.DeploymentRecord(pipeline="other", revision=number, decided_at=to_timestamp(number))
        found.champion.version = number
        registered.fold_deployment(to_json(found))
    assert registered.champion_since_us == {"other": 1}


def test_of_several_limits_the_smallest_counts() -> None:
    record = from_json(OTHER, definition.DefinitionRecord())
    for limit in (0.2, 0.1, 0.3):
        record.definition.pipelines[0].monitors.add(performance=definition.PerformanceMonitor(limit=limit))
    criteria = read((to_json(record),)).criteria("other")
    assert criteria is not None
    assert criteria.limit == 0.1
