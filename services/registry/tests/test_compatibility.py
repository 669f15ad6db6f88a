"""Which changes of a definition break what is there, and that each names whom it breaks."""

from collections.abc import Callable
from typing import Any

import pytest
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_registry.compatibility import (
    CALLERS,
    LOG,
    PRODUCERS,
    Break,
    State,
    find_breaks,
    streams_in_use,
    views_in_use,
)

INT, FLOAT, TEXT = definition.FIELD_TYPE_INT64, definition.FIELD_TYPE_FLOAT64, definition.FIELD_TYPE_STRING
INSTANT = definition.FIELD_TYPE_TIMESTAMP
VIEW, PIPELINE, LABEL = "view 'busy'", "pipeline 'tips'", "label of pipeline 'tips'"


def rides() -> definition.Stream:
    fields = {"ride_id": TEXT, "at": INSTANT, "gate": TEXT, "minutes": INT, "seats": INT, "note": TEXT, "राशि": FLOAT}
    return definition.Stream(
        name="rides",
        key_field="ride_id",
        time_field="at",
        partitions=2,
        fields=[definition.Field(name=name, type=kind, nullable=name == "note") for name, kind in fields.items()],
    )


def paid() -> definition.Stream:
    fields = {"ride_id": TEXT, "paid_at": INSTANT, "tip": FLOAT}
    return definition.Stream(
        name="paid",
        key_field="ride_id",
        time_field="paid_at",
        partitions=2,
        fields=[definition.Field(name=name, type=kind) for name, kind in fields.items()],
    )


def busy() -> definition.View:
    longest = definition.Aggregation(
        name="longest", function=definition.AGGREGATION_FUNCTION_MAX, expression="minutes", window_ms=1000, type=INT
    )
    # Names of Python may have marks that are no part of a word to a regular expression.
    longest.where = '"राशि" > 1.0'
    return definition.View(name="busy", stream="rides", entity=["gate"], features=[longest])


def tips() -> definition.Pipeline:
    return definition.Pipeline(
        name="tips",
        request="rides",
        features=[
            definition.FeatureSource(name="busy", view=definition.ViewLookup(view="busy", on=["gate"])),
            # SQL's names know no case.
            definition.FeatureSource(name="full", expression="Seats > 3"),
        ],
        label=definition.Label(stream="paid", expression="tip > 1.0", by="ride_id"),
    )


BEFORE = State({"rides": rides(), "paid": paid()}, {"busy": busy()}, {"tips": tips()})
Change = Callable[[definition.Stream], object]


def field(stream: definition.Stream, name: str) -> definition.Field:
    return next(one for one in stream.fields if one.name == name)


def breaks(change: Change, of: Callable[[], definition.Stream] = rides, *along: object) -> list[Break]:
    stream = of()
    change(stream)
    applied = definition.Definition(streams=[stream])
    for one in along:
        (applied.views if isinstance(one, definition.View) else applied.pipelines).append(one)  # type: ignore[arg-type]
    return find_breaks(BEFORE, applied)


def removed(name: str) -> Change:
    return lambda stream: stream.fields.remove(field(stream, name))


def typed(name: str, kind: definition.FieldType.ValueType) -> Change:
    return lambda stream: setattr(field(stream, name), "type", kind)


def nullable(name: str, allowed: bool) -> Change:
    return lambda stream: setattr(field(stream, name), "nullable", allowed)


def added(name: str, allowed: bool) -> Change:
    return lambda stream: stream.fields.append(definition.Field(name=name, type=TEXT, nullable=allowed))


def changed(name: str, value: object) -> Change:
    return lambda stream: setattr(stream, name, value)


@pytest.mark.parametrize(
    "change",
    [
        changed("name", "rides"),
        added("colour", allowed=True),
        changed("partitions", 3),
        # Read by a request expression alone, which has no type of its own; JSON's integers are numbers of either type.
        nullable("seats", allowed=True),
    ],
)
def test_what_every_event_and_reader_stands_is_no_break(change: Change) -> None:
    assert breaks(change) == []


