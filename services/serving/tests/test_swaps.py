import asyncio
import json
from itertools import count
from pathlib import Path
from typing import Any

import grpc
import pytest
from redis.asyncio import Redis
from tidemill_contracts.canonical import to_json
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.serving.v1 import serving_pb2 as messages
from tidemill_runtime.rpc_errors import from_rpc
from tidemill_testkit.eventually import aeventually
from tidemill_testkit.flight_world import (
    NOON_US,
    PIPELINE,
    VIEWS,
    definition_record,
    deployment,
    linear_model,
    request_fields,
    rings,
)

pytestmark = pytest.mark.servers


def one(number: int, **changes: Any) -> messages.PredictRequest:
    return messages.PredictRequest(pipeline=PIPELINE, fields=request_fields(number), as_of_us=NOON_US, **changes)


class Load:
    """Clients that ask without a pause; what they saw of each version, and every failure."""

    def __init__(self, service: Any) -> None:
        self._service = service
        self._numbers = count()
        self.stopping = False
        self.seen: dict[int, set[tuple[str, float]]] = {}
        self.failures: list[Exception] = []

    async def run(self) -> None:
        """Ask until stopped."""
        while not self.stopping:
            number = next(self._numbers) % 40
            try:
                answer = (await self._service.predictions.Predict(one(number), timeout=60)).prediction
            except grpc.aio.AioRpcError as error:
                self.failures.append(error)
                return
            self.seen.setdefault(answer.model_version, set()).add((answer.prediction_id, answer.probability))


async def test_no_request_fails_while_versions_are_swapped_under_load(stage: Any) -> None:
    await stage.define()
    await stage.deploy(deployment(1, stage.versions.make(1)))
    async with stage.serving() as service:
        load = Load(service)
        clients = [asyncio.create_task(load.run()) for _ in range(8)]
        for number in range(2, 12):
            old, new = stage.versions.make(number - 1), stage.versions.make(number)
            canary = deployment(2 * number, old, challenger=new, step_kind="canary", share=0.5)
            for record in (canary, deployment(2 * number + 1, new)):
                await service.settled(await stage.deploy(record))
        load.stopping = True
        await asyncio.gather(*clients)
    assert not load.failures
    assert set(load.seen) >= {1, 11}
    # One version gives one probability to a request: nobody was answered by a mixture.
    for answers in load.seen.values():
        assert len({name for name, _ in answers}) == len(answers)


async def test_what_a_wait_for_a_deployment_returns_to_is_served(stage: Any) -> None:
    await stage.define()
    async with stage.serving() as service:
        for number in range(1, 6):
            await service.settled(await stage.deploy(deployment(number, stage.versions.make(number))))
            assert (await service.predictions.Predict(one(0))).prediction.model_version == number


@pytest.mark.parametrize("file", ["manifest.json", "manifest.sig", "encoding.json", "model.linear"])
async def test_a_tampered_bundle_is_refused_and_the_last_good_version_serves_on(stage: Any, file: str) -> None:
    await stage.define()
    await stage.deploy(deployment(1, stage.versions.make(1)))
    async with stage.serving() as service:
        bad = stage.versions.make(2)
        path = stage.artifacts / bad.bundle / file
        raw = path.read_bytes()
        path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
        position = await stage.deploy(deployment(2, bad))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await service.settled(position)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "revision 2" in str(caught.value.details())
        assert (await service.predictions.Predict(one(0))).prediction.model_version == 1
        await service.settled(await stage.deploy(deployment(3, stage.versions.make(3))))
        assert (await service.predictions.Predict(one(0))).prediction.model_version == 3


async def test_a_bundle_that_was_mended_is_served_without_another_deployment(stage: Any) -> None:
    await stage.define()
    await stage.deploy(deployment(1, stage.versions.make(1)))
    async with stage.serving() as service:
        bad = stage.versions.make(2)
        path = stage.artifacts / bad.bundle / "model.linear"
        whole = path.read_bytes()
        path.write_bytes(whole[:-1])
        position = await stage.deploy(deployment(2, bad))
        with pytest.raises(grpc.aio.AioRpcError, match="refused"):
            await service.settled(position)
        path.write_bytes(whole)

        async def served() -> bool:
            answer = await service.predictions.Predict(one(0))
            return bool(answer.prediction.model_version == 2)

        await aeventually(served, claim="the mended bundle is served")
        await service.settled(position)


