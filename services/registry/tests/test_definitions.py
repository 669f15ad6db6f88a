"""What an applied definition changes, and whom it may not break."""

import pytest
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_registry.compatibility import PRODUCERS
from tidemill_registry.definitions import (
    Change,
    Ending,
    InvalidDefinitionError,
    Plan,
    Records,
    UnknownObjectError,
    plan_changes,
)


def stream(name: str = "rides", *, extra: tuple[str, ...] = (), partitions: int = 2) -> definition.Stream:
    fields = [
        definition.Field(name="ride_id", type=definition.FIELD_TYPE_STRING),
        definition.Field(name="at", type=definition.FIELD_TYPE_TIMESTAMP),
        *(definition.Field(name=field, type=definition.FIELD_TYPE_FLOAT64, nullable=True) for field in extra),
    ]
    return definition.Stream(name=name, fields=fields, key_field="ride_id", time_field="at", partitions=partitions)


def view(name: str = "busy", *, window_ms: int = 1000, of: str = "rides") -> definition.View:
    count = definition.Aggregation(name="n", function=definition.AGGREGATION_FUNCTION_COUNT, window_ms=window_ms)
    return definition.View(name=name, stream=of, entity=["ride_id"], features=[count])


def pipeline(name: str = "tips", *, views: tuple[str, ...] = ("busy",)) -> definition.Pipeline:
    return definition.Pipeline(
        name=name,
        request="rides",
        features=[
            definition.FeatureSource(name=used, view=definition.ViewLookup(view=used, on=["ride_id"])) for used in views
        ],
        label=definition.Label(stream="rides", expression="true", by="ride_id"),
    )


def whole(*pipelines: definition.Pipeline, **changed: object) -> definition.Definition:
    return definition.Definition(
        streams=[changed.get("stream", stream())],  # type: ignore[list-item]
        views=[changed.get("view", view())],  # type: ignore[list-item]
        pipelines=list(pipelines or (pipeline(),)),
    )


def registered(*definitions: definition.Definition) -> Records:
    records: dict[tuple[str, str], definition.DefinitionRecord] = {}
    for applied in definitions:
        for change in plan_changes(applied, records).changes:
            records[change.object.key] = recorded(change)
    return records


def recorded(change: Change) -> definition.DefinitionRecord:
    item = change.object
    return definition.DefinitionRecord(
        kind=item.kind,
        name=item.name,
        revision=change.revision,
        hash=item.hash,
        definition=item.closure,
        retired=change.change == "retired",
    )


def summary(plan: Plan) -> list[tuple[str, str, str, int]]:
    assert not plan.breaks
    return [(change.object.kind, change.object.name, change.change, change.revision) for change in plan.changes]


def test_first_apply_creates_streams_before_views_before_pipelines() -> None:
    assert summary(plan_changes(whole(), {})) == [
        ("stream", "rides", "created", 1),
        ("view", "busy", "created", 1),
        ("pipeline", "tips", "created", 1),
    ]


def test_applying_the_same_again_changes_nothing() -> None:
    changes = plan_changes(whole(), registered(whole())).changes
    assert {change.change for change in changes} == {"unchanged"}
    assert {change.revision for change in changes} == {1}


def test_a_changed_view_raises_the_revision_of_itself_and_its_pipeline_only() -> None:
    changes = plan_changes(whole(view=view(window_ms=2000)), registered(whole()))
    assert summary(changes) == [
        ("stream", "rides", "unchanged", 1),
        ("view", "busy", "changed", 2),
        ("pipeline", "tips", "changed", 2),
    ]


def test_a_view_that_another_pipeline_uses_is_not_redefined_and_the_error_names_it() -> None:
    before = registered(whole(), whole(pipeline("fares")), whole(pipeline("surge")))
    (found,) = plan_changes(whole(view=view(window_ms=2000)), before).breaks
    assert found.message.startswith("view 'busy' is used by 'fares', 'surge'")
    assert found.breaks == ("pipeline 'fares'", "pipeline 'surge'")


