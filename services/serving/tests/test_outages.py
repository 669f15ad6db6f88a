"""Kafka goes away and comes back under a running service; these servers are this test's own."""

import asyncio
from typing import Any

import grpc
import pytest
from tidemill_contracts.serving.v1 import serving_pb2 as messages
from tidemill_testkit.flight_world import NOON_US, PIPELINE, deployment, request_fields
from tidemill_testkit.plugin import Servers, servers_of

pytestmark = pytest.mark.servers


@pytest.fixture
def servers(own_stack: Any) -> Servers:
    """The address of this module's own servers, in place of the shared ones."""
    return servers_of(own_stack.endpoints)


def one(number: int, **changes: Any) -> messages.PredictRequest:
    return messages.PredictRequest(pipeline=PIPELINE, fields=request_fields(number), as_of_us=NOON_US, **changes)


async def test_kafka_may_go_and_come_back_and_no_answer_and_no_async_record_is_lost(
    stage: Any, own_stack: Any, read_log: Any
) -> None:
    await stage.define()
    await stage.deploy(deployment(1, stage.versions.make(1)))
    async with stage.serving() as service:
        await service.predictions.Predict(one(0), timeout=60)
        await asyncio.to_thread(own_stack.stop_process, "kafka")
        try:
            answers = [await service.predictions.Predict(one(number), timeout=60) for number in range(1, 60)]
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await service.predictions.Predict(one(60, log=messages.LOG_MODE_DURABLE), timeout=60)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert not service.health.ready()
        finally:
            await asyncio.to_thread(own_stack.start_process, "kafka")
        # A record whose acknowledgement was lost is there twice: count numbers.
        records = await read_log(stage.kafka, 60, sequences=60)
        await service.settled(await stage.deploy(deployment(2, stage.versions.make(2))))
        assert (await service.predictions.Predict(one(0))).prediction.model_version == 2
    assert len(answers) == 59
    # Sent twice where Kafka's acknowledgement was lost, never left out.
    assert {record.sequence for record in records if record.sequence} == set(range(1, 61))


async def test_what_the_queue_cannot_hold_is_dropped_and_shows_as_a_gap(
    stage: Any, own_stack: Any, read_log: Any
) -> None:
    await stage.define()
    await stage.deploy(deployment(1, stage.versions.make(1)))
    async with stage.serving(log_queue=10) as service:
        await service.predictions.Predict(one(0), timeout=60)
        await read_log(stage.kafka, 1)
        await asyncio.to_thread(own_stack.stop_process, "kafka")
        try:
            for number in range(1, 31):
                await service.predictions.Predict(one(number), timeout=60)
        finally:
            await asyncio.to_thread(own_stack.start_process, "kafka")
        await read_log(stage.kafka, 11, sequences=11)
        await service.predictions.Predict(one(31), timeout=60)
        records = await read_log(stage.kafka, 12, sequences=12)
    numbers = {record.sequence for record in records}
    assert numbers == {*range(1, 12), 32}


async def test_redis_may_go_and_come_back_without_a_restart(stage: Any, own_stack: Any) -> None:
    await stage.define()
    await stage.deploy(deployment(1, stage.versions.make(1)))
    async with stage.serving(feature_timeout_s=2.0) as service:
        before = await service.predictions.Predict(one(3), timeout=60)
        await asyncio.to_thread(own_stack.stop_process, "redis")
        try:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await service.predictions.Predict(one(3), timeout=60)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        finally:
            await asyncio.to_thread(own_stack.start_process, "redis")
        assert await service.predictions.Predict(one(3), timeout=60) == before
