"""Reading records: what they say, and what a batch of them makes of the clock."""

import json
from dataclasses import dataclass, field
from typing import Any

from tidemill_contracts.canonical import to_json
from tidemill_contracts.catalogue import Catalogue
from tidemill_contracts.cloudevents import EVENT_TYPE, Attributes, to_headers, watermark
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.instants import parse_us
from tidemill_contracts.reasons import Reason
from tidemill_contracts.serving.v1 import records_pb2 as serving
from tidemill_monitoring.clock import HOUR_US, EventTimes
from tidemill_monitoring.decode import PREDICTIONS, StreamPlan, event, labels, plans_of
from tidemill_monitoring.registered import Registered
from tidemill_monitoring.stepping import step
from tidemill_runtime.batches import Batch
from tidemill_runtime.positions import Partition

AT = "2013-01-01T12:00:00Z"
AT_US = parse_us(AT)
NOW_US = parse_us("2026-01-01T00:00:00Z")


@dataclass
class Written:
    """A record as the consumer hands it over."""

    value: bytes | None
    headers: list[tuple[str, bytes]] = field(default_factory=list)
    topic: str = "t.events.landed"
    partition: int = 0
    offset: int = 5
    timestamp: int = 0
    key: bytes | None = b"a"


def found_definition() -> definition.Definition:
    number, text, when = (
        definition.FIELD_TYPE_FLOAT64,
        definition.FIELD_TYPE_STRING,
        definition.FIELD_TYPE_TIMESTAMP,
    )
    landed = definition.Stream(
        name="landed",
        fields=[
            definition.Field(name="flight", type=text),
            definition.Field(name="delay", type=number, nullable=True),
            definition.Field(name="landed_at", type=when),
            definition.Field(name="due_at", type=when),
        ],
        key_field="flight",
        time_field="landed_at",
        partitions=1,
        max_future_ms=600_000,
    )
    pipeline = definition.Pipeline(
        name="late",
        request="landed",
        label=definition.Label(
            stream="landed", expression="delay > 15 OR hour(due_at) > 22", by="flight", wait_ms=3_600_000
        ),
    )
    return definition.Definition(streams=[landed], pipelines=[pipeline])


def plan() -> StreamPlan:
    found = found_definition()
    catalogue = Catalogue({"landed": found.streams[0]}, {}, {"late": found.pipelines[0]})
    return plans_of(catalogue)["events.landed"]


def landing(**changes: Any) -> Written:
    fields = {"flight": "a", "delay": 20.0, "landed_at": AT, "due_at": AT, **changes}
    kept = {name: value for name, value in fields.items() if value is not ...}
    return Written(json.dumps(kept).encode(), to_headers(Attributes("1", "s", EVENT_TYPE, AT_US)))


def read(record: Written) -> list[Any]:
    return labels(event(record, plan(), NOW_US), plan(), 77)


def test_a_landing_says_its_label_its_time_and_who_it_is() -> None:
    (label,) = read(landing())
    assert label == ("late", "a", "s\x1f1", 1.0, AT_US, 77)
    assert read(landing(delay=3))[0].value == 0.0


def test_a_null_label_says_nothing() -> None:
    assert read(landing(delay=None)) == []


def test_a_foreign_record_is_timed_by_its_field_and_known_by_its_place() -> None:
    record = landing()
    record.headers = []
    (label,) = read(record)
    assert label.label_time_us == AT_US
    assert label.identity == "t.events.landed\x1f0\x1f5"


def test_a_watermark_only_carries_the_clock() -> None:
    record = Written(b"", watermark("landed", AT_US), key=None)
    found = event(record, plan(), NOW_US)
    assert found.time_us == AT_US
    assert labels(found, plan(), 0) == []


def test_a_stream_without_a_label_is_not_parsed() -> None:
    record = Written(b"\xff not json", to_headers(Attributes("1", "s", EVENT_TYPE, AT_US)))
    assert event(record, plan()._replace(labels=[]), NOW_US).fields is None


def stepped(records: list[Written]) -> Any:
    registered = Registered()
    found = definition.DefinitionRecord(kind="pipeline", name="late", definition=found_definition())
    registered.catalogue.streams["landed"] = found.definition.streams[0]
    registered.fold_definition(None)
    registered.fold_definition(to_json(found))
    by_partition = {Partition("events.landed", 0): records}
    return step(EventTimes(), Batch(by_partition), NOW_US, registered)