async def test_a_version_whose_views_are_still_being_built_takes_over_when_they_are_and_no_request_fails(
    stage: Any,
) -> None:
    changed = [*VIEWS[:-1], definition.View.FromString(VIEWS[-1].SerializeToString())]
    changed[-1].features[0].window_ms *= 2
    await stage.define()
    await stage.deploy(deployment(1, stage.versions.make(1)))
    async with stage.serving(views_wait_s=0.3) as service:
        load = Load(service)
        clients = [asyncio.create_task(load.run()) for _ in range(4)]
        record = definition_record(2, changed)
        await stage.publish("registry.pipelines.v1", f"pipeline/{PIPELINE}", to_json(record))
        position = await stage.deploy(deployment(2, stage.versions.make(2, views=changed)))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await service.settled(position)
        assert "revision 2 (refused): view plane is still being built" in str(caught.value.details())
        assert set(load.seen) == {1}
        # The worker folds both versions while one is read.
        built = rings(range(400), project=stage.project, folded=[*VIEWS, changed[-1]])
        stage.stored |= built
        async with Redis.from_url(stage.redis_url) as redis:
            await redis.mset(built)
        await aeventually(lambda: 2 in load.seen, claim="the new version takes over by itself")
        await service.settled(position)
        load.stopping = True
        await asyncio.gather(*clients)
    assert not load.failures


async def test_a_baseline_for_other_features_is_left_out_and_the_champion_answers(stage: Any, read_log: Any) -> None:
    changed = [*VIEWS[:-1], definition.View.FromString(VIEWS[-1].SerializeToString())]
    changed[-1].features[0].window_ms *= 2
    await stage.define()
    champion, same, other = (stage.versions.make(1), stage.versions.make(2), stage.versions.make(3, views=changed))
    async with stage.serving() as service:
        await service.settled(await stage.deploy(deployment(1, champion, baselines=[other, same])))
        answer = await service.predictions.Predict(one(0, log=messages.LOG_MODE_DURABLE))
        assert answer.prediction.model_version == 1
        (record,) = await read_log(stage.kafka, 1)
    assert [score.model_version for score in record.scores] == [1, 2]


async def test_a_bundle_for_other_features_is_refused(stage: Any) -> None:
    await stage.define()
    await stage.deploy(deployment(1, stage.versions.make(1)))
    async with stage.serving() as service:
        raw = json.loads(linear_model(0.1).to_bytes())
        raw["numbers"][0]["place"] = 99
        bad = stage.versions.make(2, model=json.dumps(raw).encode())
        with pytest.raises(grpc.aio.AioRpcError):
            await service.settled(await stage.deploy(deployment(2, bad)))
        assert (await service.predictions.Predict(one(0))).prediction.model_version == 1


async def test_a_restart_without_kafka_and_store_serves_the_last_good_state(stage: Any) -> None:
    await stage.define()
    champion, baseline = stage.versions.make(1), stage.versions.make(2)
    async with stage.serving() as service:
        await service.settled(await stage.deploy(deployment(1, champion, baselines=[baseline])))
        before = await service.predictions.Predict(one(5))
        await aeventually(lambda: (stage.folder / "cache" / "last-good.json").exists())
    stage.forget_artifacts()
    dead = stage.kafka.model_copy(update={"bootstrap": "127.0.0.1:1"})
    async with stage.serving(kafka=dead) as service:
        assert await service.predictions.Predict(one(5), timeout=60) == before
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await service.predictions.Predict(one(5, log=messages.LOG_MODE_DURABLE), timeout=60)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "Kafka" in str(from_rpc(caught.value))


async def test_bundles_that_are_served_no_more_leave_the_cache(stage: Any) -> None:
    await stage.define()
    async with stage.serving() as service:
        for number in range(1, 4):
            await service.settled(await stage.deploy(deployment(number, stage.versions.make(number))))
        kept: Path = stage.folder / "cache" / "bundles"
        await aeventually(lambda: len(list(kept.iterdir())) == 1)


async def test_without_redis_a_prediction_is_refused_in_bounded_time_and_never_made_up(stage: Any) -> None:
    await stage.define()
    await stage.deploy(deployment(1, stage.versions.make(1)))
    redis = stage.settings().redis.model_copy(update={"url": "redis://127.0.0.1:1/0"})
    async with stage.serving(redis=redis, feature_timeout_s=0.5) as service:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await service.predictions.Predict(one(0), timeout=30)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "Redis" in str(caught.value.details())
