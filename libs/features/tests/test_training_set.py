"""The training set, row by row, on made-up columns."""

import tracemalloc
from dataclasses import dataclass, replace

import numpy as np
import pytest
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_features.archive import available_us
from tidemill_features.expressions import Column
from tidemill_features.finalise import HEAD_EXCLUDED_BIT
from tidemill_features.training_set import (
    Arrival,
    Asked,
    StreamLog,
    TrainingSet,
    TrainingSetError,
    Window,
    cut_by_time,
    join_keys,
)

MINUTE_US = 60_000_000
EVER = Window(0, 10**15)


def text(*values: str | None) -> Column:
    nulls = np.array([value is None for value in values], dtype=np.bool_)
    return Column(np.array([value or "" for value in values], dtype=np.object_), nulls)


def number(*values: float | None) -> Column:
    nulls = np.array([value is None for value in values], dtype=np.bool_)
    return Column(np.array([0.0 if value is None else value for value in values]), nulls)


def closure(label: str = "delay > 15", wait_minutes: int = 600, absent: bool | None = None) -> definition.Definition:
    string, float64, timestamp = (
        definition.FIELD_TYPE_STRING,
        definition.FIELD_TYPE_FLOAT64,
        definition.FIELD_TYPE_TIMESTAMP,
    )
    asked = definition.Stream(name="asked", key_field="id", time_field="at", partitions=2)
    landed = definition.Stream(name="landed", key_field="id", time_field="at", partitions=2)
    for name, kind, nullable in (("id", string, False), ("origin", string, True), ("at", timestamp, False)):
        asked.fields.add(name=name, type=kind, nullable=nullable)
        landed.fields.add(name=name, type=kind, nullable=nullable)
    landed.fields.add(name="delay", type=float64, nullable=True)
    view = definition.View(name="origin", stream="landed", entity=["origin"])
    view.features.add(
        name="seen",
        function=definition.AGGREGATION_FUNCTION_COUNT,
        window_ms=3_600_000,
        type=definition.FIELD_TYPE_INT64,
    )
    view.features.add(
        name="worst",
        function=definition.AGGREGATION_FUNCTION_MAX,
        expression="delay",
        window_ms=3_600_000,
        type=float64,
    )
    pipeline = definition.Pipeline(name="late", request="asked")
    pipeline.features.add(name="o", view=definition.ViewLookup(view="origin", on=["origin"]))
    pipeline.features.add(name="from", expression="origin")
    pipeline.features.add(name="hour", expression="hour(at)")
    wait_ms = wait_minutes * 60_000
    pipeline.label.CopyFrom(
        definition.Label(stream="landed", expression=label, by="id", wait_ms=wait_ms, absent=absent)
    )
    return definition.Definition(streams=[asked, landed], views=[view], pipelines=[pipeline])


@dataclass(frozen=True)
class Landing:
    """One record of `landed`; its offset is its place in the list, counted per partition.

    `came`: when it came to the log, where the log knows that of any record; by default when it happened.
    """

    id: str
    minute: float
    delay: float | None
    partition: int = 0
    counts: bool = True
    origin: str = "JFK"
    came: float | None = None


@dataclass(frozen=True)
class Request:
    id: str
    minute: float
    partition: int = 0
    counts: bool = True
    came: float | None = None


def offsets(partitions: list[int]) -> np.ndarray:
    seen: dict[int, int] = {}
    found = []
    for partition in partitions:
        found.append(seen.get(partition, 0))
        seen[partition] = found[-1] + 1
    return np.array(found, dtype=np.int64)


def log(rows: list[Landing] | list[Request], columns: dict[str, Column]) -> StreamLog:
    event_us = np.array([round(row.minute * MINUTE_US) for row in rows], dtype=np.int64)
    partitions = [row.partition for row in rows]
    at = Column(event_us, np.zeros(len(rows), dtype=np.bool_))
    counts = np.array([row.counts for row in rows], dtype=np.bool_)
    arrival = None
    if any(row.came is not None for row in rows):
        came = [round((row.minute if row.came is None else row.came) * MINUTE_US) for row in rows]
        arrival = Arrival(np.array(came, dtype=np.int64), min(came))
    places = (np.array(partitions, dtype=np.int64), offsets(partitions))
    return StreamLog(*places, event_us, counts, {**columns, "at": at}, arrival=arrival)


