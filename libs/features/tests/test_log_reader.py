"""What is read of the log gives the rows that the whole log gives, bit for bit."""

import json
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyiceberg.catalog.sql import SqlCatalog
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.topics import events_topic
from tidemill_features.admission import rules_of
from tidemill_features.archive import (
    ARRIVAL_PROPERTY,
    NAMESPACE,
    PREDICTIONS_TOPIC,
    TableColumn,
    columns_of,
    counting,
)
from tidemill_features.archive import KINDS as KEPT_KINDS
from tidemill_features.columns import column_of
from tidemill_features.expressions_vector import NEUTRAL
from tidemill_features.finalise import NOT_FOUND, OUTSIDE_MAX_AGE
from tidemill_features.iceberg import Archive, arrow_schema
from tidemill_features.log_columns import LogRows
from tidemill_features.log_reader import read_inputs
from tidemill_features.logged import Logged, predicted
from tidemill_features.training_set import Arrival, StreamLog, TrainingSet, Window
from tidemill_features.upkeep import Upkeep
from tidemill_testkit.effort import examples

SECOND = 1_000_000
TEXT, FLOAT, TIME = definition.FIELD_TYPE_STRING, definition.FIELD_TYPE_FLOAT64, definition.FIELD_TYPE_TIMESTAMP
KINDS = {"id": TEXT, "who": TEXT, "amount": FLOAT}
KEYS = ["a", "b", "c", "d"]
PEOPLE = ["x", "y", "z", None]


def stream(name: str, policy: definition.LatePolicy.ValueType) -> definition.Stream:
    found = definition.Stream(
        name=name, key_field="id", time_field="at", partitions=2, lateness_ms=4_000, dedup_window_ms=6_000
    )
    found.late_policy = policy
    for column, kind in (*KINDS.items(), ("at", TIME)):
        found.fields.add(name=column, type=kind, nullable=column != "id")
    return found


def closure(policy: definition.LatePolicy.ValueType) -> definition.Definition:
    view = definition.View(name="who", stream="paid", entity=["who"], max_age_ms=20_000)
    for name, function, window_ms in (
        ("count", definition.AGGREGATION_FUNCTION_COUNT, 12_000),
        ("mean", definition.AGGREGATION_FUNCTION_MEAN, 12_000),
        ("last", definition.AGGREGATION_FUNCTION_LAST, 0),
    ):
        counts = function == definition.AGGREGATION_FUNCTION_COUNT
        view.features.add(
            name=name,
            function=function,
            expression="" if counts else "amount",
            window_ms=window_ms,
            type=definition.FIELD_TYPE_INT64 if counts else FLOAT,
        )
    pipeline = definition.Pipeline(name="p", request="asked")
    pipeline.features.add(name="v", view=definition.ViewLookup(view="who", on=["who"]))
    pipeline.features.add(name="from", expression="who")
    pipeline.label.CopyFrom(definition.Label(stream="paid", expression="amount > 2", by="id", wait_ms=30_000))
    return definition.Definition(
        streams=[stream("asked", policy), stream("paid", policy)], views=[view], pipelines=[pipeline]
    )


@dataclass
class Log:
    """The records of one stream in the order of the log; offsets rise by partition, with gaps."""

    rows: list[dict[str, Any]] = field(default_factory=list)

    def columns(self) -> dict[str, list[Any]]:
        names = ("_partition", "_offset", "_identity", "_event_us", "_available_us", "id", "who", "amount")
        return {name: [row[name] for row in self.rows] for name in names}

    def sorted(self) -> "Log":
        return Log(sorted(self.rows, key=lambda row: (row["_partition"], row["_offset"])))