def test_applying_every_user_together_redefines_the_view() -> None:
    before = registered(whole(), whole(pipeline("fares")))
    changes = plan_changes(whole(pipeline(), pipeline("fares"), view=view(window_ms=2000)), before).changes
    assert [change.change for change in changes] == ["unchanged", "changed", "changed", "changed"]


def test_another_pipeline_and_a_left_over_view_follow_a_stream_that_gains_an_optional_field() -> None:
    before = registered(whole(), whole(pipeline("fares")), whole(pipeline("calm", views=("old",)), view=view("old")))
    assert summary(plan_changes(definition.Definition(streams=[stream(extra=("tip",))]), before)) == [
        ("stream", "rides", "changed", 2),
        ("view", "busy", "changed", 2),
        ("view", "old", "changed", 2),
        ("pipeline", "calm", "changed", 2),
        ("pipeline", "fares", "changed", 2),
        ("pipeline", "tips", "changed", 2),
    ]


def test_a_pipeline_holds_the_stream_of_its_label_and_follows_it() -> None:
    told = pipeline()
    told.label.stream = "paid"
    applied = definition.Definition(streams=[stream(), stream("paid")], views=[view()], pipelines=[told])
    before = registered(applied)
    assert [one.name for one in before["pipeline", "tips"].definition.streams] == ["paid", "rides"]
    assert summary(plan_changes(definition.Definition(streams=[stream("paid", extra=("tip",))]), before)) == [
        ("stream", "paid", "changed", 2),
        ("pipeline", "tips", "changed", 2),
    ]


def test_a_changed_stream_says_which_fields_it_ever_had_and_has_no_more() -> None:
    before = definition.DefinitionRecord(kind="stream", name="rides", revision=2)
    before.definition.streams.append(stream(extra=("tip",)))
    before.removed_fields.extend(stream(extra=("fee", "toll")).fields[2:])
    applied = definition.Definition(streams=[stream(extra=("toll",))])
    (change,) = plan_changes(applied, {("stream", "rides"): before}, allow_breaking=True).changes
    assert [one.name for one in change.removed] == ["fee", "tip"]


def test_a_pipeline_that_is_in_use_ends_only_where_that_is_allowed() -> None:
    before, ending = dict(registered(whole())), Ending(pipelines=["tips"], users={"tips": ["tips v1 (champion)"]})
    plan = plan_changes(definition.Definition(), before, ending)
    assert [(one.subject, one.breaks[1:], one.final) for one in plan.breaks] == [
        ("pipelines.tips", ("tips v1 (champion)",), False)
    ]
    before["pipeline", "tips"] = recorded(plan.changes[-1])
    assert summary(plan_changes(definition.Definition(), before, ending)) == [("pipeline", "tips", "unchanged", 2)]


def test_a_view_ends_with_the_change_that_does_without_it_and_comes_back_with_a_later_revision() -> None:
    before = dict(registered(whole()))
    plan = plan_changes(whole(pipeline(views=("calm",)), view=view("calm")), before, Ending(["busy"]))
    assert summary(plan)[-2:] == [("pipeline", "tips", "changed", 2), ("view", "busy", "retired", 2)]
    assert plan.changes[-1].object.closure == definition.Definition()
    for change in plan.changes:
        before[change.object.key] = recorded(change)
    assert summary(plan_changes(definition.Definition(), before, Ending(["busy"])))[0][2] == "unchanged"
    assert summary(plan_changes(whole(), before))[1] == ("view", "busy", "created", 3)


