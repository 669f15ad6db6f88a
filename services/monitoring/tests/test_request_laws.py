"""What operators may ask of monitoring, and what one bad definition or a large record may not do to it."""

from typing import Any

import grpc
import pytest
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp
from tidemill_contracts.canonical import to_json
from tidemill_contracts.instants import from_timestamp, parse_us, to_timestamp
from tidemill_contracts.monitoring.v1 import monitoring_pb2 as messages
from tidemill_contracts.monitoring.v1 import records_pb2 as monitoring
from tidemill_contracts.reasons import Reason
from tidemill_contracts.registry.v1 import records_pb2 as registry
from tidemill_contracts.serving.v1 import records_pb2 as serving
from tidemill_monitoring import metrics
from tidemill_runtime.errors import Poison
from tidemill_runtime.rpc_errors import from_rpc

HOUR = 3_600_000_000
DAY = 24 * HOUR
START = parse_us("2013-01-01T00:00:00Z")
PIPELINE = "late"
ACTOR = (("x-tidemill-actor", "anna"),)

# conftest's World; test modules cannot import it under importlib mode.
World = Any

pytestmark = pytest.mark.servers


async def retrain(world: World, pipeline: str = PIPELINE, at: Timestamp | None = None) -> int:
    """Ask for a retraining; return its event time. Raises what the service refuses it for."""
    wanted = messages.RequestRetrainingRequest(pipeline=pipeline, reason="a test wants it", event_time=at)
    asked = await answered(world.rpc.RequestRetraining(wanted, metadata=ACTOR))
    return from_timestamp(asked.request.event_time)