@st.composite
def logs(draw: st.DrawFn) -> Log:
    found = Log()
    offsets = [0, 0]
    now, loaded = 0, draw(st.sampled_from([0, 0, 60]))
    for number in range(draw(st.integers(0, 40))):
        # Mostly forward, with pauses beyond every window, and some events out of order.
        now += draw(st.sampled_from([0, 0, 1, 2, 3, 9, 40]))
        partition = draw(st.sampled_from([0, 0, 1]))
        offsets[partition] += draw(st.sampled_from([1, 1, 3]))
        found.rows.append(
            {
                "_partition": partition,
                "_offset": offsets[partition],
                # Names repeat, also with another time.
                "_identity": draw(st.sampled_from([f"#{number}", "s\x1f1", "s\x1f2"])),
                "_event_us": (now - draw(st.sampled_from([0, 0, 0, 3, 7, 30]))) * SECOND,
                # As it happens, or the log's beginning after it was over.
                "_available_us": max(loaded, now + draw(st.sampled_from([0, 0, 2, 50]))) * SECOND,
                "id": draw(st.sampled_from(KEYS)),
                "who": draw(st.sampled_from(PEOPLE)),
                "amount": draw(st.sampled_from([0.1, 0.2, 3.3, None])),
            }
        )
    return found


@st.composite
def predictions(draw: st.DrawFn) -> list[dict[str, Any]]:
    found = []
    for number in range(draw(st.integers(0, 6))):
        cut = {"0": draw(st.integers(0, 60)), "1": draw(st.integers(0, 30))}
        as_of = draw(st.integers(0, 200))
        found.append(
            {
                "_partition": 0,
                "_offset": number,
                "prediction_id": draw(st.sampled_from(["p1", "p2", f"q{number}"])),
                "pipeline": draw(st.sampled_from(["p", "p", "other"])),
                "join_key": draw(st.sampled_from(KEYS)),
                "as_of_us": as_of * SECOND,
                # Perhaps before any record of the log that is there now.
                "_available_us": (as_of + draw(st.sampled_from([0, 0, 300]))) * SECOND,
                "positions": json.dumps({"events.paid": cut}),
                "request_json": json.dumps({"id": "a", "who": draw(st.sampled_from(PEOPLE))}),
            }
        )
    return found


def written(home: Path, given: definition.Definition, asked: Log, paid: Log, logged: list[dict[str, Any]]) -> Archive:
    """Write the log in several commits, as the offline role does, and merge its files."""
    home = home / uuid.uuid4().hex
    home.mkdir()
    catalogue = SqlCatalog(NAMESPACE, uri=f"sqlite:///{home}/catalogue.db", warehouse=f"file://{home}")
    archive = Archive.over(catalogue)
    streams = {one.name: one for one in given.streams}
    for topic, rows in ((events_topic("asked"), asked.rows), (events_topic("paid"), paid.rows), (None, logged)):
        name = topic or PREDICTIONS_TOPIC
        columns = columns_of(name, streams)
        for first in range(0, len(rows), 16):
            part = [{**blank(name), **row} for row in rows[first : first + 16]]
            table = pa.table({c.name: [row.get(c.name) for row in part] for c in columns}, arrow_schema(columns))
            archive.append(name, columns, table, {})
        archive.keep_up(name, 2**42, Upkeep(keep_s=0.0, keep_snapshots=1, orphan_s=0.0, piece_rows=7))
    return archive


def blank(topic: str) -> dict[str, Any]:
    row = {"_available_us": 0, "_identity": "", "_event_us": 0}
    return row if topic != PREDICTIONS_TOPIC else {**row, "model_version": 1, "probability": 0.5}


def whole(log: Log, described: definition.Stream, names: list[str], limits: dict[int, int]) -> StreamLog:
    """Return everything, judged at once."""
    rows = [row for row in log.sorted().rows if row["_offset"] < limits.get(row["_partition"], 2**62)]
    columns = Log(rows).columns()
    partition, offset, event_us = (np.array(columns[n], np.int64) for n in ("_partition", "_offset", "_event_us"))
    codes = np.array([sorted(set(columns["_identity"])).index(name) for name in columns["_identity"]], np.int64)
    counts = counting(partition, offset, codes, event_us, rules_of(described))
    fields = {name: column_of(columns[name], kind) for name, kind in KINDS.items() if name in names}
    first_us = min((row["_available_us"] for row in log.rows), default=0)
    arrival = Arrival(np.array(columns["_available_us"], np.int64), first_us)
    return StreamLog(partition, offset, event_us, counts, fields, arrival=arrival)