def logs(requests: list[Request], landings: list[Landing]) -> dict[str, StreamLog]:
    asked = {"id": text(*(row.id for row in requests)), "origin": text(*("JFK" for _ in requests))}
    landed = {
        "id": text(*(row.id for row in landings)),
        "origin": text(*(row.origin for row in landings)),
        "delay": number(*(row.delay for row in landings)),
    }
    return {"asked": log(requests, asked), "landed": log(landings, landed)}


def nobody_predicted() -> Asked:
    empty = np.empty(0, dtype=np.int64)
    at = Column(empty, np.empty(0, dtype=np.bool_))
    return Asked(np.empty(0, dtype=np.object_), empty, {"id": text(), "origin": text(), "at": at}, {})


def predicted(key: str, minute: float, cut: tuple[int, int]) -> Asked:
    at = np.array([round(minute * MINUTE_US)])
    columns = {"id": text(key), "origin": text("JFK"), "at": Column(at, np.array([False]))}
    cuts = {"asked": np.zeros((1, 2), dtype=np.int64), "landed": np.array([cut], dtype=np.int64)}
    return Asked(np.array([key], dtype=np.object_), at, columns, cuts)


@dataclass(frozen=True)
class Table:
    """A training set, all parts together."""

    rows: TrainingSet
    numbers: dict[str, np.ndarray]
    categories: dict[str, list[str | None]]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def labels(self) -> np.ndarray:
        return self.rows.labels

    @property
    def as_of_us(self) -> np.ndarray:
        return self.rows.as_of_us


def table(requests: list[Request], landings: list[Landing], asked: Asked | None = None, window: Window = EVER) -> Table:
    rows = TrainingSet(closure(), logs(requests, landings), asked or nobody_predicted(), window)
    # Parts of two rows: what a row is does not depend on those beside it.
    parts = list(rows.parts(2))
    numbers = {name: np.concatenate([part.numbers[name] for part in parts]) for name in parts[0].numbers}
    categories = {name: [v for part in parts for v in part.categories[name]] for name in parts[0].categories}
    return Table(rows, numbers, categories)


def test_a_row_without_a_prediction_sees_the_events_before_the_first_one_after_it() -> None:
    landings = [
        Landing("x", 10, 20.0),
        Landing("a", 50, 0.0),
        # Lies after the request in the log, though its time is before it: the rings did not hold it yet.
        Landing("y", 20, 90.0),
    ]
    found = table([Request("a", 30)], landings)
    assert found.labels.tolist() == [0.0]
    assert found.numbers["o.seen"].tolist() == [1.0]
    assert found.numbers["o.worst"].tolist() == [20.0]
    assert found.numbers["hour"].tolist() == [0.0]
    assert found.categories["from"] == ["JFK"]
    assert list(zip(found.rows.names, found.rows.category, strict=True)) == [
        ("o.seen", False),
        ("o.worst", False),
        ("from", True),
        ("hour", False),
    ]


def test_a_prediction_sees_what_its_positions_say_whatever_its_time() -> None:
    landings = [
        Landing("x", 10, 20.0),
        Landing("y", 20, 90.0),
        Landing("z", 20, 99.0, partition=1),
        Landing("a", 50, 30.0),
    ]
    for cut, worst in (((1, 0), 20.0), ((2, 0), 90.0), ((2, 1), 99.0)):
        found = table([Request("a", 30)], landings, predicted("a", 30, cut))
        assert found.numbers["o.worst"].tolist() == [worst]
    assert np.isnan(table([Request("a", 30)], landings, predicted("a", 30, (0, 0))).numbers["o.worst"]).all()