async def answered(call: Any) -> Any:
    """Return a call's answer. Raises what the service refuses it for."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise from_rpc(error) from error


async def requests(world: World) -> list[str]:
    """Return the causes of all retrainings asked for."""
    found = await world.told("monitoring.retrain-requests.v1", monitoring.RetrainRequest)
    return [one.cause_kind for one in found]


async def drift_signals(world: World) -> set[str]:
    return {one.signal for one in await world.told("monitoring.drift.v1", monitoring.DriftRecord)}


@pytest.mark.parametrize(
    "at",
    [
        to_timestamp(START + 36_500 * DAY),
        to_timestamp(START + 3 * DAY + 1),
        Timestamp(seconds=253_402_300_799),
        Timestamp(seconds=10**13),
        Timestamp(seconds=-(10**13)),
    ],
)
async def test_a_retraining_at_a_time_that_no_event_came_near_is_refused_and_holds_no_schedule_up(
    world: World, at: Timestamp
) -> None:
    async with world.running():
        await world.apply()
        await world.watermark(START)
        await world.deploy(1, START + DAY, revision=1)
        await world.watermark(START + 2 * DAY)
        await world.settle(START + 2 * DAY)
        with pytest.raises(Poison) as caught:
            await retrain(world, at=at)
        assert (caught.value.reason, caught.value.field) == (Reason.OUT_OF_RANGE, "event_time")
        await world.watermark(START + 30 * DAY)
        await world.settle(START + 30 * DAY)
        assert await requests(world) == ["schedule"]


async def test_a_retraining_up_to_the_midnight_after_the_newest_event_is_asked_for(world: World) -> None:
    async with world.running():
        await world.apply()
        await world.watermark(START)
        await world.settle(START)
        # Not read yet when the request comes.
        await world.watermark(START + 9 * DAY)
        await world.written()
        assert await retrain(world, at=to_timestamp(START + 10 * DAY)) == START + 10 * DAY


@pytest.mark.parametrize("limit", [-1, 10_001])
async def test_a_limit_that_is_not_offered_is_refused(world: World, limit: int) -> None:
    async with world.running():
        await world.apply()
        await world.settle()
        for call in (
            world.rpc.GetMetrics(messages.GetMetricsRequest(pipeline=PIPELINE, limit=limit)),
            world.rpc.ListIncidents(messages.ListIncidentsRequest(limit=limit)),
        ):
            with pytest.raises(Poison) as caught:
                await answered(call)
            assert (caught.value.reason, caught.value.field) == (Reason.OUT_OF_RANGE, "limit")


async def test_a_pipeline_that_is_registered_after_its_events_has_a_clock(world: World) -> None:
    async with world.running():
        await world.apply()
        await world.watermark(START + 5 * DAY)
        await world.settle(START + 5 * DAY)
        await world.apply(world.defined(name="later"))
        await world.settle()
        assert await retrain(world, "later") == START + 5 * DAY
        known = await world.rpc.GetJoinStats(messages.GetJoinStatsRequest(pipeline="later"))
        assert from_timestamp(known.clock) == START + 5 * DAY


async def test_a_pipeline_without_a_clock_is_told_which_partitions_it_waits_for(world: World) -> None:
    async with world.running():
        await world.apply()
        await world.watermark(START, {"asked": [0, 1], "landed": [1]})
        await world.settle()
        with pytest.raises(Poison) as caught:
            await retrain(world)
        assert (caught.value.reason, caught.value.field) == (Reason.MISSING_FIELD, "event_time")
        assert f"{PIPELINE} has no clock yet: no event has come on events.landed[0];" in str(caught.value)
        assert await retrain(world, at=to_timestamp(START + HOUR)) == START + HOUR


async def test_a_pipeline_whose_label_cannot_be_read_stops_no_other_one_now_and_after_a_start(world: World) -> None:
    odd = world.defined(name="odd")
    odd.pipelines[0].label.expression = "nonsense("
    async with world.running():
        await world.apply()
        await world.watermark(START)
        await world.settle(START)
        await world.apply(odd)
        await world.settle()
        for name in "ab":
            await world.predict(name, START + HOUR)
        await world.land("a", START + 3 * HOUR, 20.0)
        await world.watermark(START + 5 * HOUR)
        await world.settle(START + 5 * HOUR)
        assert next(iter(metrics.faulty.collect())).samples[0].value == 1
    async with world.running():
        await world.land("b", START + 6 * HOUR, 20.0)
        await world.watermark(START + 7 * HOUR)
        await world.settle(START + 7 * HOUR)
        assert [one.prediction.join_key for one in await world.outcomes()] == ["a", "b"]
        assert await retrain(world) == START + 7 * HOUR
        with pytest.raises(Poison) as caught:
            await retrain(world, "odd")
        assert (caught.value.reason, caught.value.field) == (Reason.UNSUPPORTED, "pipeline")
        assert "'odd' cannot be joined: its label: not an SQL expression" in str(caught.value)
        await world.rpc.GetJoinStats(messages.GetJoinStatsRequest(pipeline="odd"))


async def test_a_prediction_as_large_as_kafka_takes_comes_to_an_outcome(world: World) -> None:
    async with world.running():
        await world.apply()
        await world.watermark(START)
        # One mebibyte less what a batch and a record say of themselves, and the key.
        await world.predict("a", START + HOUR, request_json=b"x" * 1_048_250)
        await world.land("a", START + 3 * HOUR, 20.0)
        await world.watermark(START + 5 * HOUR)
        await world.settle(START + 5 * HOUR)
        (outcome,) = await world.outcomes()
        assert len(outcome.prediction.request_json) == 1_048_250


async def test_features_and_predictions_are_compared_before_the_first_label_comes(world: World) -> None:
    profile = {
        "features": {"x": {"kind": "number", "edges": [-1.0, 0.0, 1.0], "counts": [160, 340, 340, 160], "nulls": 0}},
        "prediction": {"edges": [0.25, 0.5, 0.75], "counts": [250, 250, 250, 250]},
    }
    async with world.running():
        await world.apply()
        for number in (1, 2):
            trained = registry.VersionRecord(
                pipeline=PIPELINE,
                version=number,
                reference=ParseDict(profile, Struct()),
                features=[registry.FeatureColumn(name="x")],
            )
            await world.send("registry.models.v1", to_json(trained), f"{PIPELINE}/{number}")
        await world.watermark(START)
        await world.settle(START)
        for number in range(3):
            answers = ((1 if number < 2 else 2, 0.9, serving.ROLE_CHAMPION),)
            for row in range(600):
                seen = serving.ServedFeatures(numbers=[50.0])
                await world.predict(f"{number}-{row}", START + number * DAY + row, answers, features=seen)
            await world.watermark(START + (number + 1) * DAY)
            await world.settle(START + (number + 1) * DAY)
        assert await drift_signals(world) == {"feature:x", "prediction", "log_loss"}
        alerts = await world.told("monitoring.alerts.v1", monitoring.AlertRecord)
        assert [alert.summary.partition(" now ")[0] for alert in alerts] == ["late v1", "late v2"]


async def test_what_a_person_has_resolved_keeps_their_word_when_a_new_version_answers(world: World) -> None:
    async with world.running():
        await world.apply()
        for number in range(17):
            await world.day(number, 40, 0.3 if number < 12 else 0.8)
            await world.settle(START + (number + 1) * DAY)
        (found,) = (await world.rpc.ListIncidents(messages.ListIncidentsRequest(pipeline=PIPELINE))).incidents
        told = messages.ResolveIncidentRequest(incident_id=found.incident_id, note="a sensor, replaced")
        await world.rpc.ResolveIncident(told, metadata=ACTOR)
        await world.predict("new", START + 17 * DAY + HOUR, ((2, 0.3, serving.ROLE_CHAMPION),))
        await world.land("new", START + 17 * DAY + 3 * HOUR, 0.0)
        await world.watermark(START + 17 * DAY + 5 * HOUR)
        await world.settle(START + 17 * DAY + 5 * HOUR)
        known = await world.told("monitoring.incidents.v1", monitoring.IncidentRecord)
        assert [one.actor for one in known if one.status == "resolved"] == ["anna"]
        (kept,) = (await world.rpc.ListIncidents(messages.ListIncidentsRequest(pipeline=PIPELINE))).incidents
        assert kept.summary.endswith("resolved by anna: a sensor, replaced.")