@pytest.mark.parametrize(
    ("change", "rule", "whom"),
    [
        (removed("minutes"), "field_removed", {PRODUCERS, VIEW}),
        (removed("seats"), "field_removed", {PRODUCERS, PIPELINE}),
        (removed("राशि"), "field_removed", {PRODUCERS, VIEW}),
        (removed("note"), "field_removed", {PRODUCERS}),
        (typed("minutes", TEXT), "type_changed", {LOG, PRODUCERS, VIEW}),
        (typed("gate", INT), "type_changed", {LOG, PRODUCERS, VIEW, PIPELINE}),
        (nullable("note", allowed=False), "null_refused", {LOG, PRODUCERS}),
        (added("colour", allowed=False), "field_required", {LOG, PRODUCERS}),
        (changed("key_field", "gate"), "key_changed", {LOG, VIEW, PIPELINE}),
        (changed("time_field", "left_at"), "time_changed", {LOG, VIEW, PIPELINE}),
        (changed("partitions", 1), "partitions_changed", {LOG, VIEW, PIPELINE}),
        (typed("minutes", FLOAT), "widened_in_use", {VIEW}),
        (typed("seats", FLOAT), "widened_in_use", {PIPELINE}),
        (changed("lateness_ms", 5), "redefined_in_use", {PIPELINE}),
    ],
)
def test_a_break_says_where_it_is_whom_it_breaks_and_what_to_do(change: Change, rule: str, whom: set[str]) -> None:
    found = {one.rule: one for one in breaks(change)}
    assert set(found[rule].breaks) == whom
    assert found[rule].subject.startswith(("streams.rides", "views.busy"))
    assert found[rule].fix
    assert found[rule].fix in found[rule].sentence()


def test_only_what_cannot_be_lived_with_is_final() -> None:
    assert [one.rule for one in breaks(changed("partitions", 1)) if one.final] == ["partitions_changed"]
    assert [one.rule for one in breaks(typed("minutes", TEXT)) if one.final] == ["type_changed"]
    assert not any(one.final for one in breaks(removed("minutes")))


def test_a_field_by_which_another_view_is_kept_is_never_removed() -> None:
    final = [one for one in breaks(removed("gate")) if one.final]
    assert [(one.rule, one.breaks) for one in final] == [("field_removed", ("view 'busy'",))]
    assert not [one for one in breaks(removed("minutes")) if one.final]


def test_what_a_label_is_joined_by_never_takes_null() -> None:
    for of in (rides, paid):
        found = [one for one in breaks(nullable("ride_id", allowed=True), of) if one.rule == "null_in_label_key"]
        assert [one.breaks for one in found] == [("label of pipeline 'tips'",)]
        # Allowed once, it is no break again.
        stream = of()
        field(stream, "ride_id").nullable = True
        after = BEFORE.with_applied(definition.Definition(streams=[stream]))
        assert find_breaks(after, definition.Definition(streams=[stream])) == []


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (changed("key_field", "gate"), "key_changed"),
        (changed("time_field", "left_at"), "time_changed"),
        (added("colour", allowed=False), "field_required"),
        (nullable("note", allowed=False), "null_refused"),
    ],
)
def test_a_stream_that_was_retired_is_held_to_the_events_in_its_log(change: Change, rule: str) -> None:
    again = rides()
    change(again)
    before = State(ended={"rides": rides()})
    assert [(one.rule, one.final) for one in find_breaks(before, definition.Definition(streams=[again]))] == [
        (rule, False)
    ]


@pytest.mark.parametrize("change", [changed("lateness_ms", 5), removed("note"), changed("partitions", 3)])
def test_a_stream_that_was_retired_may_come_back_as_what_no_event_contradicts(change: Change) -> None:
    again = rides()
    change(again)
    assert find_breaks(State(ended={"rides": rides()}), definition.Definition(streams=[again])) == []


