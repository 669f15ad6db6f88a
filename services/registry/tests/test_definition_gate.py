"""What breaks others is refused at the registry's door, with every break named; on the real servers."""

from typing import Any

import grpc
import pytest
from aiokafka.admin import AIOKafkaAdminClient
from google.rpc import error_details_pb2 as details
from google.rpc import status_pb2
from tidemill_contracts.canonical import from_json, view_hash
from tidemill_contracts.catalogue import Catalogue
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.registry.v1 import records_pb2 as records
from tidemill_contracts.registry.v1 import registry_pb2 as messages

pytestmark = pytest.mark.servers


def violations(error: grpc.aio.AioRpcError) -> dict[str, str]:
    """Return the description of each field violation."""
    status, bad = status_pb2.Status(), details.BadRequest()
    status.ParseFromString(dict(error.trailing_metadata() or ())["grpc-status-details-bin"])
    for detail in status.details:
        detail.Unpack(bad)
    return {one.field: one.description for one in bad.field_violations}


def views_of(applied: definition.Definition) -> dict[str, str]:
    """Return what a version that was trained on a definition names as its views."""
    streams = {stream.name: stream for stream in applied.streams}
    return {view.name: view_hash(view, streams[view.stream]) for view in applied.views}


async def test_a_left_over_view_holds_its_stream_to_what_it_reads(registry: Any, rides: Any) -> None:
    whole = rides(extra=("tip", "fare"))
    left = definition.View(name="left", stream="rides", entity=["ride_id"])
    left.features.add(
        name="tip_1h",
        function=definition.AGGREGATION_FUNCTION_SUM,
        expression="tip",
        window_ms=3_600_000,
        type=definition.FIELD_TYPE_FLOAT64,
    )
    whole.views.append(left)
    await registry.apply(whole)
    broken = rides(extra=("fare",))
    broken.streams[0].fields[-1].type = definition.FIELD_TYPE_STRING
    with pytest.raises(grpc.aio.AioRpcError, match="and 1 more") as caught:
        await registry.apply(broken)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    found = violations(caught.value)
    assert found.keys() == {"streams.rides.fields.tip", "streams.rides.fields.fare"}
    assert "breaks its producers, view 'left'; keep it" in found["streams.rides.fields.tip"]
    dry = await registry.rpc.ApplyDefinition(
        messages.ApplyDefinitionRequest(definition=broken, dry_run=True), metadata=registry.actor
    )
    assert [(one.rule, list(one.breaks)[-1]) for one in dry.breaks] == [
        ("field_removed", "view 'left'"),
        ("type_changed", "its producers"),
    ]
    records = (await registry.rpc.ListDefinitions(messages.ListDefinitionsRequest(kind="stream"))).records
    assert [record.revision for record in records] == [1]


async def test_an_optional_field_leaves_what_reads_the_stream_in_place(registry: Any, rides: Any) -> None:
    await registry.apply(rides())
    changes = await registry.apply(definition.Definition(streams=rides(extra=("tip",)).streams))
    assert [(change.kind, change.change, change.revision) for change in changes] == [
        ("stream", "changed", 2),
        ("view", "changed", 2),
        ("pipeline", "changed", 2),
    ]


async def test_who_redefines_a_feature_is_told_which_champion_was_trained_on_the_former_one(
    registry: Any, rides: Any
) -> None:
    whole = rides(pipelines=("calm", "tips"))
    whole.pipelines[1].features.add(name="later", expression="HOUR(at)")
    assert not (await registry.apply_whole(whole)).outdated
    await registry.register("cause-1", sources={"busy": "view busy by ride_id", "later": "HOUR(at)"})
    assert not (await registry.apply_whole(whole)).outdated
    whole.pipelines[1].features[1].expression = "HOUR(at) > 17"
    said = (
        "tips v1 was trained with 'later' as 'HOUR(at)', which is 'HOUR(at) > 17' now: it answers as before where it "
        "is loaded, until another version passes its gates, and not at all where a field that its views read has "
        "another type now, or may be null; ask for one: tidemill retrain tips --why ..."
    )
    assert (await registry.apply_whole(whole, dry_run=True)).outdated == [said]
    assert (await registry.apply_whole(whole)).outdated == [said]
    assert (await registry.apply_whole(whole)).outdated == [said], "it is still so"
    late = await registry.register("cause-2", sources={"busy": "view busy by ride_id", "later": "HOUR(at)"})
    assert late.stage == "refused"
    new = await registry.register("cause-3", sources={"busy": "view busy by ride_id", "later": "HOUR(at) > 17"})
    assert new.stage == "champion"
    assert not (await registry.apply_whole(whole)).outdated