def reference(
    given: definition.Definition, asked: Log, paid: Log, logged: list[dict[str, Any]], limits: dict[int, int]
) -> tuple[dict[str, StreamLog], Any]:
    mine = [row for row in logged if row["pipeline"] == "p"]
    rows = Logged(
        [row["prediction_id"] for row in mine],
        [row["join_key"] for row in mine],
        np.array([row["as_of_us"] for row in mine], np.int64),
        [row["request_json"] for row in mine],
        [row["positions"] for row in mine],
        np.arange(len(mine)),
        np.array([row["_available_us"] for row in mine], np.int64),
    )
    asked_stream, paid_stream = given.streams
    found = predicted(rows, asked_stream, [paid_stream], ["id", "who"])
    return {
        "asked": whole(asked, asked_stream, ["id", "who"], {}),
        "paid": whole(paid, paid_stream, [*KINDS], limits),
    }, found


def columns_equal(one: TrainingSet, other: TrainingSet) -> None:
    assert one.as_of_us.tolist() == other.as_of_us.tolist()
    assert one.join_key.tolist() == other.join_key.tolist()
    assert one.labels.tolist() == other.labels.tolist()
    (left,), (right,) = list(one.parts()), list(other.parts(10**9))
    for name, values in left.numbers.items():
        assert values.tobytes() == right.numbers[name].tobytes(), name
    assert left.categories == right.categories
    assert left.status.tolist() == right.status.tolist()


