"""What breaks others is refused at the registry's door, with every break named; on the real servers."""

from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2 as details
from google.rpc import status_pb2
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.registry.v1 import registry_pb2 as messages

pytestmark = pytest.mark.servers


def violations(error: grpc.aio.AioRpcError) -> dict[str, str]:
    """Return the description of each field violation."""
    status, bad = status_pb2.Status(), details.BadRequest()
    status.ParseFromString(dict(error.trailing_metadata() or ())["grpc-status-details-bin"])
    for detail in status.details:
        detail.Unpack(bad)
    return {one.field: one.description for one in bad.field_violations}


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