async def test_a_view_is_retired_once_nothing_in_use_reads_it(registry: Any, rides: Any) -> None:
    await registry.apply(rides())
    await registry.register("cause-1", views=views_of(rides()))
    compared = messages.SetBaselinesRequest(pipeline="tips", versions=[1], reason="to see")
    await registry.rpc.SetBaselines(compared, metadata=registry.actor)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await registry.apply(definition.Definition(), retire_views=["busy"])
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    said = violations(caught.value)["views.busy"]
    assert "breaks pipeline 'tips', tips v1 (champion)" in said
    assert said.count("tips v1") == 1, "it is a baseline too"

    bare = rides()
    del bare.views[:], bare.pipelines[0].features[:]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await registry.apply(bare, retire_views=["busy"], allow_breaking=True, reason="it costs too much")
    assert violations(caught.value).keys() == {"views.busy"}, "the champion still reads it: final"
    await registry.apply(bare)
    await registry.register("cause-2", at_us=7_200_000_000)
    promote = messages.PromoteRequest(pipeline="tips", version=2, reason="it does without")
    await registry.rpc.Promote(promote, metadata=registry.actor)
    (ended,) = await registry.apply(definition.Definition(), retire_views=["busy"], reason="nobody reads it")
    assert (ended.name, ended.change, ended.revision) == ("busy", "retired", 2)

    found = await registry.topic("registry.pipelines.v1")
    catalogue = Catalogue()
    for record in found:
        catalogue.fold(record.value)
    assert (catalogue.views, catalogue.retired) == ({}, {"busy"})
    assert not (await registry.rpc.ListDefinitions(messages.ListDefinitionsRequest(kind="view"))).records
    with pytest.raises(grpc.aio.AioRpcError, match="no view 'busy'"):
        await registry.rpc.GetDefinition(messages.GetDefinitionRequest(kind="view", name="busy"))
    audit = (await registry.rpc.ListAudit(messages.ListAuditRequest(object="view/busy"))).records[-1]
    assert (audit.action, audit.reason) == ("retired", "nobody reads it")

    promote.version = 1
    with pytest.raises(grpc.aio.AioRpcError, match="v1 reads view 'busy', which is not declared"):
        await registry.rpc.Promote(promote, metadata=registry.actor)
    assert [change.revision for change in await registry.apply(rides())] == [1, 3, 3]
    await registry.rpc.Promote(promote, metadata=registry.actor)


async def test_a_stream_that_was_retired_comes_back_as_its_log_is(registry: Any, rides: Any) -> None:
    alone = definition.Definition(streams=rides(extra=("tip",)).streams)
    await registry.apply(alone)
    await registry.apply(definition.Definition(), retire_streams=["rides"], reason="winter")
    fewer = definition.Definition()
    fewer.CopyFrom(alone)
    fewer.streams[0].partitions = 1
    with pytest.raises(grpc.aio.AioRpcError, match="has 2 partitions: they cannot become 1"):
        await registry.apply(fewer, allow_breaking=True, reason="it is small")
    required = definition.Definition()
    required.CopyFrom(alone)
    required.streams[0].fields[-1].nullable = False
    with pytest.raises(grpc.aio.AioRpcError, match="would not take null any more"):
        await registry.apply(required)
    assert [change.revision for change in await registry.apply(alone)] == [3]