@pytest.mark.parametrize(
    ("policy", "edge_events"),
    [(definition.LATE_POLICY_DROP, 0), (definition.LATE_POLICY_CORRECT, 0), (definition.LATE_POLICY_DROP, 2)],
)
@settings(
    max_examples=examples(15),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(asked=logs(), paid=logs(), logged=predictions(), from_s=st.integers(0, 200), limit=st.sampled_from([10, 2**40]))
def test_what_is_left_unread_changes_no_value_and_no_status(
    tmp_path: Path,
    policy: definition.LatePolicy.ValueType,
    edge_events: int,
    asked: Log,
    paid: Log,
    logged: list[dict[str, Any]],
    from_s: int,
    limit: int,
) -> None:
    given = closure(policy)
    if edge_events:
        # Whether a bucket overflowed must not hang on what was read either.
        given.views[0].accuracy, given.views[0].edge_events = definition.ACCURACY_EXACT, edge_events
    window = Window(from_s * SECOND, 400 * SECOND)
    limits = {0: limit}
    # A prediction before the window hides no request of it: it is not read.
    kept = [row for row in logged if row["as_of_us"] >= window.from_us]
    archive = written(tmp_path, given, asked, paid, logged)
    inputs = read_inputs(archive, given, window, {("events.paid", 0): limit})
    logs_, asked_ = reference(given, asked, paid, kept, limits)
    columns_equal(TrainingSet(given, inputs.logs, inputs.predicted, window), TrainingSet(given, logs_, asked_, window))


def record(at_s: int, offset: int, key: str, who: str | None, *, name: str = "") -> dict[str, Any]:
    row = {"_partition": 0, "_offset": offset, "_identity": name or f"#{offset}", "_event_us": at_s * SECOND}
    row["_available_us"] = row["_event_us"]
    return {**row, "id": key, "who": who, "amount": 3.3}


def test_a_count_is_0_for_whom_only_the_unread_part_knows_and_null_for_whom_nobody_does(tmp_path: Path) -> None:
    given = closure(definition.LATE_POLICY_DROP)
    paid = Log(
        [
            record(10, 1, "-", "x", name="s\x1f1"),
            record(11, 2, "-", "repeated", name="s\x1f1"),
            record(3, 3, "-", "late"),
            *(record(200 + place, 4 + place, f"r{place}", "y") for place in range(5)),
        ]
    )
    people = ["x", "repeated", "late", "stranger", None]
    asked = Log([record(190 + place, place, f"r{place}", who) for place, who in enumerate(people)])
    window = Window(180 * SECOND, 400 * SECOND)
    archive = written(tmp_path, given, asked, paid, [])
    inputs = read_inputs(archive, given, window, {})
    assert len(inputs.logs["paid"].offset) == 5
    rows = TrainingSet(given, inputs.logs, inputs.predicted, window)
    (part,) = rows.parts()
    assert rows.join_key.tolist() == ["r0", "r1", "r2", "r3", "r4"]
    assert part.numbers["v.count"].tolist() == pytest.approx([0.0, *[np.nan] * 4], nan_ok=True)
    assert part.status[:, 0].tolist() == [OUTSIDE_MAX_AGE, *[NOT_FOUND] * 4]
    columns_equal(rows, TrainingSet(given, *reference(given, asked, paid, [], {}), window))


def test_whom_a_prediction_could_not_have_known_yet_it_does_not_know(tmp_path: Path) -> None:
    given = closure(definition.LATE_POLICY_DROP)
    paid = Log([record(10, 1, "-", "x"), record(200, 2, "a", "y"), record(200, 3, "b", "y")])
    logged = []
    for place, (key, cut) in enumerate((("a", 1), ("b", 2))):
        request = json.dumps({"id": key, "who": "x"})
        row = {"_partition": 0, "_offset": place, "prediction_id": key, "pipeline": "p", "join_key": key}
        positions = json.dumps({"events.paid": {"0": cut}})
        row |= {"as_of_us": 190 * SECOND, "_available_us": 190 * SECOND}
        logged.append({**row, "positions": positions, "request_json": request})
    archive = written(tmp_path, given, Log(), paid, logged)
    window = Window(180 * SECOND, 400 * SECOND)
    inputs = read_inputs(archive, given, window, {})
    (part,) = TrainingSet(given, inputs.logs, inputs.predicted, window).parts()
    assert part.numbers["v.count"].tolist() == pytest.approx([np.nan, 0.0], nan_ok=True)


def test_an_event_that_repeats_an_unneeded_record_is_still_a_duplicate(tmp_path: Path) -> None:
    given = closure(definition.LATE_POLICY_DROP)
    # The clock stood at 150 s when the second came; the first, out of every window, is one within the dedup window.
    paid = Log(
        [
            record(100, 1, "-", "z"),
            record(150, 2, "-", "x", name="s\x1f1"),
            record(300, 3, "-", "x", name="s\x1f1"),
            record(310, 4, "a", "y"),
        ]
    )
    asked = Log([record(305, 0, "a", "x")])
    window = Window(303 * SECOND, 400 * SECOND)
    archive = written(tmp_path, given, asked, paid, [])
    inputs = read_inputs(archive, given, window, {})
    rows = TrainingSet(given, inputs.logs, inputs.predicted, window)
    (part,) = rows.parts()
    assert part.numbers["v.count"].tolist() == [0.0]
    columns_equal(rows, TrainingSet(given, *reference(given, asked, paid, [], {}), window))


def test_rows_span_a_widened_and_an_added_field(tmp_path: Path) -> None:
    before = closure(definition.LATE_POLICY_DROP)
    for one in before.streams:
        del one.fields[1]
        next(field for field in one.fields if field.name == "amount").type = definition.FIELD_TYPE_INT64
    after = closure(definition.LATE_POLICY_DROP)
    old = [{**record(at, at, "-", None), "amount": amount} for at, amount in ((190, 2), (195, 5))]
    new = [{**record(at, at, "a", "x"), "amount": amount} for at, amount in ((198, 0.5), (200, 2.5))]
    archive = written(tmp_path, before, Log(), Log(old), [])
    streams = {one.name: one for one in after.streams}
    for topic, rows in (("events.paid", new), ("events.asked", [{**record(199, 0, "a", "x")}])):
        columns = columns_of(topic, streams)
        full = [{**blank(topic), **row} for row in rows]
        table = pa.table({c.name: [row.get(c.name) for row in full] for c in columns}, arrow_schema(columns))
        archive.append(topic, columns, table, {})
    window = Window(180 * SECOND, 400 * SECOND)
    inputs = read_inputs(archive, after, window, {})
    log = inputs.logs["paid"]
    assert log.columns["amount"].values.tolist() == [2.0, 5.0, 0.5, 2.5]
    assert log.columns["who"].nulls.tolist() == [True, True, False, False]
    (part,) = TrainingSet(after, inputs.logs, inputs.predicted, window).parts()
    # Who it was is not known of the old rows.
    assert part.numbers["v.mean"].tolist() == [0.5]


def test_whom_only_the_unread_part_knows_is_not_known_before_that_came_to_the_log(tmp_path: Path) -> None:
    given = closure(definition.LATE_POLICY_DROP)
    first = record(10, 1, "-", "z")
    late = {**record(11, 2, "-", "x"), "_available_us": 185 * SECOND}
    paid = Log([first, late, *(record(200 + place, 3 + place, f"r{place}", "y") for place in range(2))])
    asked = Log([record(184, 0, "r0", "x"), record(185, 1, "r1", "x")])
    window = Window(180 * SECOND, 400 * SECOND)
    inputs = read_inputs(written(tmp_path, given, asked, paid, []), given, window, {})
    assert len(inputs.logs["paid"].offset) == 2, "what happened before every window is not read"
    rows = TrainingSet(given, inputs.logs, inputs.predicted, window)
    (part,) = rows.parts()
    assert part.numbers["v.count"].tolist() == pytest.approx([np.nan, 0.0], nan_ok=True)
    columns_equal(rows, TrainingSet(given, *reference(given, asked, paid, [], {}), window))


def test_a_table_of_an_earlier_release_does_not_know_when_its_records_came(tmp_path: Path) -> None:
    given = closure(definition.LATE_POLICY_DROP)
    # What stood there was the pipeline clock at the commit, here long after everything.
    paid = Log([{**record(at, at, "a", "x"), "_available_us": available} for at, available in ((190, 1), (200, 999))])
    asked = Log([record(199, 0, "a", "x")])
    window = Window(180 * SECOND, 400 * SECOND)
    archive = written(tmp_path, given, asked, paid, [])
    with archive._catalogue.load_table((NAMESPACE, "events_paid")).transaction() as transaction:
        transaction.remove_properties(ARRIVAL_PROPERTY)
    inputs = read_inputs(archive, given, window, {})
    assert inputs.logs["asked"].arrival is not None
    assert inputs.logs["paid"].arrival is None
    (part,) = TrainingSet(given, inputs.logs, inputs.predicted, window).parts()
    assert part.numbers["v.count"].tolist() == [1.0]


@pytest.mark.parametrize(
    "kept",
    [
        pa.array([True, None]),
        pa.array([7, None]),
        pa.array([2.5, None]),
        pa.array(["x", None]),
        pa.array([7, None], pa.timestamp("us", tz="UTC")),
    ],
    ids=["bool", "int", "float", "text", "instant"],
)
def test_a_field_that_came_back_as_another_type_has_no_values_until_the_log_keeps_it_anew(kept: pa.Array) -> None:
    rows = LogRows.before(pa.table({"_partition": [0, 0], "_offset": [0, 1], "field": kept}), {})
    kinds = {kind: arrow_schema([TableColumn("field", name)]).field("field").type for kind, name in KEPT_KINDS.items()}
    for kind, wanted in kinds.items():
        column = rows.column("field", kind)
        fits = kept.type == wanted or (pa.types.is_int64(kept.type) and pa.types.is_float64(wanted))
        assert column.nulls.tolist() == [not fits, True]
        if not fits:
            assert column.values.tolist() == [NEUTRAL[kind]] * 2