def test_a_prediction_that_saw_a_topic_of_before_is_no_row_and_its_request_is_read_by_time() -> None:
    # The topic was made anew in minute 60, and what had happened before was sent again.
    landings = [Landing("x", 10, 20.0, came=60), Landing("y", 20, 90.0, came=60), Landing("a", 50, 30.0, came=61)]
    asked = predicted("a", 31, (1, 0))
    for logged, at, worst in ((31.0, 30, 90.0), (59.9, 30, 90.0), (60.0, 31, 20.0)):
        logged_us = np.array([round(logged * MINUTE_US)])
        found = table([Request("a", 30)], landings, replace(asked, logged_us=logged_us))
        assert found.as_of_us.tolist() == [at * MINUTE_US]
        assert found.numbers["o.worst"].tolist() == [worst]
    # One that had seen nothing is the same of either topic.
    unseen = replace(predicted("a", 31, (0, 0)), logged_us=np.array([31 * MINUTE_US]))
    assert table([Request("a", 30)], landings, unseen).as_of_us.tolist() == [31 * MINUTE_US]


def test_a_request_that_nobody_predicted_does_not_see_itself() -> None:
    described = closure()
    described.views[0].stream = "asked"
    # Only a count, since requests have no delay.
    del described.views[0].features[1:]
    requests = [
        Request("a", 10),
        Request("b", 20),
        Request("c", 20, partition=1),
        # Of one instant and one partition, the log says which was first.
        Request("d", 30),
        Request("e", 30),
        # Came to the log behind what happened later.
        Request("f", 5),
    ]
    landings = [Landing(one.id, 50, 0.0) for one in requests]
    rows = TrainingSet(described, logs(requests, landings), nobody_predicted(), EVER)
    (part,) = rows.parts()
    seen = dict(zip(rows.join_key.tolist(), np.nan_to_num(part.numbers["o.seen"], nan=-1).tolist(), strict=True))
    # Before the first of an entity nobody knows it.
    assert seen == {"f": -1, "a": -1, "b": 2, "c": 2, "d": 3, "e": 4}
    # A prediction sees what its positions say, which may be its own event.
    asked = predicted("d", 30, (0, 0))
    named = replace(asked, cuts={**asked.cuts, "asked": np.array([[3, 1]])})
    rows = TrainingSet(described, logs(requests, landings), named, EVER)
    (part,) = rows.parts()
    assert part.numbers["o.seen"][rows.join_key.tolist().index("d")] == 4


def test_a_predicted_request_is_one_row_and_the_others_are_rows_too() -> None:
    landings = [Landing("a", 50, 30.0), Landing("b", 60, 0.0)]
    found = table([Request("a", 30), Request("b", 40)], landings, predicted("a", 31, (0, 0)))
    assert found.as_of_us.tolist() == [31 * MINUTE_US, 40 * MINUTE_US]
    assert found.labels.tolist() == [1.0, 0.0]


def test_a_label_counts_only_when_it_had_come_by_the_request_for_training() -> None:
    landings = [Landing("a", 50, 30.0), Landing("b", 60, 30.0)]
    requests = [Request("a", 30), Request("b", 30)]
    assert len(table(requests, landings, window=Window(0, 59 * MINUTE_US))) == 1
    assert len(table(requests, landings, window=Window(0, 60 * MINUTE_US))) == 2


def test_the_newest_label_wins_within_the_wait_and_a_null_one_is_none() -> None:
    requests = [Request("a", 30), Request("b", 30), Request("c", 30), Request("d", 30)]
    landings = [
        Landing("a", 50, 0.0),
        Landing("a", 55, 30.0),
        Landing("a", 54, 0.0),
        Landing("b", 50, None),
        Landing("c", 700, 30.0),
        Landing("d", 50, 0.0),
        Landing("d", 700, 30.0),
    ]
    found = table(requests, landings)
    assert found.labels.tolist() == [1.0, 0.0]


def test_duplicates_and_late_ones_are_no_rows_no_labels_and_no_features() -> None:
    landings = [
        Landing("x", 10, 5.0),
        Landing("x", 10, 99.0, counts=False),
        Landing("a", 50, 0.0),
        Landing("a", 51, 99.0, counts=False),
    ]
    found = table([Request("a", 30), Request("a", 30, counts=False)], landings)
    assert found.labels.tolist() == [0.0]
    assert found.numbers["o.seen"].tolist() == [1.0]