def test_what_a_retired_view_read_of_its_stream_holds_nobody_up() -> None:
    reads_tip = view("tips_1h")
    reads_tip.features[0].expression = "tip"
    before = registered(definition.Definition(streams=[stream(extra=("tip",))], views=[reads_tip]))
    narrower = definition.Definition(streams=[stream()])
    (removed,) = plan_changes(narrower, before).breaks
    assert removed.breaks == (PRODUCERS, "view 'tips_1h'")
    (still,) = plan_changes(narrower, before, Ending(["tips_1h"])).breaks
    assert still.breaks == (PRODUCERS,)


def test_breaks_that_are_allowed_are_planned_with_everything_that_follows() -> None:
    before = registered(whole(), whole(pipeline("fares")))
    changed = whole(view=view(window_ms=2000))
    assert len(plan_changes(changed, before).changes) == 3
    plan = plan_changes(changed, before, allow_breaking=True)
    assert [one.rule for one in plan.breaks] == ["redefined_in_use"]
    assert [(one.object.name, one.change) for one in plan.changes if one.object.kind == "pipeline"] == [
        ("fares", "changed"),
        ("tips", "changed"),
    ]


def test_a_view_that_never_was_is_not_retired_nor_one_that_is_declared_along() -> None:
    with pytest.raises(UnknownObjectError, match="no view 'calm'"):
        plan_changes(definition.Definition(), registered(whole()), Ending(["calm"]))
    with pytest.raises(InvalidDefinitionError, match="declared and retired at once"):
        plan_changes(whole(), registered(whole()), Ending(["busy"]))


def test_order_within_the_file_does_not_change_the_hash() -> None:
    two = definition.Definition(streams=[stream("a"), stream("b")])
    other = definition.Definition(streams=[stream("b"), stream("a")])
    hashes = [[change.object.hash for change in plan_changes(one, {}).changes] for one in (two, other)]
    assert hashes[0] == hashes[1]


def no_key(one: definition.Stream) -> definition.Stream:
    one.key_field = "nobody"
    return one


def float_key(changed: definition.Stream) -> definition.Stream:
    changed.fields[0].type = definition.FIELD_TYPE_FLOAT64
    return changed


def nullable_time(one: definition.Stream) -> definition.Stream:
    one.fields[1].nullable = True
    return one


@pytest.mark.parametrize(
    ("applied", "says"),
    [
        (definition.Definition(), "declares nothing"),
        (definition.Definition(streams=[stream("Rides!")]), "name 'Rides!'"),
        (definition.Definition(streams=[stream("my_rides")]), "name 'my_rides'"),
        (definition.Definition(streams=[stream("x" * 101)]), "at most 100"),
        (definition.Definition(streams=[stream(), stream()]), "declared twice"),
        (definition.Definition(streams=[stream(extra=("tip", "tip"))]), "a field twice"),
        (definition.Definition(streams=[stream(extra=("_offset",))]), "field '_offset': the offline log's own columns"),
        (definition.Definition(streams=[stream(extra=("_tip",))]), "field '_tip': .* begin it with a letter"),
        (definition.Definition(streams=[no_key(stream())]), "key field 'nobody'"),
        (definition.Definition(streams=[nullable_time(stream())]), "must not be nullable"),
        (definition.Definition(streams=[float_key(stream())]), "must be no float64"),
        (definition.Definition(streams=[stream(partitions=0)]), "partitions must be 1 to 256"),
        (whole(view=view(window_ms=2**62)), r"views\[0\].features\[0\].window_ms must be 0 to 316,224,000,000"),
        (definition.Definition(views=[view()]), "refers to stream 'rides'"),
        (whole(pipeline(views=("calm",))), "refers to view 'calm'"),
        (whole(view=definition.View(name="busy", stream="rides")), "names no entity"),
        (whole(view=definition.View(name="busy", stream="rides", entity=["town"])), "no field 'town'"),
    ],
)
def test_a_definition_that_does_not_hold_together_is_refused_by_name(applied: definition.Definition, says: str) -> None:
    with pytest.raises(InvalidDefinitionError, match=says):
        plan_changes(applied, {})