def test_a_view_in_use_is_not_retired_and_every_reader_is_named() -> None:
    (found,) = views_in_use(["busy", "calm"], BEFORE, {"busy": ["tips v3 (champion)"]})
    assert (found.subject, found.final) == ("views.busy", True)
    assert found.breaks == (PIPELINE, "tips v3 (champion)")
    assert "apply 'tips' without it" in found.fix
    (read,) = views_in_use(["calm"], BEFORE, {"calm": ["tips v3 (champion)"]})
    assert read.breaks == ("tips v3 (champion)",)


def test_a_stream_that_anything_reads_is_not_retired_and_every_reader_is_named() -> None:
    read, paid_for = streams_in_use(["rides", "paid", "calm"], BEFORE)
    assert (read.rule, read.subject, read.final) == ("retired_in_use", "streams.rides", True)
    assert (read.breaks, paid_for.breaks) == ((VIEW, PIPELINE), (LABEL,))


@pytest.mark.parametrize(("was", "comes", "fine"), [(INT, INT, True), (INT, FLOAT, True), (FLOAT, INT, False)])
def test_a_field_that_was_removed_comes_back_as_what_the_log_holds_unless_allowed(
    was: Any, comes: Any, fine: bool
) -> None:
    once = {"rides": {"fee": definition.Field(name="fee", type=was)}}
    stream = rides()
    stream.fields.append(definition.Field(name="fee", type=comes, nullable=True))
    applied = definition.Definition(streams=[stream])
    for before in (State({"rides": rides()}, removed=once), State(removed=once)):
        found = find_breaks(before, applied)
        assert [(one.rule, one.subject, one.final) for one in found] == (
            [] if fine else [("type_changed", "streams.rides.fields.fee", False)]
        )


def test_a_label_is_named_as_what_breaks() -> None:
    (gone,) = breaks(removed("tip"), paid)
    assert set(gone.breaks) == {PRODUCERS, LABEL}
    (narrowed,) = breaks(typed("tip", INT), paid)
    assert (narrowed.rule, LABEL in narrowed.breaks) == ("type_changed", True)


def test_a_widened_field_is_fine_for_readers_that_are_applied_along() -> None:
    view = busy()
    view.features[0].type = FLOAT
    assert breaks(typed("minutes", FLOAT), rides, view, tips()) == []
    (left,) = breaks(typed("minutes", FLOAT), rides, view)
    assert (left.rule, left.breaks) == ("redefined_in_use", (PIPELINE,))
    whole = paid()
    field(whole, "tip").type = INT
    before = BEFORE.with_applied(definition.Definition(streams=[whole]))
    assert [one.breaks for one in find_breaks(before, definition.Definition(streams=[paid()]))] == [(LABEL,)]
    assert find_breaks(before, definition.Definition(streams=[paid()], pipelines=[tips()])) == []


def test_the_key_is_never_widened() -> None:
    stream = rides()
    field(stream, "ride_id").type = INT
    wider = rides()
    field(wider, "ride_id").type = FLOAT
    found = find_breaks(State({"rides": stream}), definition.Definition(streams=[wider]))
    assert [one.rule for one in found] == ["type_changed"]


def test_a_pipeline_keeps_its_request_and_the_key_of_its_label() -> None:
    asked, joined = tips(), tips()
    asked.request = "paid"
    joined.label.by = "gate"
    for pipeline, rule, whom in ((asked, "request_changed", CALLERS), (joined, "label_key_changed", "label of")):
        applied = definition.Definition(streams=[rides(), paid()], views=[busy()], pipelines=[pipeline])
        (found,) = find_breaks(BEFORE, applied)
        assert (found.rule, any(one.startswith(whom) for one in found.breaks)) == (rule, True)