def test_a_refused_record_moves_no_clock_and_the_rest_of_its_batch_counts() -> None:
    later = landing(delay="bad")
    later.headers = to_headers(Attributes("2", "s", EVENT_TYPE, AT_US + HOUR_US))
    done = stepped([landing(), later])
    assert [one.poison.reason for one in done.refused] == [Reason.WRONG_TYPE]
    assert done.effects.clocks == {"late": AT_US}
    assert len(done.effects.labels) == 1


def test_a_label_remembers_how_far_its_partition_had_come_when_it_was_read() -> None:
    mark = Written(b"", watermark("landed", AT_US + 3 * HOUR_US), key=None)
    early, late = stepped([landing(), mark]), stepped([mark, landing()])
    assert early.effects.labels[0].ready_us == AT_US
    assert late.effects.labels[0].ready_us == AT_US + 3 * HOUR_US


def test_the_same_event_twice_in_a_batch_is_one_label() -> None:
    assert len(stepped([landing(), landing()]).effects.labels) == 1


def test_a_retired_pipeline_is_watched_no_more_and_what_it_predicted_can_still_be_judged() -> None:
    registered = Registered()
    found = definition.DefinitionRecord(kind="pipeline", name="late", definition=found_definition())
    registered.fold_definition(to_json(found))
    assert registered.topics() == ["events.landed", PREDICTIONS]
    for kind, name in (("pipeline", "late"), ("stream", "landed")):
        registered.fold_definition(to_json(definition.DefinitionRecord(kind=kind, name=name, retired=True)))
    assert (registered.pipelines(), registered.topics(), registered.definition("late")) == ([], [], None)
    assert not step(EventTimes(), Batch({}), NOW_US, registered).effects.clocks
    assert registered.partitions("late") == [Partition("events.landed", 0)]
    assert (registered.waits["late"].us, registered.criteria("late")) == (3_600_000_000, None)
    registered.fold_definition(to_json(found))
    assert registered.pipelines() == ["late"]


def test_predictions_of_one_id_are_one_prediction_the_first() -> None:
    registered = Registered()
    logged = [
        serving.PredictionRecord(prediction_id="x", pipeline="late", join_key=key).SerializeToString() for key in "ab"
    ]
    batch = Batch({Partition(PREDICTIONS, 0): [Written(value) for value in logged]})
    effects = step(EventTimes(), batch, NOW_US, registered).effects
    assert [one.join_key for one in effects.predictions] == ["a"]


def test_a_batch_says_who_was_heard_and_how_far_what_the_clock_waits_for_is_read() -> None:
    registered, logged, other = Registered(), Partition(PREDICTIONS, 0), Partition("events.other", 0)
    registered.fold_definition(
        to_json(definition.DefinitionRecord(kind="pipeline", name="late", definition=found_definition()))
    )
    (landed,) = registered.partitions("late")
    times = EventTimes({other: AT_US + HOUR_US}, idle_us=1, now_us=0)
    times.hold({logged: 6})
    prediction = serving.PredictionRecord(prediction_id="x", pipeline="late", join_key="a", as_of_us=AT_US - 1)
    step(times, Batch({landed: [landing()]}), NOW_US, registered)
    assert times.clock([landed, other], NOW_US) is None
    step(times, Batch({logged: [Written(prediction.SerializeToString())]}), NOW_US, registered)
    # All but the one that was heard are silent.
    assert times.clock([landed, other], NOW_US) == AT_US


def test_what_is_kept_from_the_group_is_waited_for_no_longer_than_it_takes_to_read_it() -> None:
    registered, logged = Registered(), Partition(PREDICTIONS, 0)
    registered.fold_definition(
        to_json(definition.DefinitionRecord(kind="pipeline", name="late", definition=found_definition()))
    )
    (landed,) = registered.partitions("late")
    added = Partition(landed.topic, 1)
    times = EventTimes({landed: AT_US}, whole={landed.topic: 1}, now_us=0)
    times.hold({logged: 6, added: 2})
    step(times, Batch({}, {logged: 5}), NOW_US, registered)
    step(times, Batch({}, {added: 2}), NOW_US, registered)
    assert times.clock([landed, added], NOW_US) is None
    step(times, Batch({}, {logged: 6}), NOW_US, registered)
    assert times.clock([landed, added], NOW_US) == AT_US