def test_the_window_holds_its_start_and_not_its_end() -> None:
    landings = [Landing(key, 20, 0.0) for key in "abc"]
    requests = [Request("a", 9), Request("b", 10), Request("c", 20)]
    found = table(requests, landings, window=Window(10 * MINUTE_US, 20 * MINUTE_US))
    assert found.as_of_us.tolist() == [10 * MINUTE_US]


def test_rows_come_in_time_order_with_ties_by_key_whatever_the_order_of_the_log() -> None:
    landings = [Landing(key, 50, delay) for key, delay in (("a", 0.0), ("b", 30.0), ("c", 0.0))]
    one = table([Request("c", 30), Request("a", 30), Request("b", 20, partition=1)], landings)
    other = table([Request("a", 30), Request("b", 20), Request("c", 30, partition=1)], landings)
    assert one.labels.tolist() == other.labels.tolist() == [1.0, 0.0, 0.0]
    assert one.as_of_us.tolist() == other.as_of_us.tolist()


def test_ties_are_ordered_by_the_characters_of_keys_and_one_long_key_makes_the_others_no_larger() -> None:
    keys = ["b", "Ä", "a", "\uffff", "\U0001f600", "10", "9", "", "b" * 400_000, "bb"]
    requests = [Request(key, 30 + row // len(keys)) for row, key in enumerate(keys + [f"k{row}" for row in range(500)])]
    landings = [Landing(request.id, 600, 30.0) for request in requests]
    declared, read = closure(wait_minutes=6_000), logs(requests, landings)
    tracemalloc.start()
    found = TrainingSet(declared, read, nobody_predicted(), EVER)
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most_bytes < 10_000_000
    assert found.join_key.tolist() == [r.id for r in sorted(requests, key=lambda r: (r.minute, r.id))]


def test_a_label_that_is_no_predicate_is_refused_by_name() -> None:
    with pytest.raises(TrainingSetError, match="no predicate"):
        TrainingSet(closure(label="delay"), logs([Request("a", 1)], [Landing("a", 2, 1.0)]), nobody_predicted(), EVER)


def test_cuts_by_time_do_not_touch_what_a_prediction_named() -> None:
    landings = [Landing("x", 10, 1.0), Landing("y", 40, 1.0)]
    asked = predicted("a", 30, (7, 9))
    assert cut_by_time(asked, logs([], landings)).cuts["landed"].tolist() == [[7, 9]]


MILLISECOND = 1 / 60_000
MICROSECOND = 1 / MINUTE_US


def test_an_event_at_the_very_instant_of_a_request_is_seen_and_one_a_microsecond_later_is_not() -> None:
    at_once = [Landing("x", 30, 20.0), Landing("y", 30 + MICROSECOND, 90.0), Landing("a", 50, 0.0)]
    found = table([Request("a", 30)], at_once)
    assert found.numbers["o.worst"].tolist() == [20.0]
    assert found.numbers["o.seen"].tolist() == [1.0]


def test_within_a_millisecond_the_order_of_the_log_decides_what_was_there() -> None:
    for first, second, worst in ((0.4, 0.6, 20.0), (0.6, 0.4, np.nan)):
        landings = [
            Landing("x", 30 + first * MILLISECOND, 20.0),
            Landing("y", 30 + second * MILLISECOND, 90.0),
            Landing("a", 50, 0.0),
        ]
        found = table([Request("a", 30 + 0.5 * MILLISECOND)], landings)
        # The second record lies behind one that is newer than the request, or is newer itself.
        assert found.numbers["o.worst"].tolist() == pytest.approx([worst], nan_ok=True)


def test_a_late_arrival_is_seen_by_whoever_asks_after_it_and_by_nobody_before() -> None:
    landings = [
        Landing("x", 10, 20.0),
        Landing("clock", 35, 0.0),
        Landing("late", 20, 90.0),
        Landing("a", 50, 0.0),
        Landing("b", 50, 0.0),
    ]
    found = table([Request("a", 30), Request("b", 40)], landings)
    assert found.numbers["o.worst"].tolist() == [20.0, 90.0]


def test_a_read_in_the_past_leaves_the_bucket_of_its_instant_out_and_says_so() -> None:
    # The rings held an event that is newer than the prediction's `as_of`, in the same bucket of five minutes.
    landings = [Landing("x", 10, 20.0), Landing("y", 31, 50.0), Landing("z", 34, 90.0), Landing("a", 50, 0.0)]
    past = table([Request("a", 32)], landings, predicted("a", 32, (3, 0)))
    assert past.numbers["o.worst"].tolist() == [20.0]
    (part,) = past.rows.parts()
    assert bool(part.status[0][0] & HEAD_EXCLUDED_BIT)
    present = table([Request("a", 32)], landings, predicted("a", 32, (2, 0)))
    assert present.numbers["o.worst"].tolist() == [50.0]
    (part,) = present.rows.parts()
    assert not part.status[0][0] & HEAD_EXCLUDED_BIT


def test_an_outcome_from_before_the_request_is_no_label_of_it_and_one_at_its_instant_is() -> None:
    landings = [Landing("a", 30 - MICROSECOND, 90.0), Landing("b", 30, 90.0)]
    found = table([Request("a", 30), Request("b", 30)], landings)
    assert found.rows.join_key.tolist() == ["b"]
    assert found.labels.tolist() == [1.0]


def test_a_label_at_the_end_of_the_wait_counts_and_a_microsecond_later_does_not() -> None:
    landings = [Landing("a", 30 + 600, 90.0), Landing("b", 30 + 600 + MICROSECOND, 90.0)]
    assert table([Request("a", 30), Request("b", 30)], landings).rows.join_key.tolist() == ["a"]


@pytest.mark.parametrize("absent", [False, True])
def test_where_no_label_means_something_rows_have_it_once_their_wait_is_over_and_none_before(absent: bool) -> None:
    requests = [Request("a", 1), Request("b", 2), Request("c", 3), Request("d", 101), Request("e", 102)]
    landings = [
        Landing("a", 50, 30.0),
        # Says nothing, and so does one that comes later than the wait.
        Landing("b", 60, None),
        Landing("c", 104, 30.0),
        Landing("d", 110, 30.0),
        Landing("x", 201 + MICROSECOND, 0.0),
    ]

    def labels(window: Window) -> dict[str, float]:
        described = closure(wait_minutes=100, absent=absent)
        rows = TrainingSet(described, logs(requests, landings), nobody_predicted(), window)
        return dict(zip(rows.join_key.tolist(), rows.labels.tolist(), strict=True))

    nothing = float(absent)
    known = {"a": 1.0, "b": nothing, "c": nothing}
    assert labels(EVER) == known | {"d": 1.0}
    # "d" has its label long before; that nobody told of "e" until then is no news.
    assert labels(Window(0, 201 * MINUTE_US)) == known
    assert labels(Window(0, 201 * MINUTE_US + 1)) == known | {"d": 1.0}


def test_a_partition_that_was_added_after_the_definition_is_seen_by_whom_its_positions_name_it() -> None:
    landings = [Landing("x", 10, 20.0), Landing("y", 20, 90.0, partition=5), Landing("a", 50, 0.0)]
    assert table([Request("a", 30)], landings).numbers["o.worst"].tolist() == [90.0]
    assert table([Request("a", 30)], landings, predicted("a", 30, (1, 0))).numbers["o.worst"].tolist() == [20.0]


def worst_seen(landings: list[Landing], *minutes: float) -> list[float]:
    """Return the worst delay that each request sees that nobody predicted; NaN where it sees none."""
    asked = [Request(f"r{place}", minute) for place, minute in enumerate(minutes)]
    outcomes = [Landing(one.id, 90, 0.0, origin="LGA") for one in asked]
    return list(table(asked, [*landings, *outcomes]).numbers["o.worst"])


def test_what_came_at_the_very_instant_of_a_request_is_seen_and_what_came_a_microsecond_later_is_not() -> None:
    landings = [Landing("x", 10, 20.0), Landing("y", 20, 90.0, came=30)]
    assert worst_seen(landings, 30 - MICROSECOND, 30) == [20.0, 90.0]


def test_kafka_tells_milliseconds_and_a_record_is_there_at_the_end_of_its_own() -> None:
    came_ms = round(30 / MILLISECOND)
    came = available_us(came_ms) / MINUTE_US
    landings = [Landing("x", 10, 20.0), Landing("y", 20, 90.0, came=came)]
    # Within the same millisecond the record may not have been there yet.
    assert worst_seen(landings, 30 + 0.5 * MILLISECOND, 30 + MILLISECOND) == [20.0, 90.0]


def test_a_late_event_in_a_quiet_partition_is_seen_from_when_it_came_though_no_newer_event_lies_before_it() -> None:
    quiet = Landing("late", 20, 90.0, partition=1, came=35)
    landings = [Landing("x", 10, 20.0), Landing("clock", 34, 0.0), quiet]
    assert worst_seen(landings, 30, 35 - MICROSECOND, 35) == [20.0, 20.0, 90.0]


def test_what_lies_behind_a_record_that_came_later_came_later_too_whatever_its_producers_clock_says() -> None:
    landings = [Landing("x", 10, 20.0), Landing("y", 20, 50.0, came=35), Landing("z", 20, 90.0, came=25)]
    assert worst_seen(landings, 30, 35) == [20.0, 90.0]


def test_history_that_was_loaded_later_is_cut_by_event_time_alone() -> None:
    loaded = [Landing("x", 10, 20.0, came=1_000), Landing("y", 31, 90.0, came=1_000)]
    assert worst_seen(loaded, 30, 31) == [20.0, 90.0]


def test_from_the_first_arrival_on_a_row_sees_what_had_come() -> None:
    loading = [Landing("x", 10, 20.0, came=40), Landing("y", 20, 90.0, came=41)]
    assert worst_seen(loading, 40 - MICROSECOND, 40, 41) == [90.0, 20.0, 90.0]


def test_a_prediction_sees_what_its_positions_say_whenever_that_came() -> None:
    landings = [Landing("x", 10, 20.0, came=10), Landing("y", 20, 90.0, came=35), Landing("a", 50, 0.0)]
    found = table([Request("a", 30)], landings, predicted("a", 30, (2, 0)))
    assert found.numbers["o.worst"].tolist() == [90.0]


def test_a_request_that_came_late_sees_what_was_there_at_its_instant() -> None:
    landings = [Landing("x", 10, 20.0), Landing("y", 20, 90.0, came=35), Landing("a", 50, 0.0)]
    found = table([Request("a", 30, came=45)], landings)
    assert found.numbers["o.worst"].tolist() == [20.0]


def test_a_partition_that_only_positions_name_is_no_reason_to_forget_the_others() -> None:
    landings = [Landing("x", 10, 20.0), Landing("y", 20, 90.0, partition=1), Landing("a", 50, 0.0)]
    asked = predicted("a", 30, (1, 1))
    wider = replace(asked, cuts={**asked.cuts, "landed": np.array([[1, 1, 0, 7]])})
    assert table([Request("a", 30)], landings, wider).numbers["o.worst"].tolist() == [90.0]


def test_a_prediction_that_was_made_before_partitions_were_added_did_not_see_them() -> None:
    landings = [Landing("x", 10, 20.0), Landing("y", 20, 90.0, partition=3), Landing("a", 50, 0.0)]
    asked = predicted("a", 30, (1, 0))
    narrow = replace(asked, cuts={**asked.cuts, "landed": np.array([[1]])})
    assert table([Request("a", 30)], landings, narrow).numbers["o.worst"].tolist() == [20.0]


@pytest.mark.parametrize(
    ("column", "keys"),
    [
        (Column(np.array([True, False, True]), np.array([False, False, True])), ["true", "false", None]),
        (Column(np.array([7, -1, 0]), np.array([False, False, True])), ["7", "-1", None]),
        (text("7", "", None), ["7", "", None]),
    ],
)
def test_join_keys_are_the_texts_that_predictions_carry(column: Column, keys: list[str | None]) -> None:
    assert join_keys(column).tolist() == keys