async def test_everything_ends_along_once_it_is_allowed_and_comes_back_as_it_was(registry: Any, rides: Any) -> None:
    await registry.apply(rides(extra=("tip",)))
    await registry.register("cause-1", views=views_of(rides(extra=("tip",))))
    run = (await registry.start_run("cause-2")).run.run_id
    everything = {"retire_pipelines": ["tips"], "retire_views": ["busy"], "retire_streams": ["rides"]}
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await registry.apply(definition.Definition(), retire_streams=["rides"], allow_breaking=True, reason="winter")
    assert "breaks view 'busy', pipeline 'tips', label of pipeline 'tips'" in violations(caught.value)["streams.rides"]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await registry.apply(definition.Definition(), **everything)
    (only,) = violations(caught.value).items()
    assert only[0] == "pipelines.tips"
    assert "breaks callers of predict, tips v1 (champion), run " in only[1]
    assert f"run {run} (started)" in only[1]
    ended = await registry.apply(definition.Definition(), **everything, allow_breaking=True, reason="winter")
    assert [(one.kind, one.change, one.revision) for one in ended] == [
        (kind, "retired", 2) for kind in ("pipeline", "view", "stream")
    ]
    again = await registry.apply(definition.Definition(), **everything)
    assert {one.change for one in again} == {"unchanged"}

    catalogue = Catalogue()
    for record in await registry.topic("registry.pipelines.v1"):
        catalogue.fold(record.value)
    assert (catalogue.streams, catalogue.views, catalogue.pipelines) == ({}, {}, {})
    assert not (await registry.rpc.ListDefinitions(messages.ListDefinitionsRequest())).records
    last = from_json((await registry.topic("registry.deployments.v1"))[-1].value, records.DeploymentRecord())
    assert (last.change, last.revision, last.HasField("champion")) == ("retired", 2, False)
    version = from_json((await registry.topic("registry.models.v1"))[-1].value, records.VersionRecord())
    assert (version.stage, version.actor) == ("retired", "ann@example.org")
    audit = (await registry.rpc.ListAudit(messages.ListAuditRequest(object="pipeline/tips"))).records[-1]
    assert (audit.action, audit.reason[:6]) == ("retired", "winter")
    assert "tips v1 (champion)" in audit.reason
    with pytest.raises(grpc.aio.AioRpcError, match="pipeline 'tips' was retired"):
        await registry.start_run("cause-3")

    other = rides(extra=("tip",))
    other.streams[0].fields[-1].type = definition.FIELD_TYPE_STRING
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await registry.apply(other)
    assert "'tip' was float64 once, not string" in violations(caught.value)["streams.rides.fields.tip"]
    back = await registry.apply(rides())
    assert [(one.kind, one.change, one.revision) for one in back] == [
        (kind, "created", 3) for kind in ("stream", "view", "pipeline")
    ]
    version = await registry.register("cause-4", at_us=7_200_000_000)
    assert (version.version, version.stage) == (2, "champion")


async def test_a_removed_field_comes_back_as_another_type_only_where_somebody_allows_it(
    registry: Any, rides: Any
) -> None:
    await registry.apply(rides(extra=("tip", "fare")))
    await registry.apply(rides(extra=("fare",)), allow_breaking=True, reason="tips are cash now")
    # However often the stream changed since.
    await registry.apply(rides(extra=("fare", "fee")))
    other = rides(extra=("fare", "fee", "tip"))
    other.streams[0].fields[-1].type = definition.FIELD_TYPE_INT64
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await registry.apply(other)
    assert (
        "'tip' was float64 once, not int64; breaks events in the log"
        in violations(caught.value)["streams.rides.fields.tip"]
    )
    request = messages.GetDefinitionRequest(kind="stream", name="rides")
    assert [one.name for one in (await registry.rpc.GetDefinition(request)).record.removed_fields] == ["tip"]
    await registry.apply(other, allow_breaking=True, reason="whole tips")
    assert not (await registry.rpc.GetDefinition(request)).record.removed_fields
    assert (await registry.apply(other))[0].change == "unchanged"


async def test_a_break_is_made_only_with_a_reason_which_is_kept_with_whom_it_breaks(registry: Any, rides: Any) -> None:
    await registry.apply(rides(extra=("tip",)))
    narrower = rides()
    with pytest.raises(grpc.aio.AioRpcError, match="reason is required"):
        await registry.apply(narrower, allow_breaking=True)
    request = messages.ApplyDefinitionRequest(definition=narrower, allow_breaking=True, reason="tips are cash now")
    answer = await registry.rpc.ApplyDefinition(request, metadata=registry.actor)
    assert [(one.rule, list(one.breaks), one.final) for one in answer.breaks] == [
        ("field_removed", ["its producers"], False)
    ]
    (audit,) = (await registry.rpc.ListAudit(messages.ListAuditRequest(object="stream/rides"))).records[1:]
    assert (audit.actor, audit.action) == ("ann@example.org", "changed")
    assert audit.reason.startswith(
        "tips are cash now; stream 'rides': field 'tip' would be removed; breaks its producers"
    )


async def test_partitions_only_grow_and_exist_before_it_is_announced(registry: Any, rides: Any) -> None:
    await registry.apply(rides())
    wider = rides()
    wider.streams[0].partitions = 5
    changes = await registry.apply(wider)
    assert [(change.kind, change.change) for change in changes] == [
        ("stream", "changed"),
        ("view", "changed"),
        ("pipeline", "changed"),
    ]
    kafka = registry.settings.kafka
    admin = AIOKafkaAdminClient(**kafka.client_kwargs())
    await admin.start()
    try:
        topics = await admin.describe_topics([kafka.physical("events.rides"), kafka.physical("events.rides.dlq")])
    finally:
        await admin.close()
    assert [len(topic["partitions"]) for topic in topics] == [5, 1]
    assert {change.change for change in await registry.apply(wider)} == {"unchanged"}
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await registry.apply(rides(), allow_breaking=True, reason="fewer would do")
    assert "they can become more, not 2" in violations(caught.value)["streams.rides.partitions"]
